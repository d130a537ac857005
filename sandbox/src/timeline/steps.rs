//! The steps that a start can have: who does each, what each is, and which it has to wait for.

use super::Step;

/// Who does a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// containerd, or whoever asks it.
    Containerd,
    /// The shim.
    Shim,
    /// The virtual machine monitor.
    Monitor,
    /// The guest's kernel and its agent.
    Guest,
}

impl Actor {
    /// All of them, in the order of [`Actor::number`].
    pub const ALL: [Self; 4] = [Self::Containerd, Self::Shim, Self::Monitor, Self::Guest];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Shim => "shim",
            Self::Monitor => "vmm",
            Self::Guest => "guest",
        }
    }

    /// Its place in [`Actor::ALL`].
    #[must_use]
    pub fn number(self) -> usize {
        self as usize
    }
}

/// What is known of a step.
#[derive(Debug)]
pub struct Known {
    /// Its name.
    pub step: &'static str,
    /// Who does it.
    pub actor: Actor,
    /// The steps after which it can begin, where they are reached at all.
    pub after: &'static [&'static str],
    /// What has happened when it is reached.
    pub what: &'static str,
}

macro_rules! steps {
    ($($step:ident: $actor:ident after [$($after:ident),*] $what:literal;)*) => {
        /// Every step that Sealock marks.
        pub const STEPS: &[Known] = &[$(Known {
            step: stringify!($step),
            actor: Actor::$actor,
            after: &[$(stringify!($after)),*],
            what: $what,
        }),*];
    };
}

steps! {
    shim_start: Shim after [] "containerd has executed the shim, whose first instruction this is";
    cgroup_entered: Shim after [shim_start]
        "the shim has read the specification, forked, and made the pod's directory, user and cgroup";
    vmm_spawned: Shim after [cgroup_entered] "the monitor's process has been created";
    network_attached: Shim after [vmm_spawned] "the pod's interfaces have been looked at, and their taps made";
    fsd_spawned: Shim after [vmm_spawned, network_attached]
        "the monitor has been told its machine, and the file server's process has been created";
    create_received: Containerd after [shim_start] "containerd has asked for the first container";
    rootfs_mounted: Shim after [create_received, fsd_spawned]
        "the first container's root file system is mounted, its specification translated for the guest";
    vmm_exec: Monitor after [cgroup_entered] "the monitor's first instruction";
    vmm_left_host: Monitor after [vmm_exec] "it has entered namespaces of its own and an empty root directory";
    vmm_configured: Monitor after [vmm_left_host, vmm_spawned, network_attached]
        "the shim's description of the machine has arrived";
    vmm_confined: Monitor after [vmm_configured] "it has become the pod's user, without capabilities";
    vmm_memory: Monitor after [vmm_confined] "the guest's memory is mapped";
    vmm_kernel_loaded: Monitor after [vmm_memory] "the guest's kernel and agent have been copied there";
    vmm_restored: Monitor after [vmm_confined]
        "the machine is as its template was: memory mapped, devices and processor set, working set fetched";
    vmm_vcpus_started: Monitor after [vmm_kernel_loaded, vmm_restored] "the guest runs";
    guest_kernel_entered: Guest after [vmm_vcpus_started] "the guest's kernel counts its time from here";
    agent_init: Guest after [guest_kernel_entered] "the kernel has executed the agent";
    agent_hello: Guest after [agent_init] "the agent has connected to the host";
    sandbox_created: Guest after [agent_hello, vmm_vcpus_started, fsd_spawned]
        "the agent has been told what the pod is: clock, random numbers, names, interfaces, processors; it has mounted the share";
    container_created: Guest after [sandbox_created, rootfs_mounted]
        "the first container's process waits to execute its program, and its streams are connected";
    start_received: Containerd after [container_created] "containerd has asked for its start";
    container_started: Guest after [start_received, container_created] "it has executed its program";
}

/// What is known of the step of this name.
#[must_use]
pub fn known(step: &str) -> Option<&'static Known> {
    STEPS.iter().find(|known| known.step == step)
}

/// A step as a span of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span<'a> {
    /// The step's name.
    pub step: &'a str,
    /// Who did it.
    pub actor: Actor,
    /// From when it could have been under way, in milliseconds since the first step.
    pub from: f64,
    /// When it was reached.
    pub to: f64,
    /// What had happened then.
    pub what: &'static str,
}

/// What each of `steps`, in their order, took: the time since the last of those that it has to wait for. A step that isn't known,
/// by another version of Sealock, counts from the one before it.
#[must_use]
pub fn spans(steps: &[Step]) -> Vec<Span<'_>> {
    let mut before = 0.0;
    steps
        .iter()
        .map(|Step { step, ms }| {
            let known = known(step);
            let from = match known {
                None => before,
                Some(known) => steps
                    .iter()
                    .filter(|other| known.after.contains(&other.step.as_str()) && other.ms <= *ms)
                    .map(|other| other.ms)
                    .fold(0.0, f64::max),
            };
            before = *ms;
            Span {
                step,
                actor: known.map_or(Actor::Shim, |known| known.actor),
                from,
                to: *ms,
                what: known.map_or("a step of another version of Sealock", |known| known.what),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_waits_for_known_ones_and_never_for_itself() {
        for (place, step) in STEPS.iter().enumerate() {
            assert!(
                STEPS[..place].iter().all(|other| other.step != step.step),
                "{} is there twice",
                step.step
            );
            for after in step.after {
                let place_after = STEPS.iter().position(|other| other.step == *after);
                assert!(
                    place_after.is_some_and(|after| after < place),
                    "{} waits for {after}",
                    step.step
                );
            }
        }
    }

    #[test]
    fn the_documentation_explains_every_step() {
        let page = include_str!("../../../docs/timeline.md");
        for Known {
            step, actor, what, ..
        } in STEPS
        {
            let row = format!("| `{step}` | {} | {what} |", actor.name());
            assert!(page.contains(&row), "docs/timeline.md lacks: {row}");
        }
    }

    #[test]
    fn a_step_took_the_time_since_the_last_that_it_waited_for() {
        let steps = [
            ("shim_start", 0.0),
            ("cgroup_entered", 2.0),
            ("vmm_exec", 4.0),
            ("vmm_spawned", 5.0),
            ("something_new", 6.0),
            ("vmm_left_host", 7.0),
        ]
        .map(|(step, ms)| Step {
            step: step.to_owned(),
            ms,
        });
        let took: Vec<_> = spans(&steps)
            .into_iter()
            .map(|span| (span.step, span.from, span.to))
            .collect();
        assert_eq!(
            took,
            [
                ("shim_start", 0.0, 0.0),
                ("cgroup_entered", 0.0, 2.0),
                ("vmm_exec", 2.0, 4.0),
                ("vmm_spawned", 2.0, 5.0),
                ("something_new", 5.0, 6.0),
                ("vmm_left_host", 4.0, 7.0)
            ]
        );
    }
}
