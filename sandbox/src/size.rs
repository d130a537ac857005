//! How large a pod's machine is to be: the configuration's least, more where the pod's limits or annotations ask for it.

use serde_json::Value;

use crate::config::{Config, MAX_VCPUS, MIN_MEMORY_MIB};

/// What the guest's kernel and the agent need beside the containers' own limit, in MiB.
const OVERHEAD_MIB: u64 = 96;

const MIB: u64 = 1 << 20;

/// Asks for memory, in MiB.
pub const ANNOTATION_MEMORY: &str = "io.sealock.memory-mib";

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
    /// Memory in MiB, at least [`MIN_MEMORY_MIB`].
    pub memory_mib: u32,
}

impl Size {
    /// The size for a pod whose first container has `spec` (an OCI runtime specification).
    ///
    /// # Errors
    /// An annotation of Sealock's own can't be met.
    pub fn of(spec: &Value, config: &Config, host: Host) -> Result<Self, Error> {
        let most_cpus = host.cpus.clamp(1, MAX_VCPUS.into());
        let mut vcpus = u64::from(config.vcpus());
        for cpus in [limit_cpus(spec), cri_cpus(spec)].into_iter().flatten() {
            vcpus = vcpus.max(cpus.min(most_cpus));
        }
        if let Some(asked) = asked(spec, ANNOTATION_VCPUS, 1, most_cpus)? {
            vcpus = asked;
        }

        let most_memory = host.memory_mib.clamp(MIN_MEMORY_MIB.into(), u32::MAX.into());
        let mut memory = u64::from(config.memory_mib());
        for bytes in [limit_memory(spec), number(spec, CRI_MEMORY)]
            .into_iter()
            .flatten()
        {
            memory = memory.max((bytes.div_ceil(MIB) + OVERHEAD_MIB).min(most_memory));
        }
        if let Some(asked) = asked(spec, ANNOTATION_MEMORY, MIN_MEMORY_MIB.into(), most_memory)? {
            memory = asked;
        }
        Ok(Self {
            vcpus: u8::try_from(vcpus).unwrap_or(MAX_VCPUS),
            memory_mib: u32::try_from(memory).unwrap_or(u32::MAX),
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

fn limit_memory(spec: &Value) -> Option<u64> {
    spec.pointer("/linux/resources/memory/limit")?
        .as_u64()
        .filter(|&limit| limit > 0)
}

fn limit_cpus(spec: &Value) -> Option<u64> {
    let quota = spec.pointer("/linux/resources/cpu/quota")?.as_u64()?;
    let period = spec
        .pointer("/linux/resources/cpu/period")
        .and_then(Value::as_u64);
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
            memory_mib: 512,
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
