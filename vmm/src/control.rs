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
    control::{self, Event, MachineConfig, NetConfig, Request},
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
    #[error("the first message on the control socket must be the configuration, which comes once")]
    NotConfigured,
    /// Not everything that belongs to it came along.
    #[error("the configuration needs {needed} descriptors, not {given}")]
    Descriptors {
        /// That must come.
        needed: usize,
        /// That came.
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
    /// The vsock device's broker.
    pub broker: SeqPacket,
    /// The file server.
    pub files: SeqPacket,
    /// What to restore the machine from.
    pub template: Option<Template>,
    /// The network devices with their descriptors.
    pub nets: Vec<(NetConfig, Vec<OwnedFd>)>,
}

/// A template's files.
#[derive(Debug)]
pub struct Template {
    /// The state.
    pub state: File,
    /// The memory.
    pub memory: File,
}

/// What can be plugged into a running machine.
pub trait Sockets {
    /// Plugs a network device with its descriptors in.
    ///
    /// # Errors
    /// Why not, in one line.
    fn add_net(&mut self, config: &NetConfig, descriptors: Vec<OwnedFd>) -> Result<(), String>;

    /// Unplugs the network device with the hardware address `mac`. Its descriptors are closed when this returns.
    ///
    /// # Errors
    /// There is none.
    fn remove_net(&mut self, mac: [u8; 6]) -> Result<(), String>;

    /// Lets the machine have so many virtual CPUs and so many MiB of memory. Returns the answer to
    /// [`Request::Resize`].
    fn resize(&mut self, vcpus: u8, memory_mib: u32) -> Event;

    /// Saves the machine into two empty files. It doesn't run any more afterwards.
    ///
    /// # Errors
    /// Why not, in one line.
    fn save(&mut self, files: Template) -> Result<(), String>;
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
        let (Request::Configure(machine), mut fds) = self.receive()? else {
            return Err(Error::NotConfigured);
        };
        let given = fds.len();
        // At most 255 times 255 times 2 beyond, whatever they say.
        let of_template = if machine.template {
            control::TEMPLATE_FDS
        } else {
            0
        };
        let needed = control::CONFIGURE_FDS
            + of_template
            + machine.nets.iter().map(NetConfig::descriptors).sum::<usize>();
        if given != needed {
            return Err(Error::Descriptors { needed, given });
        }
        let mut of_nets = fds.split_off(control::CONFIGURE_FDS + of_template).into_iter();
        let template = template(fds.split_off(control::CONFIGURE_FDS));
        let Ok([kvm, kernel, initramfs, broker, files]) = <[OwnedFd; control::CONFIGURE_FDS]>::try_from(fds)
        else {
            return Err(Error::Descriptors { needed, given });
        };
        let nets = machine
            .nets
            .iter()
            .map(|net| (net.clone(), of_nets.by_ref().take(net.descriptors()).collect()))
            .collect();
        Ok(Configuration {
            machine,
            kvm,
            kernel: kernel.into(),
            initramfs: initramfs.into(),
            broker: broker.into(),
            files: files.into(),
            template,
            nets,
        })
    }

    /// Tells the shim. If it can't be told any more, it is gone, and the next wait will say so.
    pub fn tell(&self, event: &Event) {
        let _ = self.0.send_json(event, &[]);
    }

    /// Does what the shim asks for until the machine ends (`Ok`) or the shim does.
    ///
    /// # Errors
    /// [`Error::Closed`], or the shim sent something that makes no sense.
    pub fn serve(&self, console: &Console, ending: &Ending, machine: &mut impl Sockets) -> Result<(), Error> {
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
                    (Request::Resize { vcpus, memory_mib }, _) => {
                        self.tell(&machine.resize(vcpus, memory_mib))
                    }
                    (Request::AddNet(net), fds) => self.tell(&Event::NetAdded {
                        mac: net.mac,
                        error: machine.add_net(&net, fds).err().unwrap_or_default(),
                    }),
                    (Request::RemoveNet { mac }, _) => self.tell(&Event::NetRemoved {
                        mac,
                        error: machine.remove_net(mac).err().unwrap_or_default(),
                    }),
                    (Request::Save, fds) => {
                        let saved = template(fds)
                            .ok_or_else(|| "two descriptors are needed".to_owned())
                            .and_then(|files| machine.save(files));
                        self.tell(&Event::Saved {
                            error: saved.err().unwrap_or_default(),
                        });
                    }
                    (Request::Configure(_), _) => return Err(Error::NotConfigured),
                }
            }
        }
    }
}

/// A template's files from their descriptors.
fn template(fds: Vec<OwnedFd>) -> Option<Template> {
    let [state, memory] = <[OwnedFd; control::TEMPLATE_FDS]>::try_from(fds).ok()?;
    Some(Template {
        state: state.into(),
        memory: memory.into(),
    })
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

    struct NoSockets;

    impl Sockets for NoSockets {
        fn add_net(&mut self, _config: &NetConfig, descriptors: Vec<OwnedFd>) -> Result<(), String> {
            if descriptors.is_empty() {
                return Err("nothing to plug in".to_owned());
            }
            Ok(())
        }

        fn remove_net(&mut self, _mac: [u8; 6]) -> Result<(), String> {
            Err("no such thing".to_owned())
        }

        fn save(&mut self, _files: Template) -> Result<(), String> {
            Ok(())
        }

        fn resize(&mut self, vcpus: u8, memory_mib: u32) -> Event {
            Event::Resized {
                vcpus,
                memory_mib,
                error: String::new(),
            }
        }
    }

    fn net(queue_pairs: u8, vhost: bool) -> NetConfig {
        NetConfig {
            mac: [2, 0, 0, 0, 0, queue_pairs],
            mtu: 1500,
            queue_pairs,
            vhost,
            receive_limit: None,
            send_limit: None,
        }
    }

    fn machine_with(nets: Vec<NetConfig>) -> Request {
        Request::Configure(MachineConfig {
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 128,
            max_memory_mib: 128,
            console: false,
            uid: 0,
            gid: 0,
            template: false,
            working_set: control::WorkingSet::default(),
            nets,
        })
    }

    fn machine() -> Request {
        machine_with(Vec::new())
    }

    #[test]
    fn the_configuration_needs_all_its_descriptors() {
        for count in [0, control::CONFIGURE_FDS - 1, control::CONFIGURE_FDS + 1] {
            let (control, shim) = control();
            let (_, end) = std::io::pipe().unwrap();
            shim.send_json(&machine(), &vec![end.as_fd(); count]).unwrap();
            assert!(
                matches!(control.configuration(), Err(Error::Descriptors { needed: control::CONFIGURE_FDS, given }) if given == count)
            );
        }
        let (control, shim) = control();
        let (_, end) = std::io::pipe().unwrap();
        shim.send_json(&machine(), &[end.as_fd(); control::CONFIGURE_FDS])
            .unwrap();
        assert_eq!(control.configuration().unwrap().machine.memory_mib, 128);
    }

    #[test]
    fn each_network_device_gets_its_own_descriptors() {
        let (control, shim) = control();
        let (_, end) = std::io::pipe().unwrap();
        let nets = vec![net(2, false), net(1, true), net(4, true)];
        let fds = control::CONFIGURE_FDS + 2 + 2 + 8;
        shim.send_json(&machine_with(nets.clone()), &vec![end.as_fd(); fds])
            .unwrap();
        let configuration = control.configuration().unwrap();
        let given: Vec<_> = configuration
            .nets
            .iter()
            .map(|(net, fds)| (net.clone(), fds.len()))
            .collect();
        let expected: Vec<_> = nets.into_iter().zip([2, 2, 8]).collect();
        assert_eq!(given, expected);
    }

    #[test]
    fn a_template_comes_with_two_descriptors_more_and_is_saved_into_two() {
        let (control, shim) = control();
        let (_, end) = std::io::pipe().unwrap();
        let Request::Configure(mut config) = machine_with(vec![net(1, false)]) else {
            unreachable!("it is a configuration");
        };
        config.template = true;
        let fds = control::CONFIGURE_FDS + control::TEMPLATE_FDS + 1;
        shim.send_json(&Request::Configure(config), &vec![end.as_fd(); fds])
            .unwrap();
        let configuration = control.configuration().unwrap();
        assert!(configuration.template.is_some());
        assert_eq!(configuration.nets[0].1.len(), 1);
        for (count, wrong) in [(2, false), (1, true)] {
            shim.send_json(&Request::Save, &vec![end.as_fd(); count]).unwrap();
            let ending = Ending::new().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| control.serve(&Console::default(), &ending, &mut NoSockets));
                let (event, _) = shim.receive_json::<Event>(control::MAX_MESSAGE).unwrap();
                let Event::Saved { error } = event else {
                    panic!("{event:?}");
                };
                assert_eq!(!error.is_empty(), wrong);
                ending.end(ExitReason::Poweroff, "");
            });
        }
    }

    #[test]
    fn what_became_of_plugging_is_told() {
        let (control, shim) = control();
        let ending = Ending::new().unwrap();
        let served = thread::spawn({
            let ending = ending.clone();
            move || control.serve(&Console::default(), &ending, &mut NoSockets)
        });
        let (_, end) = std::io::pipe().unwrap();
        let mac = [2, 0, 0, 0, 0, 1];
        let ask = |request: Request, fds: &[std::os::fd::BorrowedFd<'_>]| {
            shim.send_json(&request, fds).unwrap();
            shim.receive_json::<Event>(control::MAX_MESSAGE).unwrap().0
        };
        let added = |error: &str| Event::NetAdded {
            mac,
            error: error.to_owned(),
        };
        assert_eq!(ask(Request::AddNet(net(1, false)), &[end.as_fd()]), added(""));
        assert_eq!(
            ask(Request::AddNet(net(1, false)), &[]),
            added("nothing to plug in")
        );
        let error = "no such thing".to_owned();
        assert_eq!(
            ask(Request::RemoveNet { mac }, &[]),
            Event::NetRemoved { mac, error }
        );
        ending.end(ExitReason::Poweroff, "");
        served.join().unwrap().unwrap();
    }

    #[test]
    fn the_console_is_told_when_asked_and_the_end_ends_it() {
        let (control, shim) = control();
        let mut console = Console::default();
        console.write_all(b"hello").unwrap();
        let ending = Ending::new().unwrap();
        let served = thread::spawn({
            let ending = ending.clone();
            move || control.serve(&console, &ending, &mut NoSockets)
        });
        shim.send_json(&Request::ReadConsole, &[]).unwrap();
        let (event, _) = shim.receive_json::<Event>(control::MAX_MESSAGE).unwrap();
        assert_eq!(event, Event::Console { tail: "hello".into() });
        ending.end(ExitReason::Panic, "");
        served.join().unwrap().unwrap();
    }

    #[test]
    fn a_new_size_is_answered() {
        let (control, shim) = control();
        let request = Request::Resize {
            vcpus: 3,
            memory_mib: 999,
        };
        shim.send_json(&request, &[]).unwrap();
        let served = thread::spawn(move || {
            control.serve(&Console::default(), &Ending::new().unwrap(), &mut NoSockets)
        });
        let (event, _) = shim.receive_json::<Event>(control::MAX_MESSAGE).unwrap();
        let resized = Event::Resized {
            vcpus: 3,
            memory_mib: 999,
            error: String::new(),
        };
        assert_eq!(event, resized);
        drop(shim);
        assert!(matches!(served.join().unwrap(), Err(Error::Closed)));
    }

    #[test]
    fn a_closed_socket_ends_it() {
        let (control, shim) = control();
        drop(shim);
        let ended = control.serve(&Console::default(), &Ending::new().unwrap(), &mut NoSockets);
        assert!(matches!(ended, Err(Error::Closed)));
    }
}
