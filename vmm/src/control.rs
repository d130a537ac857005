//! The VMM's side of the control socket.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};
use sealock_protocol::{
    control::{self, Event, MachineConfig, Request},
    seqpacket::{self, SeqPacket},
};

use crate::{console::Console, ending::Ending};

/// How long a message to the shim may wait for room, in seconds: the shim reads all the time.
const SEND_TIMEOUT: i64 = 10;

/// Why nothing could be made of what the shim sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shim is gone.
    #[error("the control socket was closed")]
    Closed,
    /// Receiving failed.
    #[error("cannot receive from the control socket")]
    Receive(#[source] seqpacket::Error),
    /// Not what comes first.
    #[error("the first message on the control socket must be the configuration, with {expected} descriptors, not {given}",
        expected = control::CONFIGURE_FDS)]
    NotConfigured {
        /// The descriptors that came.
        given: usize,
    },
}

/// The control socket.
pub struct Control(SeqPacket);

/// The first message and its descriptors.
pub struct Configuration {
    /// The machine.
    pub machine: MachineConfig,
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The kernel.
    pub kernel: File,
    /// The initramfs.
    pub initramfs: File,
    /// An empty directory.
    pub root: OwnedFd,
    /// The vsock device's broker.
    pub broker: SeqPacket,
    /// The file server.
    pub files: SeqPacket,
}

impl Control {
    /// `socket` must be a connected `SOCK_SEQPACKET` socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        // Where these are refused, receiving fails too, and says so.
        let _ = setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(SEND_TIMEOUT, 0));
        let socket = SeqPacket::from(socket);
        let _ = socket.set_send_buffer(2 * control::MAX_MESSAGE);
        Self(socket)
    }

    fn receive(&self) -> Result<(Request, Vec<OwnedFd>), Error> {
        self.0
            .receive_json(control::MAX_MESSAGE)
            .map_err(|error| match error {
                seqpacket::Error::Closed => Error::Closed,
                error => Error::Receive(error),
            })
    }

    /// Waits for the configuration.
    ///
    /// # Errors
    /// The shim sent something else, or nothing.
    pub fn configuration(&self) -> Result<Configuration, Error> {
        let (request, fds) = self.receive()?;
        let given = fds.len();
        let fds = <[OwnedFd; control::CONFIGURE_FDS]>::try_from(fds);
        match (request, fds) {
            (Request::Configure(machine), Ok([kvm, kernel, initramfs, root, broker, files])) => {
                Ok(Configuration {
                    machine,
                    kvm,
                    kernel: kernel.into(),
                    initramfs: initramfs.into(),
                    root,
                    broker: broker.into(),
                    files: files.into(),
                })
            }
            _ => Err(Error::NotConfigured { given }),
        }
    }

    /// Tells the shim. If it can't be told any more, it is gone, and the next wait will say so.
    pub fn tell(&self, event: &Event) {
        let _ = self.0.send_json(event, &[]);
    }

    /// Answers the shim's questions until the machine ends (`Ok`) or the shim does.
    ///
    /// # Errors
    /// [`Error::Closed`], or the shim sent something that makes no sense.
    pub fn serve(&self, console: &Console, ending: &Ending) -> Result<(), Error> {
        loop {
            let mut watched = [
                PollFd::new(self.0.as_fd(), PollFlags::POLLIN),
                PollFd::new(ending.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Error::Receive(std::io::Error::from(error).into())),
            }
            if ending.reason().is_some() {
                return Ok(());
            }
            if watched[0].any().unwrap_or(false) {
                match self.receive()? {
                    (Request::ReadConsole, _) => self.tell(&Event::Console { tail: console.tail() }),
                    (Request::AddNet(net), _) => self.tell(&Event::NetAdded {
                        mac: net.mac,
                        error: "network devices are not supported yet".to_owned(),
                    }),
                    (Request::RemoveNet { mac }, _) => self.tell(&Event::NetRemoved {
                        mac,
                        error: "there is no such network device".to_owned(),
                    }),
                    (Request::Configure(_), fds) => return Err(Error::NotConfigured { given: fds.len() }),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, thread};

    use sealock_protocol::control::ExitReason;

    use super::*;

    fn control() -> (Control, SeqPacket) {
        let (vmm, shim) = SeqPacket::pair().unwrap();
        (Control::new(vmm.into()), shim)
    }

    fn machine() -> Request {
        Request::Configure(MachineConfig {
            vcpus: 1,
            memory_mib: 128,
            console: false,
            uid: 0,
            gid: 0,
            nets: Vec::new(),
        })
    }

    #[test]
    fn the_configuration_needs_all_its_descriptors() {
        for count in [0, control::CONFIGURE_FDS - 1, control::CONFIGURE_FDS + 1] {
            let (control, shim) = control();
            let (_, end) = std::io::pipe().unwrap();
            shim.send_json(&machine(), &vec![end.as_fd(); count]).unwrap();
            assert!(matches!(control.configuration(), Err(Error::NotConfigured { given }) if given == count));
        }
        let (control, shim) = control();
        let (_, end) = std::io::pipe().unwrap();
        shim.send_json(&machine(), &[end.as_fd(); control::CONFIGURE_FDS])
            .unwrap();
        assert_eq!(control.configuration().unwrap().machine.memory_mib, 128);
    }

    #[test]
    fn the_console_is_told_when_asked_and_the_end_ends_it() {
        let (control, shim) = control();
        let mut console = Console::default();
        console.write_all(b"hello").unwrap();
        let ending = Ending::new().unwrap();
        let served = thread::spawn({
            let ending = ending.clone();
            move || control.serve(&console, &ending)
        });
        shim.send_json(&Request::ReadConsole, &[]).unwrap();
        let (event, _) = shim.receive_json::<Event>(control::MAX_MESSAGE).unwrap();
        assert_eq!(event, Event::Console { tail: "hello".into() });
        ending.end(ExitReason::Panic, "");
        served.join().unwrap().unwrap();
    }

    #[test]
    fn a_closed_socket_ends_it() {
        let (control, shim) = control();
        drop(shim);
        let ended = control.serve(&Console::default(), &Ending::new().unwrap());
        assert!(matches!(ended, Err(Error::Closed)));
    }
}
