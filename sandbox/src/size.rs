//! How large a pod's machine is to be: the configuration's least, more where the pod's limits or annotations ask for it; and
//! how large it may become.

use sealock_protocol::control::memory_step_mib;
use serde_json::Value;

use crate::{
    config::{Config, MAX_VCPUS, MIN_MEMORY_MIB},
    template::Scope,
};

/// What the guest's kernel and the agent need beside the containers' own limit, in MiB.
const OVERHEAD_MIB: u64 = 96;

const MIB: u64 = 1 << 20;

/// Asks for memory, in MiB.
pub const ANNOTATION_MEMORY: &str = "io.sealock.memory-mib";

/// Bounds what the memory can grow to, in MiB.
pub const ANNOTATION_MAX_MEMORY: &str = "io.sealock.max-memory-mib";

/// Asks for virtual CPUs.
pub const ANNOTATION_VCPUS: &str = "io.sealock.vcpus";

const CRI_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CRI_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CRI_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// The kernel's default period (cpu.max, in microseconds).
const DEFAULT_PERIOD: u64 = 100_000;

/// An annotation that can't be met.
#[derive(Debug, thiserror::Error)]
#[error("annotation {name}: {value:?} is not a number from {least} to {most}")]
pub struct Error {
    name: &'static str,
    value: String,
    least: u64,
    most: u64,
}

/// What a host has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Processors.
    pub cpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl Host {
    /// This host.
    #[must_use]
    pub fn this() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        // SAFETY: sysinfo is a plain structure of numbers, for which zero is a value.
        let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is valid for writing and outlives the call.
        let memory_mib = if unsafe { libc::sysinfo(&mut info) } == 0 {
            info.totalram.saturating_mul(info.mem_unit.into()) / MIB
        } else {
            u64::from(u32::MAX)
        };
        Self { cpus, memory_mib }
    }
}

/// A machine's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// The most there can be later, at least as many.
    pub max_vcpus: u8,
    /// Memory in MiB, at least [`MIN_MEMORY_MIB`].
    pub memory_mib: u32,
    /// The most it can grow to, at least as much.
    pub max_memory_mib: u32,
}

/// The limits of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Processors, the last one perhaps in part.
    pub cpus: Option<u64>,
}

impl Limits {
    /// Those in an OCI `linux.resources` object.
    #[must_use]
    pub fn of(resources: &Value) -> Self {
        Self {
            memory: limit_memory(resources),
            cpus: limit_cpus(resources),
        }
    }
}

/// What containers with these limits need together: memory in MiB with the guest's own share, and processors. A container
/// without a limit counts for nothing: memory for it comes when it is used.
pub fn needed<'a>(containers: impl Iterator<Item = &'a Limits>) -> (u64, u64) {
    let (mut memory, mut cpus) = (0_u64, 0_u64);
    for limits in containers {
        memory = memory.saturating_add(limits.memory.unwrap_or(0));
        cpus = cpus.saturating_add(limits.cpus.unwrap_or(0));
    }
    match memory {
        0 => (0, cpus),
        memory => (memory.div_ceil(MIB) + OVERHEAD_MIB, cpus),
    }
}

impl Size {
    /// The size for a pod whose first container has `spec` (an OCI runtime specification).
    ///
    /// # Errors
    /// An annotation of Sealock's own can't be met.
    pub fn of(spec: &Value, config: &Config, host: Host) -> Result<Self, Error> {
        let most_cpus = host.cpus.clamp(1, MAX_VCPUS.into());
        let mut vcpus_now = u64::from(config.vcpus());
        let limits = spec
            .pointer("/linux/resources")
            .map_or_else(Limits::default, Limits::of);
        for cpus in [limits.cpus, cri_cpus(spec)].into_iter().flatten() {
            vcpus_now = vcpus_now.max(cpus.min(most_cpus));
        }
        if let Some(asked) = asked(spec, ANNOTATION_VCPUS, 1, most_cpus)? {
            vcpus_now = asked;
        }

        let most_memory = host.memory_mib.clamp(MIN_MEMORY_MIB.into(), u32::MAX.into());
        let mut memory = u64::from(config.memory_mib());
        for bytes in [limits.memory, number(spec, CRI_MEMORY)].into_iter().flatten() {
            memory = memory.max((bytes.div_ceil(MIB) + OVERHEAD_MIB).min(most_memory));
        }
        // What it is going to need. One that can grow starts as all do, so that one template fits them all, and grows when its
        // containers are created.
        let mut needed = 0;
        if config.templates() != Scope::Off && config.max_memory_mib() > 0 {
            needed = std::mem::replace(&mut memory, config.memory_mib().into());
        }
        if let Some(asked) = asked(spec, ANNOTATION_MEMORY, MIN_MEMORY_MIB.into(), most_memory)? {
            memory = asked;
            needed = 0;
        }
        let mut max_memory = match config.max_memory_mib() {
            0 => memory,
            max => u64::from(max).min(most_memory),
        }
        .max(memory);
        if let Some(asked) = asked(spec, ANNOTATION_MAX_MEMORY, memory, most_memory)? {
            max_memory = asked;
        }
        let max_vcpus = match config.max_vcpus() {
            0 => most_cpus,
            max => u64::from(max).min(most_cpus),
        }
        .max(vcpus_now);
        // Both are at most `MAX_VCPUS`.
        let vcpus = |count: u64| u8::try_from(count).unwrap_or(MAX_VCPUS);
        let mib = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
        // It grows in whole steps.
        let step = u64::from(memory_step_mib(mib(memory)));
        let steps = ((max_memory - memory) / step).max(needed.saturating_sub(memory).div_ceil(step));
        let max_memory = memory + steps * step;
        Ok(Self {
            vcpus: vcpus(vcpus_now),
            max_vcpus: vcpus(max_vcpus),
            memory_mib: mib(memory),
            max_memory_mib: mib(max_memory),
        })
    }
}

fn annotation<'a>(spec: &'a Value, name: &str) -> Option<&'a str> {
    spec.get("annotations")?.get(name)?.as_str()
}

fn asked(spec: &Value, name: &'static str, least: u64, most: u64) -> Result<Option<u64>, Error> {
    let Some(value) = annotation(spec, name) else {
        return Ok(None);
    };
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
        _ => Err(Error {
            name,
            value: value.chars().take(32).collect(),
            least,
            most,
        }),
    }
}

/// A positive number of Kubernetes': zero and -1 stand for "no limit".
fn number(spec: &Value, name: &str) -> Option<u64> {
    annotation(spec, name)?.parse().ok().filter(|&number| number > 0)
}

fn limit_memory(resources: &Value) -> Option<u64> {
    resources
        .pointer("/memory/limit")?
        .as_u64()
        .filter(|&limit| limit > 0)
}

fn limit_cpus(resources: &Value) -> Option<u64> {
    let quota = resources.pointer("/cpu/quota")?.as_u64()?;
    let period = resources.pointer("/cpu/period").and_then(Value::as_u64);
    cpus(quota, period)
}

fn cri_cpus(spec: &Value) -> Option<u64> {
    cpus(number(spec, CRI_QUOTA)?, number(spec, CRI_PERIOD))
}

fn cpus(quota: u64, period: Option<u64>) -> Option<u64> {
    let period = period.filter(|&period| period > 0).unwrap_or(DEFAULT_PERIOD);
    Some(quota.div_ceil(period)).filter(|&cpus| cpus > 0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    const HOST: Host = Host {
        cpus: 8,
        memory_mib: 16_384,
    };

    fn size(spec: Value) -> Result<Size, Error> {
        let config = Config::parse("", Path::new("/c"), Path::new("/usr")).unwrap();
        Size::of(&spec, &config, HOST)
    }

    #[test]
    fn nothing_asked_gives_the_default() {
        let expected = Size {
            vcpus: 1,
            max_vcpus: 8,
            memory_mib: 512,
            max_memory_mib: 512,
        };
        assert_eq!(size(json!({})).unwrap(), expected);
        // Limits below the default do not make it smaller.
        let small = json!({"linux": {"resources": {"memory": {"limit": 4096}, "cpu": {"quota": 1000, "period": 100000}}}});
        assert_eq!(size(small).unwrap(), expected);
        let none = json!({"linux": {"resources": {"memory": {"limit": -1}, "cpu": {"quota": -1}}}});
        assert_eq!(size(none).unwrap(), expected);
    }

    #[test]
    fn a_containers_limits_make_it_larger() {
        let spec = json!({"linux": {"resources": {
            "memory": {"limit": 1_u64 << 30}, "cpu": {"quota": 250_000, "period": 100_000}}}});
        let size = size(spec).unwrap();
        assert_eq!(size.memory_mib, 1024 + 96);
        assert_eq!(size.vcpus, 3);
    }

    #[test]
    fn a_pods_limits_make_it_larger() {
        let spec = json!({"annotations": {"io.kubernetes.cri.sandbox-memory": "2147483648",
            "io.kubernetes.cri.sandbox-cpu-quota": "100001", "io.kubernetes.cri.sandbox-cpu-period": "50000"}});
        let size = size(spec).unwrap();
        assert_eq!((size.memory_mib, size.vcpus), (2048 + 96, 3));
    }

    #[test]
    fn no_limit_exceeds_the_host() {
        let spec = json!({"linux": {"resources": {
            "memory": {"limit": i64::MAX}, "cpu": {"quota": i64::MAX, "period": 1}}}});
        let size = size(spec).unwrap();
        assert_eq!((size.memory_mib, size.vcpus), (16_384, 8));
    }

    #[test]
    fn an_annotation_decides_within_bounds() {
        let spec = json!({"annotations": {"io.sealock.memory-mib": "128", "io.sealock.vcpus": "2"}});
        let size = size(spec).unwrap();
        assert_eq!((size.memory_mib, size.vcpus), (128, 2));
    }

    #[test]
    fn a_machine_can_grow_to_the_hosts_size_or_what_was_set() {
        let of = |text, spec: Value| {
            let config = Config::parse(text, Path::new("/c"), Path::new("/usr")).unwrap();
            let size = Size::of(&spec, &config, HOST).unwrap();
            (size.max_vcpus, size.max_memory_mib)
        };
        assert_eq!(of("", json!({})), (8, 512));
        let bounds = "max_vcpus = 4\nmax_memory_mib = 1024";
        assert_eq!(of(bounds, json!({})), (4, 1024));
        assert_eq!(
            of("max_vcpus = 32\nmax_memory_mib = 99999", json!({})),
            (8, 16_384)
        );
        let larger = json!({"annotations": {"io.sealock.memory-mib": "2048", "io.sealock.vcpus": "6"}});
        assert_eq!(of(bounds, larger), (6, 2048));
        let bounded = json!({"annotations": {"io.sealock.max-memory-mib": "700"}});
        assert_eq!(of("", bounded), (8, 640), "in whole steps");
        let error = size(json!({"annotations": {"io.sealock.max-memory-mib": "100"}})).unwrap_err();
        assert!(error.to_string().contains("from 512 to 16384"), "{error}");
    }

    #[test]
    fn machines_that_can_grow_start_alike_where_there_are_templates() {
        let of = |text: &str, mib: u64| {
            let config = Config::parse(text, Path::new("/c"), Path::new("/usr")).unwrap();
            let spec = json!({"linux": {"resources": {"memory": {"limit": mib << 20}}}});
            let size = Size::of(&spec, &config, HOST).unwrap();
            (size.memory_mib, size.max_memory_mib)
        };
        let grows = "templates = \"node\"\nmax_memory_mib = 4096";
        assert_eq!(of(grows, 0), (512, 4096));
        assert_eq!(of(grows, 1024), (512, 4096));
        assert_eq!(
            of(grows, 4096),
            (512, 4224),
            "as much as it needs, in whole steps"
        );
        assert_eq!(of("templates = \"node\"", 1024), (1120, 1120));
        assert_eq!(
            of("templates = \"off\"\nmax_memory_mib = 4096", 1024),
            (1120, 4064)
        );
    }

    #[test]
    fn containers_need_the_sum_of_their_limits() {
        let limits = |memory: Option<u64>, cpus| Limits {
            memory: memory.map(|mib| mib << 20),
            cpus,
        };
        assert_eq!(needed([].iter()), (0, 0));
        assert_eq!(needed([limits(None, None)].iter()), (0, 0));
        let three = [
            limits(Some(100), Some(1)),
            limits(None, Some(2)),
            limits(Some(28), None),
        ];
        assert_eq!(needed(three.iter()), (128 + 96, 3));
        let absurd = [limits(None, Some(u64::MAX)), limits(None, Some(1))];
        assert_eq!(needed(absurd.iter()).1, u64::MAX);
    }

    #[test]
    fn an_annotation_out_of_bounds_is_refused_by_name() {
        for (name, value, expected) in [
            (
                "io.sealock.memory-mib",
                "63",
                "annotation io.sealock.memory-mib: \"63\" is not a number from 64 to 16384",
            ),
            ("io.sealock.memory-mib", "99999", "from 64 to 16384"),
            ("io.sealock.memory-mib", "lots", "\"lots\" is not a number"),
            (
                "io.sealock.vcpus",
                "0",
                "annotation io.sealock.vcpus: \"0\" is not a number from 1 to 8",
            ),
            ("io.sealock.vcpus", "9", "from 1 to 8"),
        ] {
            let error = size(json!({"annotations": {name: value}}))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
