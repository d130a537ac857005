//! `linux.resources`: limits, as the files of cgroup v2 that they are written to.

use std::collections::BTreeMap;

use super::{
    block_io,
    cpu_list::CpuList,
    object::{Object, SpecError},
};

/// A value for a file of the container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The field it comes from.
    pub field: String,
    /// The file's name.
    pub file: String,
    /// What is written.
    pub value: String,
    /// Whether the limit is kept without the file too.
    pub optional: bool,
    /// Whether a limit below what is used already is refused, instead of enforced at once.
    pub check_usage: bool,
}

impl Setting {
    /// Reads all of `linux.resources` but its devices.
    ///
    /// # Errors
    /// The field that can't be applied.
    pub fn parse_all(resources: &mut Object) -> Result<Vec<Self>, SpecError> {
        let mut settings = Vec::new();
        if let Some(memory) = resources.object("memory")? {
            parse_memory(memory, &mut settings)?;
        }
        if let Some(cpu) = resources.object("cpu")? {
            parse_cpu(cpu, &mut settings)?;
        }
        if let Some(mut pids) = resources.object("pids")? {
            if let Some(limit) = limit(&mut pids, "limit")? {
                settings.push(Self::new(pids.field("limit"), "pids.max", limit));
            }
            pids.finish()?;
        }
        if let Some(block_io) = resources.object("blockIO")? {
            block_io::parse(block_io, &mut settings)?;
        }
        for item in resources.objects("hugepageLimits")? {
            parse_huge_pages(item, &mut settings)?;
        }
        for (name, reason) in [
            ("network", "cgroup v2 has no network classes and priorities"),
            ("rdma", "the guest has no RDMA devices"),
        ] {
            resources.refuse(name, reason)?;
        }
        let unified: BTreeMap<String, String> = resources.take_or_default("unified")?;
        for (file, value) in unified {
            let field = format!("{}[{file:?}]", resources.field("unified"));
            let plain = file
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
            // The cgroup's own files move and kill processes: they are the agent's.
            if !plain || !file.contains('.') || file.starts_with('.') || file.starts_with("cgroup.") {
                return Err(SpecError::invalid(field, "is not a file of a controller"));
            }
            if file == "cpuset.cpus" && CpuList::parse(&value).is_none() {
                return Err(SpecError::invalid(
                    field,
                    format!("{value:?} is not a list of processors like 0-3,7"),
                ));
            }
            settings.push(Self::new(field, &file, value));
        }
        Ok(settings)
    }

    /// A value for the file that must be there.
    pub fn new(field: String, file: &str, value: impl Into<String>) -> Self {
        Self {
            field,
            file: file.to_owned(),
            value: value.into(),
            optional: false,
            check_usage: false,
        }
    }
}

/// A limit: absent or 0 is none asked for, -1 is explicitly none.
fn limit(object: &mut Object, name: &str) -> Result<Option<String>, SpecError> {
    match object.take::<i64>(name)? {
        None | Some(0) => Ok(None),
        Some(-1) => Ok(Some("max".to_owned())),
        Some(value) if value > 0 => Ok(Some(value.to_string())),
        Some(value) => Err(SpecError::invalid(
            object.field(name),
            format!("{value} is not a limit"),
        )),
    }
}

fn parse_memory(mut memory: Object, settings: &mut Vec<Setting>) -> Result<(), SpecError> {
    let bytes = limit(&mut memory, "limit")?;
    if let Some(reservation) = limit(&mut memory, "reservation")? {
        settings.push(Setting::new(
            memory.field("reservation"),
            "memory.low",
            reservation,
        ));
    }
    // The field is memory and swap together; cgroup v2 counts swap alone.
    if let Some(both) = limit(&mut memory, "swap")? {
        let swap = match (both.parse::<u64>(), bytes.as_deref().map(str::parse::<u64>)) {
            (Err(_), _) => "max".to_owned(),
            (Ok(both), Some(Ok(memory_alone))) if both >= memory_alone => (both - memory_alone).to_string(),
            _ => {
                return Err(SpecError::invalid(
                    memory.field("swap"),
                    "is memory and swap together, and can't be less than memory.limit",
                ));
            }
        };
        settings.push(Setting {
            // A guest kernel without swap has no such file, and no way to exceed the limit.
            optional: true,
            ..Setting::new(memory.field("swap"), "memory.swap.max", swap)
        });
    }
    if let Some(bytes) = bytes {
        settings.push(Setting {
            check_usage: memory.take_or_default("checkBeforeUpdate")?,
            ..Setting::new(memory.field("limit"), "memory.max", bytes)
        });
    }
    memory.ignore("checkBeforeUpdate");
    let swappiness: Option<u64> = memory.take("swappiness")?;
    if swappiness.is_some_and(|swappiness| swappiness > 100) {
        return Err(SpecError::invalid(
            memory.field("swappiness"),
            "is not between 0 and 100",
        ));
    }
    for (name, reason) in [
        (
            "disableOOMKiller",
            "cgroup v2 can't turn the out-of-memory killer off",
        ),
        (
            "kernel",
            "cgroup v2 counts the kernel's memory within memory.limit",
        ),
        (
            "kernelTCP",
            "cgroup v2 counts the kernel's memory within memory.limit",
        ),
    ] {
        memory.refuse(name, reason)?;
    }
    // Always so in cgroup v2.
    memory.ignore("useHierarchy");
    memory.finish()
}

/// A size of pages as cgroup v2 has it in its files' names.
fn parse_huge_pages(mut item: Object, settings: &mut Vec<Setting>) -> Result<(), SpecError> {
    let size = item.take_text("pageSize")?.unwrap_or_default();
    let plain = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| size.strip_suffix(unit))
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    if !plain {
        return Err(SpecError::invalid(
            item.field("pageSize"),
            format!("{size:?} is not a size like 2MB"),
        ));
    }
    let limit: u64 = item.take_or_default("limit")?;
    let field = item.field("limit");
    item.finish()?;
    // Pages that are reserved, and pages that are used.
    for file in [format!("hugetlb.{size}.rsvd.max"), format!("hugetlb.{size}.max")] {
        settings.push(Setting {
            // Of pages that the guest does not have nobody gets any.
            optional: limit == 0,
            ..Setting::new(field.clone(), &file, limit.to_string())
        });
    }
    Ok(())
}

fn parse_cpu(mut cpu: Object, settings: &mut Vec<Setting>) -> Result<(), SpecError> {
    if let Some(shares) = cpu.take::<u64>("shares")?.filter(|&shares| shares > 0) {
        // 2 to 262144 shares are 1 to 10000 of weight.
        let shares = shares.clamp(2, 262_144);
        let weight = 1 + (shares - 2) * 9_999 / 262_142;
        settings.push(Setting::new(
            cpu.field("shares"),
            "cpu.weight",
            weight.to_string(),
        ));
    }
    let quota: Option<i64> = cpu.take("quota")?.filter(|&quota| quota != 0);
    let period: Option<u64> = cpu.take("period")?.filter(|&period| period != 0);
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        let value = match period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        settings.push(Setting::new(cpu.field("quota"), "cpu.max", value));
    }
    if let Some(burst) = cpu.take::<u64>("burst")?.filter(|&burst| burst > 0) {
        settings.push(Setting::new(
            cpu.field("burst"),
            "cpu.max.burst",
            burst.to_string(),
        ));
    }
    if let Some(idle) = cpu.take::<i64>("idle")? {
        if !(0..=1).contains(&idle) {
            return Err(SpecError::invalid(cpu.field("idle"), "is neither 0 nor 1"));
        }
        settings.push(Setting::new(cpu.field("idle"), "cpu.idle", idle.to_string()));
    }
    // Numbers of the host's: the cgroup makes them the guest's.
    if let Some(cpus) = CpuList::take(&mut cpu, "cpus")? {
        settings.push(Setting::new(cpu.field("cpus"), "cpuset.cpus", cpus.to_string()));
    }
    // Whatever memory nodes the host has: the guest has one.
    if CpuList::take(&mut cpu, "mems")?.is_some() {
        settings.push(Setting::new(cpu.field("mems"), "cpuset.mems", "0"));
    }
    for name in ["realtimeRuntime", "realtimePeriod"] {
        cpu.refuse(name, "cgroup v2 has no budget for real-time processes")?;
    }
    cpu.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(resources: &str) -> Result<Vec<(String, String)>, SpecError> {
        let mut object = Object::parse(resources.as_bytes()).unwrap();
        let settings = Setting::parse_all(&mut object)?;
        object.finish()?;
        Ok(settings
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect())
    }

    #[test]
    fn limits_become_files_of_cgroup_v2() {
        for (resources, file, value) in [
            (r#"{"memory":{"limit":1048576}}"#, "memory.max", "1048576"),
            (r#"{"memory":{"limit":-1}}"#, "memory.max", "max"),
            (r#"{"memory":{"limit":100,"swap":150}}"#, "memory.swap.max", "50"),
            (r#"{"memory":{"reservation":7}}"#, "memory.low", "7"),
            (r#"{"cpu":{"shares":1024}}"#, "cpu.weight", "39"),
            (r#"{"cpu":{"shares":2}}"#, "cpu.weight", "1"),
            (r#"{"cpu":{"shares":262144}}"#, "cpu.weight", "10000"),
            (
                r#"{"cpu":{"quota":50000,"period":100000}}"#,
                "cpu.max",
                "50000 100000",
            ),
            (r#"{"cpu":{"quota":-1,"period":100000}}"#, "cpu.max", "max 100000"),
            (r#"{"cpu":{"cpus":"0-1"}}"#, "cpuset.cpus", "0-1"),
            (r#"{"pids":{"limit":10}}"#, "pids.max", "10"),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":9}]}"#,
                "hugetlb.2MB.max",
                "9",
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":9}]}"#,
                "hugetlb.2MB.rsvd.max",
                "9",
            ),
            (r#"{"cpu":{"idle":1}}"#, "cpu.idle", "1"),
            (r#"{"cpu":{"mems":"0-3"}}"#, "cpuset.mems", "0"),
            (r#"{"blockIO":{"weight":1000}}"#, "io.weight", "default 10000"),
            (
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":10}]}}"#,
                "io.weight",
                "8:0 1",
            ),
            (
                r#"{"blockIO":{"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":7}]}}"#,
                "io.max",
                "8:16 wiops=7",
            ),
            (r#"{"unified":{"memory.high":"9"}}"#, "memory.high", "9"),
        ] {
            let settings = parse(resources).unwrap();
            assert!(
                settings.contains(&(file.to_owned(), value.to_owned())),
                "{resources}: {settings:?}"
            );
        }
    }

    #[test]
    fn limits_that_are_not_kept_are_refused_by_name() {
        for (resources, message) in [
            (
                r#"{"memory":{"swappiness":101}}"#,
                "memory.swappiness: is not between 0 and 100",
            ),
            (
                r#"{"memory":{"disableOOMKiller":true}}"#,
                "memory.disableOOMKiller is not supported: cgroup v2 can't turn the out-of-memory killer off",
            ),
            (
                r#"{"blockIO":{"weight":9}}"#,
                "blockIO.weight: is not between 10 and 1000",
            ),
            (
                r#"{"blockIO":{"leafWeight":10}}"#,
                "blockIO.leafWeight is not supported",
            ),
            (
                r#"{"cpu":{"realtimeRuntime":5}}"#,
                "cpu.realtimeRuntime is not supported: cgroup v2 has no budget for real-time processes",
            ),
            (
                r#"{"cpu":{"cpus":"x"}}"#,
                r#"cpu.cpus: "x" is not a list of processors like 0-3,7"#,
            ),
            (
                r#"{"network":{"priorities":[{"name":"eth0","priority":1}]}}"#,
                "network is not supported: cgroup v2 has no network classes and priorities",
            ),
            (
                r#"{"rdma":{"mlx5_1":{"hcaHandles":3}}}"#,
                "rdma is not supported: the guest has no RDMA devices",
            ),
            (r#"{"memory":{"limit":-2}}"#, "memory.limit: -2 is not a limit"),
            (
                r#"{"unified":{"cgroup.procs":"1"}}"#,
                r#"unified["cgroup.procs"]: is not a file of a controller"#,
            ),
            (
                r#"{"unified":{"../x.y":"1"}}"#,
                r#"unified["../x.y"]: is not a file of a controller"#,
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"../B"}]}"#,
                r#"hugepageLimits[0].pageSize: "../B" is not a size like 2MB"#,
            ),
        ] {
            assert_eq!(parse(resources).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn limits_left_empty_are_not_asked_for() {
        let settings = parse(
            r#"{"memory":{"limit":0,"swap":0,"useHierarchy":true},"cpu":{"shares":0,"quota":0,"cpus":""},
                "pids":{"limit":0},"blockIO":{"weight":0,"throttleReadBpsDevice":[]}}"#,
        );
        assert_eq!(settings.unwrap(), []);
    }
}
