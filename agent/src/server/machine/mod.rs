//! The guest's machine while it grows: CPUs are brought online, memory is asked for before it runs out.
//!
//! | module | what |
//! |---|---|
//! | [`processors`] | CPUs |
//! | [`bounds`] | the kernel's own, which it derives from the memory at boot |
//! | [`governor`] | when to ask for memory, what containers may use until it is there, and who has to go when there is no more |
//! | [`figures`] | what the kernel says of its memory |
//! | [`watch`] | how it says that something has changed |

mod bounds;
mod figures;
mod governor;
mod processors;
mod watch;

use std::time::{Duration, Instant};

use sealock_protocol::agent::CreateSandboxRequest;
use tokio::{sync::watch as channel, task::spawn_blocking, time::timeout};

use self::{figures::Total, governor::Governor, watch::Watch};
use super::{error::Error, network::spread_queues};
use crate::init::log;

/// How long memory may take to come online after the host has offered it.
const ONLINE_DEADLINE: Duration = Duration::from_secs(5);

/// What the machine has, wants and uses.
#[derive(Debug)]
struct Memory {
    /// What the host offers, in MiB of its own count.
    offered: channel::Sender<u32>,
    /// What the guest wants, in the same.
    wanted: channel::Sender<u32>,
    /// What is online, of what the host offers.
    online: channel::Sender<u32>,
}

/// The guest's machine.
#[derive(Debug)]
pub struct Machine {
    memory: Memory,
    /// Whether the CPUs of the start are online, or why not.
    processors: channel::Sender<Option<Result<(), String>>>,
}

impl Machine {
    /// As it has booted.
    pub fn new() -> Self {
        Self {
            memory: Memory {
                offered: channel::Sender::new(0),
                wanted: channel::Sender::new(0),
                online: channel::Sender::new(0),
            },
            processors: channel::Sender::new(Some(Ok(()))),
        }
    }

    /// Begins to bring CPUs online and to watch over the memory, before there is a container.
    ///
    /// # Errors
    /// The kernel doesn't say what there is.
    pub fn set_up(&self, request: &CreateSandboxRequest) -> Result<(), Error> {
        let vcpus = request.vcpus;
        if vcpus > 1 {
            let done = self.processors.clone();
            done.send_replace(None);
            tokio::spawn(async move {
                let online = bring_online(vcpus).await;
                done.send_replace(Some(online.map_err(|error| error.to_string())));
            });
        }
        let now = request.memory_mib;
        self.memory.offered.send_replace(now);
        self.memory.wanted.send_replace(now);
        self.memory.online.send_replace(now);
        bounds::keep_few_pages_per_cpu();
        let most = request.max_memory_mib.max(now);
        if most > now {
            bounds::raise(u64::from(most) << 20);
        }
        let system = Error::system::<std::io::Error>;
        let total = Total::read().map_err(system("reading /proc/meminfo"))?;
        let governor = Governor::new(now, most, total);
        governor::apply(governor.marks()).map_err(system("limiting the containers' memory"))?;
        let channels = (
            self.memory.offered.subscribe(),
            self.memory.wanted.clone(),
            self.memory.online.clone(),
        );
        tokio::spawn(async move {
            if let Err(error) = govern(governor, channels).await {
                log(&format!("watching the guest's memory: {error}"));
                // Nobody asks for more any longer: what there is may be used.
                if let Err(error) = governor::apply(governor::Marks::NONE) {
                    log(&format!("lifting the containers' memory limit: {error}"));
                }
            }
        });
        Ok(())
    }

    /// Waits until the CPUs of the start are online.
    ///
    /// # Errors
    /// They can't be brought online.
    pub async fn processors_online(&self) -> Result<(), Error> {
        let mut done = self.processors.subscribe();
        match done.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Err(error))) => Err(Error::Setup(error.clone())),
            // The sender is ours.
            _ => Ok(()),
        }
    }

    /// Uses what the host offers.
    ///
    /// # Errors
    /// A CPU can't be brought online, or the memory doesn't come.
    pub async fn resize(&self, vcpus: u32, memory_mib: u32) -> Result<(), Error> {
        self.offered(memory_mib);
        self.processors_online().await?;
        bring_online(vcpus).await?;
        let mut online = self.memory.online.subscribe();
        timeout(ONLINE_DEADLINE, online.wait_for(|&online| online >= memory_mib))
            .await
            .map_err(|_| Error::Deadline("bringing memory online"))
            .map(drop)
    }

    /// Waits until the guest wants more than the `memory_mib` MiB that the host offers, and says how much.
    pub async fn pressure(&self, memory_mib: u32) -> u32 {
        self.offered(memory_mib);
        let mut wanted = self.memory.wanted.subscribe();
        let more = wanted.wait_for(|&wanted| wanted > memory_mib).await;
        // The sender is ours.
        more.map_or(memory_mib, |wanted| *wanted)
    }

    fn offered(&self, memory_mib: u32) {
        self.memory.offered.send_if_modified(|offered| {
            let more = memory_mib > *offered;
            *offered = memory_mib.max(*offered);
            more
        });
    }
}

/// Brings CPUs online and has the interfaces use them.
async fn bring_online(vcpus: u32) -> Result<(), Error> {
    let work = move || {
        processors::bring_online(vcpus).map_err(|error| Error::Setup(error.to_string()))?;
        spread_queues().map_err(Error::system("using the queues of an interface"))
    };
    // A panic ends the program, and nobody cancels.
    spawn_blocking(work)
        .await
        .map_err(|error| Error::Setup(error.to_string()))?
}

/// Keeps the governor informed, and does what it says.
async fn govern(
    mut governor: Governor,
    (mut offered, wanted, online): (channel::Receiver<u32>, channel::Sender<u32>, channel::Sender<u32>),
) -> std::io::Result<()> {
    let mut watch = Watch::new()?;
    let mut applied = governor.marks();
    loop {
        let event = tokio::select! {
            event = watch.next() => event?,
            // The sender lives as long as the server.
            _ = offered.changed() => watch::Event::Offer,
            () = tokio::time::sleep(ONLINE_DEADLINE), if governor.waits_for_memory() => watch::Event::Overdue,
        };
        let total = Total::read()?;
        governor.total(total.total_kib);
        match event {
            watch::Event::High | watch::Event::Stall => {
                governor.pressed(figures::Usage::read()?, event == watch::Event::Stall);
            }
            watch::Event::Standstill => {
                if governor.stood_still(figures::Usage::read()?, total.available_kib, Instant::now()) {
                    log("the containers have used up the machine's memory: ending the largest process");
                    governor::kill_largest()?;
                }
            }
            watch::Event::Overdue => {
                governor.give_up();
                log("the host has offered memory that does not come");
            }
            watch::Event::Offer => governor.offered(*offered.borrow_and_update()),
            watch::Event::Memory => {}
        }
        let marks = governor.marks();
        if marks != applied {
            governor::apply(marks)?;
            applied = marks;
        }
        online.send_replace(governor.online_mib());
        wanted.send_if_modified(|wanted| {
            let more = governor.wanted_mib() > *wanted;
            *wanted = governor.wanted_mib().max(*wanted);
            more
        });
    }
}
