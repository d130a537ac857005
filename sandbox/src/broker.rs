//! Answers the vsock device: which descriptor is behind a port of the host. Every port is given out once.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use sealock_protocol::{
    broker::{Answer, MAX_MESSAGE, Request},
    guest::{FIRST_STREAM_PORT, HELLO_PORT},
    seqpacket::{self, SeqPacket},
};

use crate::socket::AsyncSeqPacket;

/// The most ports that wait to be connected to: three streams of each container that is being created.
const MAX_PORTS: usize = 1024;

/// What is behind the host's vsock ports.
#[derive(Debug, Default)]
pub struct Ports(Mutex<HashMap<u32, OwnedFd>>);

impl Ports {
    /// Puts `fd` behind a port nobody can guess, for one connection.
    ///
    /// # Errors
    /// There are too many already, or the host has no random numbers.
    pub fn offer(&self, fd: OwnedFd) -> io::Result<u32> {
        let mut ports = self.lock();
        if ports.len() >= MAX_PORTS {
            return Err(io::Error::other("too many streams wait to be connected"));
        }
        loop {
            let port = random()?;
            // The highest one stands for "any" (vsock(7), VMADDR_PORT_ANY).
            if (FIRST_STREAM_PORT..u32::MAX).contains(&port) && !ports.contains_key(&port) {
                ports.insert(port, fd);
                return Ok(port);
            }
        }
    }

    /// Puts `fd` behind [`HELLO_PORT`], for one connection.
    pub fn offer_hello(&self, fd: OwnedFd) {
        self.lock().insert(HELLO_PORT, fd);
    }

    /// Closes what is behind a port that has not been connected to.
    pub fn withdraw(&self, port: u32) {
        self.lock().remove(&port);
    }

    fn take(&self, port: u32) -> Option<OwnedFd> {
        self.lock().remove(&port)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills `bytes` from the host's random generator.
///
/// # Errors
/// It isn't there.
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the pointer and length describe `bytes`, which is valid for writing.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(filled) {
        Ok(filled) if filled == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::other("the host's random generator gave too little")),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    fill_random(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Answers the device on `socket` until it closes it.
///
/// # Errors
/// The socket breaks, or the device says what the protocol doesn't.
pub async fn serve(socket: SeqPacket, ports: &Ports) -> Result<(), seqpacket::Error> {
    let socket = AsyncSeqPacket::new(socket)?;
    loop {
        // Descriptors that came along mean nothing here and are closed.
        let (request, _) = match socket.receive::<Request>(MAX_MESSAGE).await {
            Err(seqpacket::Error::Closed) => return Ok(()),
            other => other?,
        };
        let sent = match request {
            Request::Connect { id, port } => match ports.take(port) {
                Some(fd) => socket.send(&Answer::Accept { id }, &[fd.as_fd()]).await,
                None => {
                    tracing::debug!(port, "the guest connected to a port with nothing behind it");
                    socket.send(&Answer::Refuse { id }, &[]).await
                }
            },
            // Nothing is dialed by this version.
            Request::Dialed { .. } => Ok(()),
        };
        match sent {
            Err(seqpacket::Error::Closed) => return Ok(()),
            other => other?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, io::Write};

    use super::*;

    fn run(test: impl AsyncFnOnce(&AsyncSeqPacket, &Ports)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (host, device) = SeqPacket::pair().unwrap();
            let ports = Ports::default();
            let device = AsyncSeqPacket::new(device).unwrap();
            tokio::select! {
                result = serve(host, &ports) => panic!("ended early: {result:?}"),
                () = test(&device, &ports) => {}
            }
        });
    }

    async fn connect(device: &AsyncSeqPacket, id: u64, port: u32) -> (Answer, Vec<OwnedFd>) {
        device.send(&Request::Connect { id, port }, &[]).await.unwrap();
        device.receive(MAX_MESSAGE).await.unwrap()
    }

    #[test]
    fn a_port_is_connected_to_once() {
        run(async |device, ports| {
            let (mut reader, writer) = io::pipe().unwrap();
            let port = ports.offer(writer.into()).unwrap();
            assert!(port >= FIRST_STREAM_PORT);
            let (answer, mut fds) = connect(device, 7, port).await;
            assert_eq!(answer, Answer::Accept { id: 7 });
            File::from(fds.remove(0)).write_all(b"x").unwrap();
            // The host kept no copy: the stream ends with the device's.
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "x");
            let (answer, fds) = connect(device, 8, port).await;
            assert_eq!((answer, fds.len()), (Answer::Refuse { id: 8 }, 0));
        });
    }

    #[test]
    fn hello_is_said_once() {
        run(async |device, ports| {
            let (_, writer) = io::pipe().unwrap();
            assert_eq!(connect(device, 1, HELLO_PORT).await.0, Answer::Refuse { id: 1 });
            ports.offer_hello(writer.into());
            assert_eq!(connect(device, 2, HELLO_PORT).await.0, Answer::Accept { id: 2 });
            assert_eq!(connect(device, 3, HELLO_PORT).await.0, Answer::Refuse { id: 3 });
        });
    }

    #[test]
    fn a_withdrawn_port_is_closed() {
        run(async |device, ports| {
            let (mut reader, writer) = io::pipe().unwrap();
            let port = ports.offer(writer.into()).unwrap();
            ports.withdraw(port);
            assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
            assert_eq!(connect(device, 1, port).await.0, Answer::Refuse { id: 1 });
        });
    }

    #[test]
    fn ports_are_bounded_and_distinct() {
        let ports = Ports::default();
        let (reader, _writer) = io::pipe().unwrap();
        let reader = OwnedFd::from(reader);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..100 {
            assert!(seen.insert(ports.offer(reader.try_clone().unwrap()).unwrap()));
        }
    }

    #[test]
    fn a_device_that_talks_nonsense_is_not_served_any_longer() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (host, device) = SeqPacket::pair().unwrap();
            device.send(b"{\"connect\":{\"id\":1}}", &[]).unwrap();
            let result = serve(host, &Ports::default()).await;
            assert!(matches!(result, Err(seqpacket::Error::Malformed(_))));
            let (host, device) = SeqPacket::pair().unwrap();
            device.send(&[b' '; MAX_MESSAGE + 1], &[]).unwrap();
            let result = serve(host, &Ports::default()).await;
            assert!(matches!(result, Err(seqpacket::Error::TooLarge(_))));
        });
    }
}
