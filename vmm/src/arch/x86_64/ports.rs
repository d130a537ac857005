//! Port I/O: a serial port, the keyboard controller's reset line, and PCI configuration mechanism #1. Everything else
//! reads as all ones and swallows what is written.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use sealock_protocol::control::ExitReason;
use serde::{Deserialize, Serialize};
use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::{console::Console, ending::Ending, pci::bus::Bus};

/// The interrupt of the serial port on the ISA bus.
pub const SERIAL_INTERRUPT: u8 = 4;

const SERIAL: u16 = 0x3f8;
const SERIAL_END: u16 = SERIAL + 7;
// The serial port's registers (16550).
const DIVISOR_LOW: u16 = 0;
const DIVISOR_HIGH: u16 = 1;
const INTERRUPT_ENABLE: u16 = 1;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const SCRATCH: u16 = 7;
/// The bit of the line control register that gives access to the divisor.
const DIVISOR_LATCH: u8 = 1 << 7;
const KEYBOARD_STATUS: u16 = 0x64;
/// The command that pulses the processor's reset line.
const KEYBOARD_RESET: u8 = 0xfe;
/// The address register of PCI configuration mechanism #1, four ports wide: writing it does nothing by itself.
pub const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;
const PCI_DATA_END: u16 = PCI_DATA + 3;
const PCI_ENABLE: u32 = 1 << 31;

/// What the guest has written to the ports. Nothing is ever received on the serial port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsState {
    pci_address: u32,
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
}

/// The ports of a machine.
pub struct Ports {
    serial: Mutex<Serial<Interrupt, NoEvents, Console>>,
    pci: Arc<Bus>,
    pci_address: AtomicU32,
    ending: Ending,
}

/// The interrupt line, as an eventfd that KVM listens to.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Ports {
    /// `serial_interrupt` is an eventfd that raises [`SERIAL_INTERRUPT`]; what the guest writes goes to `console`, and it
    /// never reads anything from there.
    #[must_use]
    pub fn new(serial_interrupt: EventFd, console: Console, pci: Arc<Bus>, ending: Ending) -> Self {
        Self {
            serial: Mutex::new(Serial::new(Interrupt(serial_interrupt), console)),
            pci,
            pci_address: AtomicU32::new(0),
            ending,
        }
    }

    /// What the guest has written.
    #[must_use]
    pub fn save(&self) -> PortsState {
        let serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner).state();
        PortsState {
            pci_address: self.pci_address.load(Ordering::Relaxed),
            baud_divisor: [serial.baud_divisor_low, serial.baud_divisor_high],
            interrupt_enable: serial.interrupt_enable,
            line_control: serial.line_control,
            modem_control: serial.modem_control,
            scratch: serial.scratch,
        }
    }

    /// Writes what another machine's guest has written.
    pub fn restore(&self, state: PortsState) {
        self.pci_address.store(state.pci_address, Ordering::Relaxed);
        let registers = [
            (LINE_CONTROL, DIVISOR_LATCH),
            (DIVISOR_LOW, state.baud_divisor[0]),
            (DIVISOR_HIGH, state.baud_divisor[1]),
            (LINE_CONTROL, state.line_control & !DIVISOR_LATCH),
            (INTERRUPT_ENABLE, state.interrupt_enable),
            (MODEM_CONTROL, state.modem_control),
            (SCRATCH, state.scratch),
            (LINE_CONTROL, state.line_control),
        ];
        for (register, value) in registers {
            self.write(SERIAL + register, &[value]);
        }
    }

    /// Reads from `port`: as many bytes as `data` has, which for a repeated instruction are several reads.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match port {
            SERIAL..=SERIAL_END => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                for byte in data {
                    *byte = serial.read((port - SERIAL) as u8);
                }
            }
            // Its buffers are empty: a command may be written.
            KEYBOARD_STATUS => data.fill(0),
            PCI_ADDRESS if data.len() == 4 => {
                data.copy_from_slice(&self.pci_address.load(Ordering::Relaxed).to_le_bytes());
            }
            PCI_DATA..=PCI_DATA_END => {
                if let Some((slot, offset)) = self.pci_target(port, data.len()) {
                    self.pci.read_config(slot, offset, data);
                }
            }
            _ => {}
        }
    }

    /// Writes to `port`; see [`Ports::read`] for the length.
    pub fn write(&self, port: u16, data: &[u8]) {
        match port {
            SERIAL..=SERIAL_END => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                for byte in data {
                    // Neither the console nor an eventfd that nobody leaves full refuses anything.
                    let _ = serial.write((port - SERIAL) as u8, *byte);
                }
            }
            KEYBOARD_STATUS if data.contains(&KEYBOARD_RESET) => self.ending.end(ExitReason::Reboot, ""),
            PCI_ADDRESS => {
                // Anything but a whole double word is not for the address register (PCI 3.0, 3.2.2.3.2).
                if let Ok(address) = data.try_into() {
                    self.pci_address
                        .store(u32::from_le_bytes(address), Ordering::Relaxed);
                }
            }
            PCI_DATA..=PCI_DATA_END => {
                if let Some((slot, offset)) = self.pci_target(port, data.len()) {
                    self.pci.write_config(slot, offset, data);
                }
            }
            _ => {}
        }
    }

    /// The slot and register that the address register and `port` select for an access of `length` bytes; `None` where
    /// there is nothing: other buses, functions other than 0, accesses across a double word.
    #[allow(clippy::cast_possible_truncation)]
    fn pci_target(&self, port: u16, length: usize) -> Option<(u8, u8)> {
        let address = self.pci_address.load(Ordering::Relaxed);
        let within = port - PCI_DATA;
        let bus_and_function = address & 0x7fff_0700;
        if address & PCI_ENABLE == 0 || bus_and_function != 0 || usize::from(within) + length > 4 {
            return None;
        }
        Some((
            (address >> 11 & 0x1f) as u8,
            (address & 0xfc) as u8 | within as u8,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::bridge::HostBridge;

    fn ports() -> (Ports, Console, Ending) {
        let bus = Arc::new(Bus::default());
        bus.attach(|_| Ok::<_, crate::pci::bus::Full>(HostBridge::default()))
            .unwrap();
        let console = Console::default();
        let ending = Ending::new().unwrap();
        let interrupt = EventFd::new(0).unwrap();
        (
            Ports::new(interrupt, console.clone(), bus, ending.clone()),
            console,
            ending,
        )
    }

    fn read32(ports: &Ports, port: u16) -> u32 {
        let mut data = [0; 4];
        ports.read(port, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn an_absent_port_reads_all_ones() {
        let (ports, ..) = ports();
        ports.write(0x1234, &[1, 2, 3, 4]);
        assert_eq!(read32(&ports, 0x1234), u32::MAX);
    }

    #[test]
    fn the_reset_line_ends_the_machine() {
        let (ports, _, ending) = ports();
        ports.write(0x64, &[0xd1]);
        assert_eq!(ending.reason(), None);
        ports.write(0x64, &[0xfe]);
        assert_eq!(ending.reason(), Some((ExitReason::Reboot, "")));
    }

    #[test]
    fn the_serial_port_writes_to_the_console() {
        let (ports, console, _) = ports();
        ports.write(0x3f8, b"h");
        ports.write(0x3f8, b"ello");
        assert_eq!(console.tail(), "hello");
        let mut status = [0];
        ports.read(0x3fd, &mut status);
        assert_ne!(status[0] & 0x20, 0, "the transmitter is ready");
    }

    #[test]
    fn mechanism_1_reaches_the_bridge_and_nothing_else() {
        let (ports, ..) = ports();
        assert_eq!(read32(&ports, PCI_DATA), u32::MAX, "not enabled");
        // What Linux does to find out whether the mechanism works.
        ports.write(PCI_ADDRESS + 3, &[1]);
        ports.write(PCI_ADDRESS, &0x8000_0000_u32.to_le_bytes());
        assert_eq!(read32(&ports, PCI_ADDRESS), 0x8000_0000);
        assert_eq!(read32(&ports, PCI_DATA), 0x0008_1b36);
        let mut class = [0; 2];
        ports.write(PCI_ADDRESS, &0x8000_0008_u32.to_le_bytes());
        ports.read(PCI_DATA + 2, &mut class);
        assert_eq!(u16::from_le_bytes(class), 0x0600);
        for nothing in [0x8000_0800_u32, 0x8000_0100, 0x8001_0000, 0x0000_0000] {
            ports.write(PCI_ADDRESS, &nothing.to_le_bytes());
            assert_eq!(read32(&ports, PCI_DATA), u32::MAX, "{nothing:#x}");
        }
        ports.write(PCI_ADDRESS, &0x8000_0000_u32.to_le_bytes());
        assert_eq!(read32(&ports, PCI_DATA + 2), u32::MAX, "across the register");
    }

    #[test]
    fn what_a_guest_has_written_is_written_again() {
        let (one, ..) = ports();
        for (register, value) in [(3, 0x80), (0, 12), (1, 1), (3, 0x1b), (1, 1), (4, 8), (7, 0x5a)] {
            one.write(SERIAL + register, &[value]);
        }
        one.write(PCI_ADDRESS, &0x8000_1234_u32.to_le_bytes());
        let (other, ..) = ports();
        assert_ne!(other.save(), one.save());
        other.restore(one.save());
        assert_eq!(other.save(), one.save());
        assert_eq!(other.save().baud_divisor, [12, 1]);
    }
}
