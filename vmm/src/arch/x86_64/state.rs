//! What KVM keeps of a machine: the virtual CPU, the interrupt controllers, the clocks.
//!
//! Time goes on where it stood: KVM's clock and the time stamp counter are set to what they were, so that nothing in the guest
//! sees a clock go backwards or leap; only its wall clock has then to be set ([`wall_clock`]).

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_VCPU_TSC_CTRL,
    KVM_VCPU_TSC_OFFSET, Msrs, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_device_attr, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use sealock_protocol::control::GuestClock;
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::template::Mismatch;

mod request {
    use kvm_bindings::{KVMIO, kvm_device_attr};
    use vmm_sys_util::ioctl_iow_nr;

    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
}

const IA32_TSC: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// The most model specific registers of a state.
const MAX_REGISTERS: usize = 1024;

/// A virtual CPU between two instructions.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ProcessorState {
    /// What CPUID says: a CPU that says something else is another one.
    cpuid: Vec<kvm_cpuid_entry2>,
    /// The frequency of the time stamp counter, in kHz.
    tsc_khz: u32,
    tsc: u64,
    registers: kvm_regs,
    system: kvm_sregs,
    extended: kvm_xsave,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    events: kvm_vcpu_events,
    running: kvm_mp_state,
    /// All but the time stamp counter, the deadline of the local timer last: it counts from the others.
    model_specific: Vec<kvm_msr_entry>,
}

/// What all processors share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SystemState {
    /// Both PICs and the I/O APIC.
    controllers: [kvm_irqchip; 3],
    /// KVM's clock, in nanoseconds.
    clock: u64,
}

const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

impl ProcessorState {
    /// The state of `vcpu`, which does not run and was given `cpuid`. Registers that KVM doesn't let be written are left out: their
    /// values are KVM's own. `vcpu` is of no use afterwards.
    ///
    /// # Errors
    /// KVM refuses something.
    pub fn save(system: &Kvm, vcpu: &VcpuFd, cpuid: &CpuId) -> Result<Self, kvm_ioctls::Error> {
        let tsc = read_tsc(vcpu)?;
        // The state that others depend on is read before them, as KVM's documentation wants it.
        let running = vcpu.get_mp_state()?;
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: vcpu.get_tsc_khz()?,
            tsc,
            registers: vcpu.get_regs()?,
            system: vcpu.get_sregs()?,
            extended: vcpu.get_xsave()?,
            extended_control: vcpu.get_xcrs()?,
            debug: vcpu.get_debug_regs()?,
            local_apic: vcpu.get_lapic()?,
            events: vcpu.get_vcpu_events()?,
            running,
            model_specific: model_specific(system, vcpu)?,
        })
    }

    /// Whether a processor that was given `cpuid` is the one that this is the state of.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), Mismatch> {
        let frequency = vcpu.get_tsc_khz().map_err(refused("to tell its frequency"))?;
        if self.cpuid != cpuid.as_slice() {
            return Err(Mismatch::Other("CPU"));
        }
        if self.tsc_khz != frequency {
            return Err(Mismatch::Other(
                "CPU: its time stamp counter has another frequency",
            ));
        }
        Ok(())
    }

    /// Gives `vcpu` the state.
    ///
    /// # Errors
    /// KVM refuses something.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), Mismatch> {
        if self.model_specific.len() > MAX_REGISTERS {
            return Err(Mismatch::Damaged("it has too many registers"));
        }
        vcpu.set_mp_state(self.running)
            .map_err(refused("whether the CPU runs"))?;
        vcpu.set_sregs(&self.system)
            .map_err(refused("the system registers"))?;
        vcpu.set_regs(&self.registers).map_err(refused("the registers"))?;
        vcpu.set_xcrs(&self.extended_control)
            .map_err(refused("the extended control registers"))?;
        // SAFETY: without features that a program has to ask for, and this one asks for none, the state is as large as the
        // structure.
        unsafe { vcpu.set_xsave(&self.extended) }.map_err(refused("the extended state"))?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(refused("the debug registers"))?;
        vcpu.set_lapic(&self.local_apic)
            .map_err(refused("the local APIC"))?;
        set_tsc(vcpu, self.tsc)?;
        let registers = Msrs::from_entries(&self.model_specific)
            .map_err(|_| Mismatch::Damaged("it has too many registers"))?;
        let set = vcpu
            .set_msrs(&registers)
            .map_err(refused("the model specific registers"))?;
        if let Some(register) = self.model_specific.get(set) {
            return Err(
                refused(&format!("model specific register {:#x}", register.index))(kvm_ioctls::Error::new(
                    libc::EINVAL,
                )),
            );
        }
        vcpu.set_vcpu_events(&self.events)
            .map_err(refused("the pending events"))
    }
}

fn refused(what: &str) -> impl FnOnce(kvm_ioctls::Error) -> Mismatch {
    let what = what.to_owned();
    move |source| Mismatch::Kvm { what, source }
}

/// The registers that can be read and written back.
fn model_specific(system: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let known = system.get_msr_index_list()?;
    let mut entries = Vec::new();
    let mut deadline = None;
    for &index in known.as_slice() {
        let Some(entry) = read_register(vcpu, index) else {
            continue;
        };
        match index {
            IA32_TSC => {}
            IA32_TSC_DEADLINE => deadline = Some(entry),
            _ if write_register(vcpu, entry) => entries.push(entry),
            _ => {}
        }
    }
    entries.extend(deadline);
    Ok(entries)
}

fn read_register(vcpu: &VcpuFd, index: u32) -> Option<kvm_msr_entry> {
    let entry = kvm_msr_entry {
        index,
        ..Default::default()
    };
    let mut one = Msrs::from_entries(&[entry]).ok()?;
    (vcpu.get_msrs(&mut one).ok()? == 1).then(|| one.as_slice()[0])
}

fn write_register(vcpu: &VcpuFd, entry: kvm_msr_entry) -> bool {
    Msrs::from_entries(&[entry]).is_ok_and(|one| vcpu.set_msrs(&one) == Ok(1))
}

fn read_tsc(vcpu: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    read_register(vcpu, IA32_TSC)
        .map(|entry| entry.data)
        .ok_or_else(|| kvm_ioctls::Error::new(libc::EIO))
}

/// Has the counter go on from `tsc`.
fn set_tsc(vcpu: &VcpuFd, tsc: u64) -> Result<(), Mismatch> {
    // By its distance to the host's counter, which is exact. A value that is written may be taken for an attempt to set it to
    // what it is already, when the machine is young.
    // SAFETY: every processor that KVM runs on has the instruction.
    let offset = tsc.wrapping_sub(unsafe { std::arch::x86_64::_rdtsc() });
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw const offset) as u64,
        flags: 0,
    };
    // SAFETY: KVM reads eight bytes at `addr`, where they are during the call.
    if unsafe { ioctl_with_ref(vcpu, request::KVM_SET_DEVICE_ATTR(), &attribute) } == 0 {
        return Ok(());
    }
    // Before Linux 5.16.
    let entry = kvm_msr_entry {
        index: IA32_TSC,
        data: tsc,
        ..Default::default()
    };
    let now = write_register(vcpu, entry).then(|| read_tsc(vcpu).ok()).flatten();
    match now {
        Some(now) if now >= tsc => Ok(()),
        _ => Err(refused("the time stamp counter")(kvm_ioctls::Error::new(
            libc::EINVAL,
        ))),
    }
}

impl SystemState {
    /// The state of `vm`, none of whose vCPUs runs.
    ///
    /// # Errors
    /// KVM refuses something.
    pub fn save(vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        let mut controllers = [kvm_irqchip::default(); 3];
        for (controller, chip_id) in controllers.iter_mut().zip(CONTROLLERS) {
            controller.chip_id = chip_id;
            vm.get_irqchip(controller)?;
        }
        Ok(Self {
            controllers,
            clock: vm.get_clock()?.clock,
        })
    }

    /// Gives `vm` the state of the interrupt controllers.
    ///
    /// # Errors
    /// KVM refuses it.
    pub fn restore(&self, vm: &VmFd) -> Result<(), Mismatch> {
        for (controller, chip_id) in self.controllers.iter().zip(CONTROLLERS) {
            if controller.chip_id != chip_id {
                return Err(Mismatch::Damaged("its interrupt controllers are none"));
            }
            vm.set_irqchip(controller)
                .map_err(refused("an interrupt controller"))?;
        }
        Ok(())
    }

    /// Has KVM's clock go on, and tells the guest that it stood still, so that it takes no watchdog's word for it. To be called
    /// last: `vcpu` has its state.
    ///
    /// # Errors
    /// KVM refuses it.
    pub fn resume_clock(&self, vm: &VmFd, vcpu: &VcpuFd) -> Result<(), Mismatch> {
        let clock = kvm_clock_data {
            clock: self.clock,
            ..Default::default()
        };
        vm.set_clock(&clock).map_err(refused("the clock"))?;
        match vcpu.kvmclock_ctrl() {
            Ok(()) => Ok(()),
            // The guest doesn't use it.
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            Err(error) => Err(refused("the clock")(error)),
        }
    }
}

/// How often a pair of clock readings is tried: the tightest one counts.
const ATTEMPTS: usize = 5;

/// A moment by two clocks: the guest's time stamp counter and the host's wall clock. By it the guest can tell the time at any
/// later moment, however long the word takes to reach it. `None` where KVM doesn't tell.
#[must_use]
pub fn wall_clock(vcpu: &VcpuFd) -> Option<GuestClock> {
    let khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0)?;
    let mut best: Option<(u64, GuestClock)> = None;
    for _ in 0..ATTEMPTS {
        let before = realtime_ns();
        let tsc = read_tsc(vcpu).ok()?;
        let took = realtime_ns().checked_sub(before)?;
        if best.as_ref().is_none_or(|(least, _)| took < *least) {
            let clock = GuestClock {
                tsc,
                tsc_khz: khz,
                realtime_ns: before + took / 2,
            };
            best = Some((took, clock));
        }
    }
    best.map(|(_, clock)| clock)
}

fn realtime_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
