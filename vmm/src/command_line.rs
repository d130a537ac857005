//! The guest kernel's command line: the one place where its parameters are chosen.

/// For every machine.
const ALWAYS: &[&str] = &[
    // PCI is found by configuration mechanism #1, without trying others.
    "pci=conf1",
    // A reboot goes through the keyboard controller's reset line at once: the VMM hears of it with the first byte.
    "reboot=k",
    // A panic does the same, without waiting.
    "panic=-1",
    // The boot processor's random numbers seed the generator: nothing waits for entropy.
    "random.trust_cpu=on",
    // The TSC is the host's, and the host watches it.
    "tsc=reliable",
    // One serial port, not four to probe.
    "8250.nr_uarts=1",
    // With one processor the kernel would take the lock prefixes out of its code, one by one: that costs more than it ever saves,
    // and as much again when a second processor comes.
    "noreplace-smp",
    // Interrupts are MSIs. To set an I/O APIC up for the one that is not, the serial port's, costs 600 exits; the PIC does for it.
    "noapic",
    // Containers may make dummy interfaces; none is there from the first.
    "dummy.numdummies=0",
    // The initramfs' only program.
    "rdinit=/init",
    "console=ttyS0",
];

/// With a console: everything, as early as possible.
const VERBOSE: &[&str] = &["earlyprintk=serial,ttyS0", "ignore_loglevel"];

/// Without: emergencies only, so that the end of a guest that dies says why. Each character costs two exits.
const QUIET: &[&str] = &["quiet", "loglevel=1"];

/// The command line, with or without the kernel's log on the serial console.
#[must_use]
pub fn command_line(console: bool) -> String {
    let more = if console { VERBOSE } else { QUIET };
    [ALWAYS, more].concat().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_a_console_still_reports_emergencies() {
        let line = command_line(false);
        assert!(line.contains("console=ttyS0") && line.contains("loglevel=1"));
        assert!(!line.contains("earlyprintk"));
    }
}
