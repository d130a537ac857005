//! A machine: made of descriptors, in the order in which its parts need each other.

use std::{
    fs::File,
    io,
    os::fd::{IntoRawFd, OwnedFd},
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use sealock_protocol::{
    control::{Event, ExitReason, MachineConfig, NetConfig, Start, memory_step_mib},
    timeline::Mark,
};
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    arch::x86_64::{
        boot, cpuid,
        kernel::{self, Kernel},
        layout,
        ports::{PCI_ADDRESS, Ports, SERIAL_INTERRUPT},
        registers,
        state::{ProcessorState, SystemState, wall_clock},
    },
    chain,
    coalesced::CoalescedWrites,
    command_line::command_line,
    console::Console,
    control::{Sockets, Template},
    ending::Ending,
    event_loop::EventLoops,
    initramfs::{self, Initramfs},
    mem::Growth,
    memory, net,
    pci::{
        bridge::HostBridge,
        bus::{self, Bus},
        routing::KvmMessenger,
    },
    pvpanic::Pvpanic,
    template::{
        self, Mismatch, NotAtRest, codec,
        state::{MachineState, Shape},
    },
    thread::Thread,
    vcpu::{Surroundings, Vcpus},
    virtio::{
        device::{Memory, VirtioDevice},
        pci::{Doorbells, VirtioPci, Wiring},
    },
};

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The number of virtual CPUs.
    #[error("vcpus = {given} of max_vcpus = {most} is not possible: 1 to {max} are")]
    Vcpus {
        /// What was configured.
        given: u8,
        /// What was configured for later.
        most: u8,
        /// What the guest kernel and the host's KVM allow.
        max: u8,
    },
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// There is no more of something.
    #[error("the machine has at most {vcpus} virtual CPUs and {memory_mib} MiB of memory")]
    Most {
        /// Virtual CPUs.
        vcpus: u8,
        /// Memory in MiB.
        memory_mib: u32,
    },
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
    /// A network device's configuration, or its tap.
    #[error("cannot make network device {}", mac_name(mac))]
    Net {
        /// Its hardware address.
        mac: [u8; 6],
        /// Why not.
        #[source]
        source: net::Error,
    },
    /// The machine can't be saved now.
    #[error(transparent)]
    NotAtRest(#[from] NotAtRest),
    /// Two network devices that nothing tells apart.
    #[error("there is a network device {} already", mac_name(.0))]
    SameNet([u8; 6]),
}

fn mac_name(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
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
            | Self::Boot(boot::Error::MemoryTooSmall { .. })
            | Self::Bus(_)
            | Self::Net { .. }
            | Self::SameNet(_) => ExitReason::Config,
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

/// Makes the virtio devices of a machine that can grow by so much, in the order of their slots.
pub type MakeDevices<'a> = &'a dyn Fn(Option<Growth>) -> io::Result<Vec<Box<dyn VirtioDevice>>>;

/// What a machine is made of.
pub struct Parts<'a> {
    /// The shim's configuration.
    pub config: MachineConfig,
    /// Where its memory is to be.
    pub plan: memory::Plan,
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The kernel's ELF image.
    pub kernel: File,
    /// The cpio archive.
    pub initramfs: File,
    /// What to restore it from.
    pub template: Option<Template>,
    /// Makes the devices; twice if it can't be restored.
    pub devices: MakeDevices<'a>,
    /// The network devices, which come after them.
    pub nets: Vec<(NetConfig, Vec<OwnedFd>)>,
    /// Where the serial port writes.
    pub console: Console,
    /// To be told when the guest ends.
    pub ending: Ending,
}

/// A machine that is ready to run.
pub struct Machine {
    first: VcpuFd,
    factory: VcpuFactory,
    system: Arc<Kvm>,
    config: MachineConfig,
    growth: Option<Growth>,
    surroundings: Arc<Surroundings>,
    backplane: Backplane,
    began: Start,
}

impl Machine {
    /// Makes a machine: restores it from its template or, where there is none or it is of no use, loads its kernel. Adds the steps
    /// to `marks`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(mut parts: Parts<'_>, marks: &mut Vec<Mark>) -> Result<Self, Error> {
        let kvm = parts.kvm.try_clone().map_err(host("duplicate a descriptor"))?;
        let system = Arc::new(system(kvm)?);
        let config = &parts.config;
        let most = u8::try_from(system.get_max_vcpus())
            .unwrap_or(u8::MAX)
            .min(layout::MAX_VCPUS);
        if config.vcpus == 0 || config.vcpus > config.max_vcpus || config.max_vcpus > most {
            return Err(Error::Vcpus {
                given: config.vcpus,
                most: config.max_vcpus,
                max: most,
            });
        }
        let mut instead = String::new();
        if let Some(template) = parts.template.take() {
            match Self::restore(&system, &parts, &template)? {
                Ok(mut machine) => {
                    machine.resume(&mut parts)?;
                    marks.push(Mark::now("vmm_restored"));
                    return Ok(machine);
                }
                Err(mismatch) => instead = chain(&mismatch),
            }
        }
        let mut machine = Self::boot(&system, parts, marks)?;
        machine.began = Start::Booted { instead };
        Ok(machine)
    }

    /// Makes a machine and loads its kernel.
    fn boot(system: &Arc<Kvm>, parts: Parts<'_>, marks: &mut Vec<Mark>) -> Result<Self, Error> {
        let Parts {
            config,
            plan,
            nets,
            console,
            ending,
            ..
        } = parts;
        // Before anything costs time, what may be wrong with them is found.
        let kernel = Kernel::new(parts.kernel)?;
        let initramfs = Initramfs::new(parts.initramfs)?;

        let memory = memory::allocate(&plan)?;
        marks.push(Mark::now("vmm_memory"));
        // Copying the kernel takes as long as everything else together, so both happen at once.
        let (loaded, machine) = thread::scope(|scope| {
            let loader = thread::Builder::new()
                .name("loader".to_owned())
                .spawn_scoped(scope, || {
                    let line = command_line(config.console);
                    let entry = boot::load(&memory, &plan.ram, config.max_vcpus, kernel, initramfs, &line)?;
                    Ok::<_, boot::Error>((entry, Mark::now("vmm_kernel_loaded")))
                })
                .map_err(host("start the thread that loads the kernel"))?;
            let assemble = || {
                let mut machine = Self::assemble(
                    system,
                    config.clone(),
                    &plan,
                    memory.clone(),
                    parts.devices,
                    console,
                    ending,
                )?;
                for (net, descriptors) in nets {
                    machine.backplane.attach_net(&net, descriptors)?;
                }
                Ok(machine)
            };
            let machine: Result<_, Error> = assemble();
            let loaded = loader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Error>((loaded, machine))
        })?;
        let (entry, mark) = loaded?;
        marks.push(mark);
        let machine = machine?;
        registers::boot_processor(&machine.first, entry)
            .map_err(kvm("set the registers of virtual CPU 0"))?;
        Ok(machine)
    }

    /// Makes a machine from a template, up to the point where something of it would begin to work.
    ///
    /// # Errors
    /// The inner one is the template's, the outer one would stand in the way of booting, too.
    fn restore(
        system: &Arc<Kvm>,
        parts: &Parts<'_>,
        template: &Template,
    ) -> Result<Result<Self, Mismatch>, Error> {
        let state = match codec::read(&template.state) {
            Ok(state) if state.shape == shape(&parts.config) => state,
            Ok(_) => return Ok(Err(Mismatch::Other("size of machine"))),
            Err(mismatch) => return Ok(Err(mismatch)),
        };
        let memory = memory::allocate(&parts.plan)?;
        let mapped = template::memory::map(&memory, parts.plan.ram.len(), &template.memory, &state.extents);
        if let Err(mismatch) = mapped {
            return Ok(Err(mismatch));
        }
        let machine = Self::assemble(
            system,
            parts.config.clone(),
            &parts.plan,
            memory,
            parts.devices,
            parts.console.clone(),
            parts.ending.clone(),
        )?;
        let give_back = || {
            let cpuid = machine.factory.cpuid(0).ok_or(Mismatch::Other("CPU"))?;
            state.processor.check(&machine.first, &cpuid)?;
            state.system.restore(&machine.factory.vm)?;
            state.processor.restore(&machine.first)?;
            machine.surroundings.ports.restore(state.ports);
            machine.backplane.pci.restore(&state.functions)?;
            state.system.resume_clock(&machine.factory.vm, &machine.first)
        };
        Ok(give_back().map(|()| machine))
    }

    /// Has the devices of a restored machine go on, and gives it its network.
    fn resume(&mut self, parts: &mut Parts<'_>) -> Result<(), Error> {
        self.backplane
            .pci
            .resume()
            .map_err(host("go on with the devices"))?;
        template::memory::warm(
            &self.backplane.wiring.memory,
            parts.plan.ram.len(),
            &self.first,
            &parts.config.working_set,
        );
        for (net, descriptors) in parts.nets.drain(..) {
            self.backplane.attach_net(&net, descriptors)?;
        }
        self.began = Start::Restored {
            clock: wall_clock(&self.first),
        };
        Ok(())
    }

    /// Everything but what is in the memory and the boot processor's registers.
    fn assemble(
        system: &Arc<Kvm>,
        config: MachineConfig,
        plan: &memory::Plan,
        memory: Memory,
        devices: MakeDevices<'_>,
        console: Console,
        ending: Ending,
    ) -> Result<Self, Error> {
        let growth = plan
            .growth
            .map(|(start, length)| Growth::new(start, length as u64));
        let vm = Arc::new(system.create_vm().map_err(kvm("create a virtual machine"))?);
        memory::give(&vm, &memory)?;
        prepare_interrupts(&vm)?;
        let pci = Arc::new(Bus::default());
        pci.attach(|_| Ok::<_, Error>(HostBridge::default()))?;
        pci.attach(|slot| Ok::<_, Error>(Pvpanic::new(slot, ending.clone())))?;
        let backplane = Backplane {
            pci: pci.clone(),
            wiring: Wiring {
                memory,
                loops: Arc::new(EventLoops::new(ending.clone())),
                messenger: Arc::new(KvmMessenger::new(vm.clone())),
                doorbells: Arc::new(KvmDoorbells(vm.clone())),
            },
            nets: Vec::new(),
        };
        for device in devices(growth.clone()).map_err(host("make the devices"))? {
            backplane.attach(device)?;
        }
        let serial = EventFd::new(EFD_NONBLOCK).map_err(host("make an eventfd"))?;
        vm.register_irqfd(&serial, SERIAL_INTERRUPT.into())
            .map_err(kvm("connect the serial port's interrupt"))?;
        let supported = system
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("ask what KVM offers of the processor"))?;
        let factory = VcpuFactory {
            vm,
            supported,
            most: config.max_vcpus,
        };
        let first = factory.make(0)?;
        let coalesced = coalesce(system, &factory.vm, &first)?;
        Ok(Self {
            first,
            factory,
            system: system.clone(),
            config,
            growth,
            surroundings: Arc::new(Surroundings {
                coalesced,
                ports: Ports::new(serial, console, pci.clone(), ending.clone()),
                pci,
                ending,
                pausing: AtomicBool::new(false),
            }),
            backplane,
            began: Start::Booted {
                instead: String::new(),
            },
        })
    }

    /// How it begins.
    #[must_use]
    pub fn began(&self) -> &Start {
        &self.began
    }

    /// Runs the machine.
    ///
    /// # Errors
    /// The host has no threads left, or KVM refuses a virtual CPU.
    pub fn start(self) -> Result<RunningMachine, Error> {
        self.backplane
            .wiring
            .loops
            .start()
            .map_err(host("start the devices' event loop"))?;
        let surroundings = self.surroundings;
        let mut vcpus = Vcpus::new(surroundings.clone()).map_err(host("catch a signal"))?;
        vcpus.add(self.first).map_err(host("start virtual CPU 0"))?;
        // The first threads began with all that this one could: so they have one filter each, not two. Nothing of the guest's has
        // run before this one has its own.
        Thread::Main.confine();
        vcpus.release();
        let mut machine = RunningMachine {
            vcpus,
            factory: self.factory,
            system: self.system,
            shape: shape(&self.config),
            surroundings,
            growth: self.growth,
            backplane: self.backplane,
        };
        // While the guest boots on the first.
        machine.add_vcpus(self.config.vcpus)?;
        Ok(machine)
    }
}

/// What a guest knows of a machine from its start on.
fn shape(config: &MachineConfig) -> Shape {
    Shape {
        memory_mib: config.memory_mib,
        max_memory_mib: config.max_memory_mib,
        max_vcpus: config.max_vcpus,
        console: config.console,
    }
}

/// Makes virtual CPUs.
struct VcpuFactory {
    vm: Arc<VmFd>,
    /// What KVM offers of the processor.
    supported: CpuId,
    /// How many there will be at most, which is what the guest is told.
    most: u8,
}

impl VcpuFactory {
    /// What CPUID says on the processor `id`; `None` when that is too much.
    fn cpuid(&self, id: u8) -> Option<CpuId> {
        cpuid::for_processor(&self.supported, id, self.most)
    }

    fn make(&self, id: u8) -> Result<VcpuFd, Error> {
        let vcpu = self
            .vm
            .create_vcpu(id.into())
            .map_err(kvm("create a virtual CPU"))?;
        let leaves = self.cpuid(id).ok_or(Error::Cpuid)?;
        vcpu.set_cpuid2(&leaves)
            .map_err(kvm("set a virtual CPU's CPUID"))?;
        registers::model_specific(&vcpu).map_err(kvm("set a virtual CPU's model specific registers"))?;
        // KVM looks for the receivers of interrupts when a local APIC changes, but not when there is one more: until then the
        // guest's call to a processor that is added while it runs reaches nobody.
        vcpu.get_lapic()
            .and_then(|lapic| vcpu.set_lapic(&lapic))
            .map_err(kvm("set a virtual CPU's local APIC"))?;
        Ok(vcpu)
    }
}

/// A machine whose virtual CPUs run.
pub struct RunningMachine {
    vcpus: Vcpus,
    factory: VcpuFactory,
    system: Arc<Kvm>,
    shape: Shape,
    surroundings: Arc<Surroundings>,
    growth: Option<Growth>,
    /// With the memory, which is mapped as long as they run.
    backplane: Backplane,
}

impl RunningMachine {
    fn add_vcpus(&mut self, count: u8) -> Result<(), Error> {
        let there = u8::try_from(self.vcpus.count()).unwrap_or(u8::MAX);
        for id in there..count {
            let vcpu = self.factory.make(id)?;
            self.vcpus.add(vcpu).map_err(host("start a virtual CPU"))?;
        }
        Ok(())
    }

    fn save_into(&mut self, files: Template) -> Result<(), Error> {
        let vcpus = self.vcpus.pause();
        let [vcpu] = &vcpus[..] else {
            return Err(NotAtRest(format!("it has {} virtual CPUs", vcpus.len())).into());
        };
        if !self.backplane.nets.is_empty() {
            return Err(NotAtRest("it has a network".to_owned()).into());
        }
        let functions = self.backplane.pci.save()?;
        let cpuid = self.factory.cpuid(0).ok_or(Error::Cpuid)?;
        let system = SystemState::save(&self.factory.vm)
            .map_err(kvm("read the interrupt controllers and the clock"))?;
        let processor = ProcessorState::save(&self.system, vcpu, &cpuid)
            .map_err(kvm("read the state of the virtual CPU"))?;
        let regions = self.backplane.wiring.memory.num_regions() - usize::from(self.growth.is_some());
        let extents = template::memory::save(&self.backplane.wiring.memory, regions, &files.memory)
            .map_err(host("write the memory"))?;
        let state = MachineState {
            shape: self.shape,
            extents,
            processor,
            system,
            ports: self.surroundings.ports.save(),
            functions,
        };
        let mut file = files.state;
        codec::write(&mut file, &state).map_err(host("write the state"))
    }

    /// Stops the vCPUs after the machine's [`Ending`] has been told. The process is to end next.
    pub fn stop(self, patience: std::time::Duration) {
        self.vcpus.stop(patience);
        // Should a vCPU not have stopped in time, it still needs its memory; and devices needn't be stopped one by one.
        std::mem::forget(self.backplane);
    }
}

impl Sockets for RunningMachine {
    fn add_net(&mut self, config: &NetConfig, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        self.backplane
            .attach_net(config, descriptors)
            .map_err(|error| crate::chain(&error))
    }

    fn remove_net(&mut self, mac: [u8; 6]) -> Result<(), String> {
        self.backplane.detach_net(mac)
    }

    fn save(&mut self, files: Template) -> Result<(), String> {
        self.save_into(files).map_err(|error| chain(&error))
    }

    /// What there is more of stays; as much as there can be of either is done, and told.
    fn resize(&mut self, vcpus: u8, memory_mib: u32) -> Event {
        let most = self.factory.most;
        let added = self.add_vcpus(vcpus.min(most));
        let step = memory_step_mib(self.shape.memory_mib);
        let wanted = memory_mib
            .saturating_sub(self.shape.memory_mib)
            .div_ceil(step)
            .saturating_mul(step);
        let granted = self
            .growth
            .as_ref()
            .map_or(0, |growth| growth.request(u64::from(wanted) << 20));
        let granted = u32::try_from(granted >> 20).unwrap_or(u32::MAX);
        let memory = self.shape.memory_mib.saturating_add(granted);
        let error = match added {
            Err(error) => chain(&error),
            Ok(()) if vcpus > most || memory_mib > memory => chain(&Error::Most {
                vcpus: most,
                memory_mib: memory,
            }),
            Ok(()) => String::new(),
        };
        Event::Resized {
            vcpus: u8::try_from(self.vcpus.count()).unwrap_or(u8::MAX),
            memory_mib: memory,
            error,
        }
    }
}

/// The bus with what its functions are connected to.
struct Backplane {
    pci: Arc<Bus>,
    wiring: Wiring,
    /// The hardware address and the slot of each network device.
    nets: Vec<([u8; 6], u8)>,
}

impl Backplane {
    fn attach(&self, device: Box<dyn VirtioDevice>) -> Result<u8, Error> {
        self.pci.attach(|slot| {
            VirtioPci::new(slot, device, &self.wiring)
                .map_err(host("connect a device's queues to its notifications"))
        })
    }

    fn attach_net(&mut self, config: &NetConfig, descriptors: Vec<OwnedFd>) -> Result<(), Error> {
        let mac = config.mac;
        if self.nets.iter().any(|(other, _)| *other == mac) {
            return Err(Error::SameNet(mac));
        }
        let device = net::Net::new(config, descriptors).map_err(|source| Error::Net { mac, source })?;
        let slot = self.attach(Box::new(device))?;
        self.nets.push((mac, slot));
        Ok(())
    }

    fn detach_net(&mut self, mac: [u8; 6]) -> Result<(), String> {
        let place = self.nets.iter().position(|(other, _)| *other == mac);
        let place = place.ok_or_else(|| format!("there is no network device {}", mac_name(&mac)))?;
        let (_, slot) = self.nets.swap_remove(place);
        self.pci.detach(slot);
        Ok(())
    }
}

/// KVM's ioeventfds.
struct KvmDoorbells(Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn connect(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.register_ioevent(kick, &address, NoDatamatch)?)
    }

    fn disconnect(&self, address: u64, kick: &EventFd) {
        // Fails only for what isn't connected.
        let _ = self
            .0
            .unregister_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch);
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
