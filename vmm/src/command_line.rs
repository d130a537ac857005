//! The guest kernel's command line: the one place where its parameters are chosen.

/// For every machine. What each saves is in `guest-kernel/README.md`.
const ALWAYS: &[&str] = &[
    // PCI is found by configuration mechanism #1, without trying others and without a scan for quirks before the real one.
    "pci=conf1,noearly",
    // A reboot goes through the keyboard controller's reset line at once, without waiting for the other CPUs: the VMM hears of
    // it with the first byte.
    "reboot=k,f",
    // A panic does the same, without waiting.
    "panic=-1",
    // The TSC is the host's, and the host watches it.
    "tsc=reliable",
    // One CPU boots; the agent brings the others online while the container is made. No pause for a real processor's sake then,
    // and no patching of the kernel for one CPU and back for several.
    "maxcpus=1",
    "cpu_init_udelay=0",
    "noreplace-smp",
    // Memory of each CPU that there may be comes in pages, not in pieces of 2 MiB.
    "percpu_alloc=page",
    // What is plugged is used, for anything.
    "memhp_default_state=online",
    // What is free goes back to the host in pieces of 256 KiB: the kernel reports none unless 32 of them are free beyond its own
    // reserve, and with the usual 2 MiB a small machine would keep all that it ever used.
    "page_reporting.page_reporting_order=6",
    // Mounts, cgroups and namespaces wait for grace periods: asking the few CPUs is quicker than waiting.
    "rcupdate.rcu_expedited=1",
    // A paused guest, or one that the host has no time for, is not stalled.
    "rcupdate.rcu_cpu_stall_suppress=1",
    // Virtio needs no bounce buffers.
    "swiotlb=noforce",
    // One serial port, not four to probe.
    "8250.nr_uarts=1",
    // There is no I/O APIC: interrupts are MSIs, but for the serial port's, which comes through the PIC. Without this the kernel
    // masks the PIC, and what programs write to the console stays in its buffer.
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
