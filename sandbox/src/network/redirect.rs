//! What comes in at one interface goes out at another (tc(8): the `ingress` qdisc, `matchall` and `mirred`).
//!
//! Both ways between an interface of the pod and its tap. The host's own network code never sees the packets: the
//! addresses that the interface has there are the guest's, and only the guest answers for them.

use sealock_netlink::{
    Error as NetlinkError, Socket,
    core::{NLM_F_CREATE, NLM_F_EXCL},
    route::{
        RouteNetlinkMessage,
        tc::{
            TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
            TcFilterMatchAllOption, TcHandle, TcHeader, TcMessage, TcMirror, TcMirrorActionType, TcOption,
        },
    },
};

use super::{Error, error::kernel};

/// Our filter's priority: after those of others, and ours to remove.
const PRIORITY: u32 = 0x5ea1;

const FILTER: &str = "matchall";
const QDISC: &str = "ingress";

/// Where filters hang on an ingress qdisc, or on a clsact one that was there before.
const PARENT: TcHandle = TcHandle {
    major: u16::MAX,
    minor: TcHandle::MIN_INGRESS,
};

fn qdisc(interface: i32) -> TcMessage {
    let mut message = TcMessage::with_index(interface);
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind(QDISC.to_owned())];
    message
}

fn filter(interface: i32) -> TcMessage {
    let mut message = TcMessage::with_index(interface);
    message.header = TcHeader {
        index: interface,
        parent: PARENT,
        // All protocols, in network order.
        info: PRIORITY << 16 | u32::from((libc::ETH_P_ALL as u16).to_be()),
        ..TcHeader::default()
    };
    message.attributes = vec![TcAttribute::Kind(FILTER.to_owned())];
    message
}

fn number(interface: u32) -> Result<i32, Error> {
    i32::try_from(interface).map_err(|_| Error::Unsupported(format!("an interface of number {interface}")))
}

fn tolerate(result: Result<(), NetlinkError>, numbers: &[i32]) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno().is_some_and(|errno| numbers.contains(&errno)) => Ok(()),
        other => other,
    }
}

/// Sends everything that comes in at `from` out at `to`.
///
/// # Errors
/// The kernel refuses.
pub fn add(socket: &mut Socket, from: u32, to: u32) -> Result<(), Error> {
    let doing = "redirect packets (are the modules sch_ingress, cls_matchall and act_mirred there?)";
    let interface = number(from)?;
    let request = RouteNetlinkMessage::NewQueueDiscipline(qdisc(interface));
    tolerate(
        socket.request(request, NLM_F_CREATE | NLM_F_EXCL),
        &[libc::EEXIST],
    )
    .map_err(kernel(doing))?;
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let mut message = filter(interface);
    message
        .attributes
        .push(TcAttribute::Options(vec![TcOption::MatchAll(
            TcFilterMatchAllOption::Action(vec![action]),
        )]));
    let request = RouteNetlinkMessage::NewTrafficFilter(message);
    socket
        .request(request, NLM_F_CREATE | NLM_F_EXCL)
        .map_err(kernel(doing))
}

/// Undoes [`add`], and removes the qdisc unless it is in use by others. It's no error when the interface is gone.
///
/// # Errors
/// The kernel refuses.
pub fn remove(socket: &mut Socket, from: u32) -> Result<(), Error> {
    let doing = "end the redirection of packets";
    // No such device, no such qdisc, no such filter.
    let gone = [libc::ENODEV, libc::EINVAL, libc::ENOENT];
    let interface = number(from)?;
    let request = RouteNetlinkMessage::DelTrafficFilter(filter(interface));
    tolerate(socket.request(request, 0), &gone).map_err(kernel(doing))?;
    let mut all = filter(interface);
    all.header.info = 0;
    all.attributes.clear();
    let left = match socket.dump(&RouteNetlinkMessage::GetTrafficFilter(all)) {
        Err(error) if error.errno().is_some_and(|errno| gone.contains(&errno)) => return Ok(()),
        other => other.map_err(kernel(doing))?,
    };
    if !left.is_empty() {
        return Ok(());
    }
    // Of another kind it is another's: the kernel compares the kinds.
    let request = RouteNetlinkMessage::DelQueueDiscipline(qdisc(interface));
    tolerate(socket.request(request, 0), &gone).map_err(kernel(doing))
}
