//! A machine: made of descriptors, in the order in which its parts need each other.

use std::{
    fs::File,
    io,
    os::fd::{IntoRawFd, OwnedFd},
    sync::Arc,
    thread,
};

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use sealock_protocol::{
    control::{ExitReason, MachineConfig},
    timeline::Mark,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    arch::x86_64::{
        boot, cpuid,
        kernel::{self, Kernel},
        layout,
        ports::{PCI_ADDRESS, Ports, SERIAL_INTERRUPT},
        registers,
    },
    coalesced::CoalescedWrites,
    command_line::command_line,
    console::Console,
    ending::Ending,
    event_loop::EventLoops,
    initramfs::{self, Initramfs},
    memory,
    pci::{
        bridge::HostBridge,
        bus::{self, Bus},
        msix::{KvmMessenger, Messenger},
    },
    pvpanic::Pvpanic,
    vcpu::{Surroundings, Vcpus},
    virtio::{
        device::{Memory, VirtioDevice},
        pci::VirtioPci,
    },
};

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The number of virtual CPUs.
    #[error("vcpus = {given} is not possible: 1 to {max} are")]
    Vcpus {
        /// What was configured.
        given: u8,
        /// What the guest kernel and the host's KVM allow.
        max: u8,
    },
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The guest kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] initramfs::Error),
    /// What the guest finds in its memory.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The descriptor isn't KVM, or a KVM of another kind.
    #[error("the host's /dev/kvm speaks version {0} of the interface instead of {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// KVM lacks something.
    #[error("the host's KVM lacks {0}: Linux 5.10 or later on x86-64 has it")]
    Capability(&'static str),
    /// KVM refuses something.
    #[error("cannot {what}")]
    Kvm {
        /// What was being done.
        what: &'static str,
        /// Why not.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The host refuses something.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// CPUID has more leaves than KVM takes.
    #[error("the processor's CPUID has too many leaves")]
    Cpuid,
    /// There are more devices than slots.
    #[error(transparent)]
    Bus(#[from] bus::Full),
}

impl Error {
    /// Whose fault it is: the configuration's or the host's.
    #[must_use]
    pub fn reason(&self) -> ExitReason {
        match self {
            Self::Vcpus { .. }
            | Self::Memory(memory::Error::Amount(_))
            | Self::Kernel(kernel::Error::NotElf(_))
            | Self::Initramfs(initramfs::Error::NotCpio(_))
            | Self::Boot(boot::Error::MemoryTooSmall { .. }) => ExitReason::Config,
            _ => ExitReason::Host,
        }
    }
}

/// Says what was being done when KVM refused it.
fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { what, source }
}

/// Says what was being done when the host refused it.
fn host(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// What KVM must be able to do, and how it is called.
const CAPABILITIES: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::CoalescedMmio, "KVM_CAP_COALESCED_MMIO"),
    (Cap::CoalescedPio, "KVM_CAP_COALESCED_PIO"),
];

/// What a machine is made of.
pub struct Parts {
    /// The shim's configuration.
    pub config: MachineConfig,
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The kernel's ELF image.
    pub kernel: File,
    /// The cpio archive.
    pub initramfs: File,
    /// The virtio devices, in the order of their slots.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Where the serial port writes.
    pub console: Console,
    /// To be told when the guest ends.
    pub ending: Ending,
}

/// A machine that is ready to run.
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    surroundings: Arc<Surroundings>,
    loops: Arc<EventLoops>,
    memory: Memory,
}

impl Machine {
    /// Makes a machine and loads its kernel. Adds the steps to `marks`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(parts: Parts, marks: &mut Vec<Mark>) -> Result<Self, Error> {
        let Parts { config, ending, .. } = parts;
        let kvm_system = system(parts.kvm)?;
        let most = u8::try_from(kvm_system.get_max_vcpus())
            .unwrap_or(u8::MAX)
            .min(layout::MAX_VCPUS);
        if config.vcpus == 0 || config.vcpus > most {
            return Err(Error::Vcpus {
                given: config.vcpus,
                max: most,
            });
        }
        // Before anything costs time, what may be wrong with them is found.
        let kernel = Kernel::new(parts.kernel)?;
        let initramfs = Initramfs::new(parts.initramfs)?;

        let memory = memory::allocate(config.memory_mib)?;
        marks.push(Mark::now("vmm_memory"));
        // Copying the kernel takes as long as everything else together, so both happen at once.
        let (loaded, machine) = thread::scope(|scope| {
            let loader = thread::Builder::new()
                .name("loader".to_owned())
                .spawn_scoped(scope, || {
                    let line = command_line(config.console);
                    let entry = boot::load(&memory, config.vcpus, kernel, initramfs, &line)?;
                    Ok::<_, boot::Error>((entry, Mark::now("vmm_kernel_loaded")))
                })
                .map_err(host("start the thread that loads the kernel"))?;
            let machine = Self::assemble(
                &kvm_system,
                &config,
                memory.clone(),
                parts.devices,
                parts.console,
                ending,
            );
            let loaded = loader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Error>((loaded, machine))
        })?;
        let (entry, mark) = loaded?;
        marks.push(mark);
        let machine = machine?;
        if let Some(first) = machine.vcpus.first() {
            registers::boot_processor(first, entry).map_err(kvm("set the registers of virtual CPU 0"))?;
        }
        Ok(machine)
    }

    /// Everything but what is in the memory and the boot processor's registers.
    fn assemble(
        system: &Kvm,
        config: &MachineConfig,
        memory: Memory,
        devices: Vec<Box<dyn VirtioDevice>>,
        console: Console,
        ending: Ending,
    ) -> Result<Self, Error> {
        let vm = Arc::new(system.create_vm().map_err(kvm("create a virtual machine"))?);
        memory::give(&vm, &memory)?;
        prepare_interrupts(&vm)?;
        let loops = Arc::new(EventLoops::new(ending.clone()));
        let pci = Arc::new(Bus::default());
        pci.attach(|_| Ok::<_, Error>(HostBridge::default()))?;
        pci.attach(|slot| Ok::<_, Error>(Pvpanic::new(slot, ending.clone())))?;
        let messenger: Arc<dyn Messenger> = Arc::new(KvmMessenger(vm.clone()));
        for device in devices {
            attach(&pci, &vm, device, &memory, &loops, &messenger)?;
        }
        let serial = EventFd::new(EFD_NONBLOCK).map_err(host("make an eventfd"))?;
        vm.register_irqfd(&serial, SERIAL_INTERRUPT.into())
            .map_err(kvm("connect the serial port's interrupt"))?;
        let supported = system
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("ask what KVM offers of the processor"))?;
        let vcpus: Vec<_> = (0..config.vcpus)
            .map(|id| vcpu(&vm, id, config.vcpus, &supported))
            .collect::<Result<_, Error>>()?;
        // There is at least one.
        let coalesced = coalesce(system, &vm, &vcpus[0])?;
        Ok(Self {
            vcpus,
            surroundings: Arc::new(Surroundings {
                coalesced,
                ports: Ports::new(serial, console, pci.clone(), ending.clone()),
                pci,
                ending,
            }),
            loops,
            memory,
        })
    }

    /// Runs the machine.
    ///
    /// # Errors
    /// The host has no threads left.
    pub fn start(self) -> Result<RunningMachine, Error> {
        self.loops
            .start()
            .map_err(host("start the devices' event loop"))?;
        let vcpus = Vcpus::start(self.vcpus, &self.surroundings).map_err(host("start the virtual CPUs"))?;
        Ok(RunningMachine {
            vcpus,
            _memory: self.memory,
        })
    }
}

/// A machine whose virtual CPUs run.
pub struct RunningMachine {
    vcpus: Vcpus,
    /// Mapped as long as they do.
    _memory: Memory,
}

impl RunningMachine {
    /// Stops the vCPUs after the machine's [`Ending`] has been told. The process is to end next.
    pub fn stop(self, patience: std::time::Duration) {
        self.vcpus.stop(patience);
        // Should a vCPU not have stopped in time, it still needs its memory.
        std::mem::forget(self._memory);
    }
}

fn system(descriptor: OwnedFd) -> Result<Kvm, Error> {
    // SAFETY: the descriptor is ours alone, and the `Kvm` becomes its owner.
    let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(descriptor.into_raw_fd()) };
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(Error::ApiVersion(version));
    }
    match CAPABILITIES
        .iter()
        .find(|(capability, _)| !kvm.check_extension(*capability))
    {
        Some((_, name)) => Err(Error::Capability(name)),
        None => Ok(kvm),
    }
}

/// The interrupt controllers live in KVM. There is no interval timer: the guest has its local timers and KVM's clock.
fn prepare_interrupts(vm: &VmFd) -> Result<(), Error> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm("place KVM's identity map"))?;
    // Below 4 GiB.
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(kvm("place KVM's task state"))?;
    vm.create_irq_chip()
        .map_err(kvm("create the interrupt controllers"))
}

/// Lets writes to PCI's address register wait for the access to its data register. The ring belongs to the machine and is
/// mapped from any of its vCPUs.
fn coalesce(system: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> Result<CoalescedWrites, Error> {
    vm.register_coalesced_mmio(IoEventAddress::Pio(PCI_ADDRESS.into()), 4)
        .map_err(kvm("coalesce writes to PCI's address register"))?;
    let page = u32::try_from(system.check_extension_int(Cap::CoalescedMmio)).unwrap_or(0);
    CoalescedWrites::new(vcpu, page).map_err(host("map the ring of coalesced writes"))
}

fn attach(
    pci: &Bus,
    vm: &VmFd,
    device: Box<dyn VirtioDevice>,
    memory: &Memory,
    loops: &Arc<EventLoops>,
    messenger: &Arc<dyn Messenger>,
) -> Result<(), Error> {
    pci.attach(|slot| {
        let function = VirtioPci::new(slot, device, memory.clone(), loops.clone(), messenger.clone())
            .map_err(host("make a device's eventfds"))?;
        for (address, kick) in function.notifications() {
            vm.register_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch)
                .map_err(kvm("watch a queue's notifications"))?;
        }
        Ok(function)
    })
}

fn vcpu(vm: &VmFd, id: u8, count: u8, supported: &CpuId) -> Result<VcpuFd, Error> {
    let vcpu = vm.create_vcpu(id.into()).map_err(kvm("create a virtual CPU"))?;
    let leaves = cpuid::for_processor(supported, id, count).ok_or(Error::Cpuid)?;
    vcpu.set_cpuid2(&leaves)
        .map_err(kvm("set a virtual CPU's CPUID"))?;
    registers::model_specific(&vcpu).map_err(kvm("set a virtual CPU's model specific registers"))?;
    Ok(vcpu)
}
