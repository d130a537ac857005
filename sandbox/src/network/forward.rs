//! Connections that are made inside the pod's network namespace on the host, taken to the guest.
//!
//! containerd forwards a port by connecting to `localhost` in the namespace, and a probe may be run there. The servers are
//! in the guest, perhaps on its loopback interface only, which no packet from outside reaches. So whatever TCP connection is
//! made to one of the namespace's own addresses ends at a socket of this process ([`steer`]), the agent connects to
//! the same address and port in the guest, and the two are joined by a vsock stream: the bytes go between the connection
//! and the guest through the monitor alone.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, listen, setsockopt, socket,
    sockopt,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::sleep,
};

use super::{Error, Namespace, error::device, steer::steer};
use crate::{
    agent::{self, Agent},
    broker::Ports,
    error::line,
};

/// The most connections that are being made at once; the others wait.
const MAX_CONNECTING: usize = 64;

/// How long to wait for resources that the host is short of.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Takes connections.
#[derive(Debug)]
pub struct Forward {
    listener: StdListener,
    _link: OwnedFd,
}

impl Forward {
    /// Begins to take the namespace's connections; they wait until [`Forward::run`]. To be called where it may block.
    ///
    /// # Errors
    /// The kernel can't.
    pub fn begin(namespace: &Namespace) -> Result<Self, Error> {
        let listener = namespace
            .within(listener)
            .and_then(|listener| listener)
            .map_err(device("listen in it"))?;
        let link = steer(namespace.as_fd(), listener.as_fd())
            .map_err(device("steer connections (Linux 5.9 with BPF is needed)"))?;
        Ok(Self {
            listener,
            _link: link,
        })
    }

    /// Takes connections to the guest for as long as it is polled.
    ///
    /// # Errors
    /// The runtime can't watch the socket.
    pub async fn run(self, ports: Arc<Ports>, agent: Agent) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let connecting = Arc::new(Semaphore::new(MAX_CONNECTING));
        let mut tasks = JoinSet::new();
        loop {
            // It is never closed.
            let Ok(permit) = Arc::clone(&connecting).acquire_owned().await else {
                return Ok(());
            };
            while tasks.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection to the pod");
                    sleep(SHORTAGE).await;
                    continue;
                }
            };
            let (ports, agent) = (Arc::clone(&ports), agent.clone());
            tasks.spawn(async move {
                let _permit = permit;
                if let Err(error) = forward(&stream, &ports, &agent).await {
                    tracing::debug!(error = line(&error), "a connection to the pod is refused");
                    // Who connected is to see that nobody listens.
                    let _ = setsockopt(
                        &stream,
                        sockopt::Linger,
                        &libc::linger {
                            l_onoff: 1,
                            l_linger: 0,
                        },
                    );
                }
            });
        }
    }
}

/// Why a connection isn't taken to the guest.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("cannot hand it over")]
    Descriptor(#[from] io::Error),
    #[error(transparent)]
    Agent(#[from] agent::Error),
}

async fn forward(stream: &TcpStream, ports: &Ports, agent: &Agent) -> Result<(), Refusal> {
    let to = stream.local_addr()?;
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    let port = ports.offer(stream.as_fd().try_clone_to_owned()?)?;
    let connected = agent.connect_port(to, port).await;
    // Not there any longer if the guest has connected.
    ports.withdraw(port);
    Ok(connected?)
}

/// A socket that listens for both families, or for IPv4 where the host has no other.
fn listener() -> io::Result<StdListener> {
    let any = |address: IpAddr| SocketAddr::new(address, 0);
    let open = |family| {
        socket(
            family,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
    };
    let fd = match open(AddressFamily::Inet6) {
        Ok(fd) => {
            setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
            let SocketAddr::V6(address) = any(Ipv6Addr::UNSPECIFIED.into()) else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn6::from(address))?;
            fd
        }
        Err(nix::Error::EAFNOSUPPORT) => {
            let fd = open(AddressFamily::Inet)?;
            let SocketAddr::V4(address) = any(Ipv4Addr::UNSPECIFIED.into()) else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(address))?;
            fd
        }
        Err(error) => return Err(error.into()),
    };
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream as StdStream, process::Command};

    use super::*;

    #[test]
    fn connections_to_any_address_and_port_of_a_namespace_are_taken_and_tell_where_they_went() {
        let name = format!("sealock-test-{}", std::process::id());
        let run = |words: &str| {
            let output = Command::new("ip").args(words.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {words}: {output:?}");
        };
        run(&format!("netns add {name}"));
        run(&format!("-n {name} link set lo up"));
        run(&format!("-n {name} addr add 10.1.1.5/32 dev lo"));
        let path = format!("/run/netns/{name}");
        let namespace = Namespace::open(path.as_ref(), "test").unwrap();
        let result = std::panic::catch_unwind(|| {
            let forward = Forward::begin(&namespace).unwrap();
            forward.listener.set_nonblocking(false).unwrap();
            for to in ["127.0.0.1:8080", "127.9.9.9:1", "[::1]:65535", "10.1.1.5:443"] {
                let stream = namespace.within(|| StdStream::connect(to)).unwrap().unwrap();
                let (taken, _) = forward.listener.accept().unwrap();
                let address = taken.local_addr().unwrap();
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                assert_eq!(address.to_string(), to);
                drop(stream);
            }
            // Gone with the descriptor.
            drop(forward);
            let refused = namespace.within(|| StdStream::connect("127.0.0.1:8080")).unwrap();
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        });
        run(&format!("netns del {name}"));
        result.unwrap();
    }
}
