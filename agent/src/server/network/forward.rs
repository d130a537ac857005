//! Connections from the host's side of the pod's network namespace to ports of the pod.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use sealock_protocol::agent::ConnectPortRequest;
use tokio::{io::copy_bidirectional, net::TcpStream, time::timeout};

use super::{Error, message};
use crate::{init::log, server::stdio};

/// How long who listens may take to be connected to.
const DEADLINE: Duration = Duration::from_secs(10);

/// Connects to the port and to the host, and moves the bytes between them until both have ended.
///
/// # Errors
/// Nobody listens, or the host refuses the stream.
pub async fn connect_port(request: &ConnectPortRequest) -> Result<(), Error> {
    let address = message::ip(&request.address)?;
    let port = u16::try_from(request.port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Error::Argument(format!("port: {} is not 1 to 65535", request.port)))?;
    let mut inner = timeout(DEADLINE, connect(address, port))
        .await
        .map_err(|_| Error::Deadline("connecting to the port"))?
        .map_err(Error::system(format!("connecting to port {port} of {address}")))?;
    let mut outer = stdio::connect(request.stream_port)
        .await
        .map_err(Error::system("connecting the stream to the host"))?;
    tokio::spawn(async move {
        // What was written before an end is delivered after it: each direction ends by itself.
        if let Err(error) = copy_bidirectional(&mut inner, &mut outer).await
            && !matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
            )
        {
            log(&format!("a connection to port {port}: {error}"));
        }
    });
    Ok(())
}

/// Programs listen at one family's loopback address or the other's, and who says "localhost" means either.
async fn connect(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let other = match address {
        IpAddr::V4(address) if address.is_loopback() => Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => None,
    };
    match (TcpStream::connect(SocketAddr::new(address, port)).await, other) {
        (Err(error), Some(other)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            TcpStream::connect(SocketAddr::new(other, port))
                .await
                .map_err(|_| error)
        }
        (result, _) => result,
    }
}
