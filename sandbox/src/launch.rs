//! Starting a pod's processes: the virtual machine monitor with its machine, and the file server. Nothing here waits.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::ChildStderr,
    time::Duration,
};

use sealock_protocol::{
    control::{CONFIGURE_FDS, ExitReason, MachineConfig, Request},
    relay,
    seqpacket::{self, SeqPacket},
};
use serde_json::Value;

use crate::{
    broker::Ports,
    cgroup::PodCgroup,
    check::{self, HostFiles},
    config::Config,
    error::Error as PodError,
    network::{Attached, Attaching},
    process::{Process, ProcessId},
    share::Share,
    size::{Host, Size},
    spec,
    state::{PodDir, Record, Uid},
    template::{self, InUse, Order},
    timeline::Timeline,
};

/// Why a pod can't be started, or didn't come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program can't be started.
    #[error("cannot start {}: reinstall Sealock or set `{key}` in its configuration", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Its key in the configuration.
        key: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The host is short of something.
    #[error("cannot set up the pod's sockets")]
    Socket(#[source] io::Error),
    /// The monitor can't be told its machine.
    #[error("cannot configure the virtual machine monitor")]
    Configure(#[source] seqpacket::Error),
    /// The machine can't be made a template of.
    #[error("cannot save the virtual machine: {0}")]
    Save(String),
    /// The machine ended before its agent answered.
    #[error("the virtual machine ended before it was ready: {0}")]
    Ended(String),
    /// The agent didn't answer.
    #[error(
        "the guest's agent did not answer within {} s (agent_timeout_ms in Sealock's configuration){}",
        deadline.as_secs_f64(), console_clause(console)
    )]
    Deadline {
        /// How long it had.
        deadline: Duration,
        /// The last lines of the guest's console.
        console: String,
    },
}

/// The end of a console's text for an error, if there is any.
pub(crate) fn console_clause(console: &str) -> String {
    if console.is_empty() {
        "; the guest's console is empty (see `console` in Sealock's configuration)".to_owned()
    } else {
        format!("; the guest's console ends with: {console}")
    }
}

/// What an exit reason means, for a person.
pub(crate) fn describe(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::Poweroff => "the guest powered itself off",
        ExitReason::Reboot => "the guest asked for a reboot",
        ExitReason::Panic => "the guest's kernel panicked",
        ExitReason::TripleFault => "the guest crashed (triple fault)",
        ExitReason::Closed => "it was told to end",
        ExitReason::Config => "the machine can't be built as configured",
        ExitReason::Host => "the host refused something",
    }
}

/// A pod to be started.
#[derive(Clone, Copy, Debug)]
pub struct PodRequest<'a> {
    /// Containerd's namespace, or whatever keeps equal identifiers apart.
    pub namespace: &'a str,
    /// The pod's identifier.
    pub id: &'a str,
    /// The specification of its first container.
    pub spec: &'a Value,
}

/// A pod whose processes have been started and are not supervised yet. Dropping it undoes everything.
#[derive(Debug)]
pub struct Launched {
    // In the order in which they are to be undone.
    pub(crate) vmm: Process,
    pub(crate) fsd: Process,
    pub(crate) network: Option<Attached>,
    pub(crate) share: Share,
    pub(crate) cgroup: Option<PodCgroup>,
    pub(crate) dir: PodDir,
    pub(crate) uid: Uid,
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) size: Size,
    pub(crate) config: Config,
    pub(crate) ports: Ports,
    pub(crate) hello: UnixStream,
    pub(crate) control: SeqPacket,
    pub(crate) broker: SeqPacket,
    pub(crate) vmm_stderr: ChildStderr,
    pub(crate) fsd_stderr: ChildStderr,
    pub(crate) timeline: Timeline,
    /// The template that the machine is restored from, if it can be.
    pub(crate) template: Option<InUse>,
    /// The template that is to be made.
    pub(crate) order: Option<Order>,
}

/// Starts a pod's processes. To be called on the thread that lives as long as the process ([`Process::start`]).
///
/// # Errors
/// The host lacks something, the pod exists, or what it needs can't be made. Nothing is left then.
pub fn launch(config: &Config, request: PodRequest<'_>, timeline: Timeline) -> Result<Launched, PodError> {
    let files = check::open(config)?;
    launch_with(
        config,
        request,
        timeline,
        files,
        Size::of(request.spec, config, Host::this())?,
    )
}

/// [`launch`] with the host's files given.
pub(crate) fn launch_with(
    config: &Config,
    request: PodRequest<'_>,
    mut timeline: Timeline,
    files: HostFiles,
    size: Size,
) -> Result<Launched, PodError> {
    let mut dir = PodDir::create(config.state_dir(), request.namespace, request.id)?;
    // While the monitor starts. Not before: what an earlier pod of this name has left is undone now.
    let attaching = Attached::begin(request.spec, config, size.vcpus)?;
    let uid = Uid::take(config.state_dir(), config.uids())?;
    // Before there is any other process of the pod's: they are born in it.
    let cgroup = match PodCgroup::place(request.spec)? {
        None => None,
        Some(place) => {
            dir.write_cgroup(&place)?;
            Some(PodCgroup::enter(place)?)
        }
    };
    timeline.mark("cgroup_entered");
    let sockets = Sockets::new().map_err(Error::Socket)?;

    let (vmm, vmm_stderr) = start("vmm", config.vmm(), &[], sockets.control.1)?;
    timeline.mark("vmm_spawned");
    let (network, plugs) = match attaching.map(Attaching::finish).transpose()? {
        None => (None, Vec::new()),
        Some((attached, plugs)) => {
            timeline.mark("network_attached");
            (Some(attached), plugs)
        }
    };
    let found = template::find(
        config,
        &files,
        size,
        spec::namespace(request.spec).unwrap_or(request.namespace),
    );
    let machine = MachineConfig {
        vcpus: size.vcpus,
        max_vcpus: size.max_vcpus,
        memory_mib: size.memory_mib,
        max_memory_mib: size.max_memory_mib,
        console: config.console(),
        uid: uid.get(),
        gid: uid.get(),
        template: found.opened.is_some(),
        working_set: found
            .opened
            .as_ref()
            .and_then(|opened| opened.working_set.clone())
            .unwrap_or_default(),
        nets: plugs.iter().map(|plug| plug.config.clone()).collect(),
    };
    let own: [_; CONFIGURE_FDS] = [
        files.kvm.as_fd(),
        files.kernel.as_fd(),
        files.initramfs.as_fd(),
        sockets.broker.1.as_fd(),
        sockets.relay.1.as_fd(),
    ];
    let of_template = found
        .opened
        .iter()
        .flat_map(|opened| [opened.state.as_fd(), opened.memory.as_fd()]);
    let taps = plugs.iter().flat_map(|plug| &plug.descriptors).map(AsFd::as_fd);
    let descriptors: Vec<_> = own.into_iter().chain(of_template).chain(taps).collect();
    match sockets
        .control
        .0
        .send_json(&Request::Configure(machine), &descriptors)
    {
        // A monitor that has ended already is told apart by who waits for it.
        Ok(()) | Err(seqpacket::Error::Closed) => {}
        Err(error) => return Err(Error::Configure(error).into()),
    }
    // The taps are the monitor's, and gone with it.
    drop(plugs);

    let share = Share::create(dir.path().join("share"))?;
    let (fsd, fsd_stderr) = start("fsd", config.fsd(), &[share.path()], sockets.relay.0)?;
    share.volumes().serve_by(fsd.id());
    timeline.mark("fsd_spawned");

    let score = spec::oom_score(request.spec);
    for process in [&vmm, &fsd] {
        if let Err(error) = process.set_oom_score(score) {
            tracing::warn!(sandbox = request.id, %error, "cannot set a process's OOM score");
        }
    }
    dir.write_record(&Record {
        supervisor: ProcessId::of(std::process::id()).map_err(Error::Socket)?,
        vmm: vmm.id(),
        fsd: fsd.id(),
        uid: uid.get(),
        network: network
            .as_ref()
            .map(|network| network.namespace().path().to_owned()),
    })
    .inspect_err(|_| {
        // Before the processes are.
        let _ = dir.remove();
    })?;
    let ports = Ports::default();
    ports.offer_hello(sockets.hello.1.into());
    Ok(Launched {
        vmm,
        fsd,
        network,
        share,
        cgroup,
        dir,
        uid,
        id: request.id.to_owned(),
        hostname: spec::hostname(request.spec).to_owned(),
        size,
        config: config.clone(),
        ports,
        hello: sockets.hello.0,
        control: sockets.control.0,
        broker: sockets.broker.0,
        vmm_stderr,
        fsd_stderr,
        timeline,
        template: found.opened.map(|opened| InUse {
            key: opened.key,
            order: opened.order,
            has_working_set: opened.working_set.is_some(),
        }),
        order: found.order,
    })
}

/// The sockets between a pod's processes. The first of each pair stays here, but for the relay's.
struct Sockets {
    control: (SeqPacket, SeqPacket),
    broker: (SeqPacket, SeqPacket),
    relay: (SeqPacket, SeqPacket),
    hello: (UnixStream, UnixStream),
}

impl Sockets {
    fn new() -> io::Result<Self> {
        let relay = SeqPacket::pair()?;
        // Answers of the largest size must fit.
        for end in [&relay.0, &relay.1] {
            end.set_send_buffer(2 * relay::MAX_MESSAGE)?;
        }
        Ok(Self {
            control: SeqPacket::pair()?,
            broker: SeqPacket::pair()?,
            relay,
            hello: UnixStream::pair()?,
        })
    }
}

fn start(
    key: &'static str,
    program: &Path,
    arguments: &[&Path],
    stdin: SeqPacket,
) -> Result<(Process, ChildStderr), Error> {
    Process::start(program, arguments, stdin.into()).map_err(|source| Error::Start {
        path: program.to_owned(),
        key,
        source,
    })
}
