//! What a container uses: the files of its cgroup (cgroup-v2, "Interface Files"). One that is not there counts zero.

use std::{collections::HashMap, fs};

use sealock_protocol::agent::{
    ContainerStatsResponse, CpuStats, HugetlbStats, InterfaceStats, IoEntry, MemoryStats, PidsStats,
    Pressure, PressureLine,
};

use super::container::Container;

/// Where the kernel lists the sizes of its huge pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

impl Container {
    /// What the container uses now.
    pub fn stats(&self) -> ContainerStatsResponse {
        let read = |file: &str| self.cgroup.read(file).unwrap_or_default();
        let mut stats = ContainerStatsResponse::new();
        stats.cpu = Some(cpu(&read)).into();
        stats.memory = Some(memory(&read)).into();
        stats.pids = Some(pids(&read)).into();
        stats.io = io(&read("io.stat"));
        stats.hugetlb = huge_page_sizes()
            .into_iter()
            .map(|size| huge_pages(&read, size))
            .collect();
        stats.interfaces = interfaces(&fs::read_to_string("/proc/net/dev").unwrap_or_default());
        stats
    }
}

/// Lines of a name and a number.
fn numbers(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// A number, "max" being the largest.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

fn cpu(read: &impl Fn(&str) -> String) -> CpuStats {
    let values = numbers(&read("cpu.stat"));
    let value = |name: &str| values.get(name).copied().unwrap_or(0);
    let mut cpu = CpuStats::new();
    cpu.usage_usec = value("usage_usec");
    cpu.user_usec = value("user_usec");
    cpu.system_usec = value("system_usec");
    cpu.nr_periods = value("nr_periods");
    cpu.nr_throttled = value("nr_throttled");
    cpu.throttled_usec = value("throttled_usec");
    cpu.pressure = pressure(&read("cpu.pressure")).into();
    cpu
}

fn memory(read: &impl Fn(&str) -> String) -> MemoryStats {
    let mut memory = MemoryStats::new();
    memory.usage = number(&read("memory.current"));
    memory.max_usage = number(&read("memory.peak"));
    memory.usage_limit = number(&read("memory.max"));
    memory.swap_usage = number(&read("memory.swap.current"));
    memory.swap_limit = number(&read("memory.swap.max"));
    memory.stat = numbers(&read("memory.stat"));
    memory.events = numbers(&read("memory.events"));
    memory.pressure = pressure(&read("memory.pressure")).into();
    memory
}

fn pids(read: &impl Fn(&str) -> String) -> PidsStats {
    let mut pids = PidsStats::new();
    pids.current = number(&read("pids.current"));
    pids.limit = number(&read("pids.max"));
    pids
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let mut values = PressureLine::new();
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            match name {
                "avg10" => values.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => values.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => values.avg300 = value.parse().unwrap_or(0.0),
                "total" => values.total_usec = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        match kind {
            "some" => pressure.some = Some(values).into(),
            "full" => pressure.full = Some(values).into(),
            _ => {}
        }
    }
    (pressure.some.is_some() || pressure.full.is_some()).then_some(pressure)
}

/// Lines of `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io(text: &str) -> Vec<IoEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (major, minor) = words.next()?.split_once(':')?;
            let mut entry = IoEntry::new();
            entry.major = major.parse().ok()?;
            entry.minor = minor.parse().ok()?;
            for (name, value) in words.filter_map(|word| word.split_once('=')) {
                let value = value.parse().unwrap_or(0);
                match name {
                    "rbytes" => entry.rbytes = value,
                    "wbytes" => entry.wbytes = value,
                    "rios" => entry.rios = value,
                    "wios" => entry.wios = value,
                    _ => {}
                }
            }
            Some(entry)
        })
        .collect()
}

/// As the cgroup's files name them, in ascending order.
fn huge_page_sizes() -> Vec<String> {
    let Ok(entries) = fs::read_dir(HUGE_PAGES) else {
        return Vec::new();
    };
    let mut sizes: Vec<u64> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let kib = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            kib.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(size_name).collect()
}

fn size_name(kib: u64) -> String {
    match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    }
}

fn huge_pages(read: &impl Fn(&str) -> String, size: String) -> HugetlbStats {
    let mut stats = HugetlbStats::new();
    stats.current = number(&read(&format!("hugetlb.{size}.current")));
    stats.max = number(&read(&format!("hugetlb.{size}.max")));
    let events = numbers(&read(&format!("hugetlb.{size}.events")));
    stats.failcnt = events.get("max").copied().unwrap_or(0);
    stats.page_size = size;
    stats
}

/// `/proc/net/dev` (proc_pid_net(5)): eight columns of what came, then eight of what went. The loopback interface is nobody's
/// traffic.
fn interfaces(text: &str) -> Vec<InterfaceStats> {
    text.lines()
        .filter_map(|line| {
            let (name, values) = line.split_once(':')?;
            let values: Vec<u64> = values
                .split_ascii_whitespace()
                .map(|value| value.parse().unwrap_or(0))
                .collect();
            let [
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                _,
                _,
                _,
                _,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..,
            ] = values[..]
            else {
                return None;
            };
            let name = name.trim();
            (name != "lo").then(|| InterfaceStats {
                name: name.to_owned(),
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..InterfaceStats::default()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let read = |file: &str| {
            match file {
                "cpu.stat" => "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnice_usec 0\nnr_throttled 2\n",
                "cpu.pressure" => "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n",
                "memory.current" => "4096\n",
                "memory.max" => "max\n",
                "memory.stat" => "anon 1\nfile 2\n",
                "pids.current" => "3\n",
                "pids.max" => "max\n",
                _ => "",
            }
            .to_owned()
        };
        let cpu = cpu(&read);
        assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.nr_throttled), (30, 20, 2));
        let some = &cpu.pressure.some;
        assert_eq!((some.avg10, some.avg60, some.total_usec), (1.5, 0.25, 77));
        assert!(cpu.pressure.full.is_none());
        let memory = memory(&read);
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.max_usage),
            (4096, u64::MAX, 0)
        );
        assert_eq!(memory.stat["file"], 2);
        assert!(memory.pressure.is_none());
        let pids = pids(&read);
        assert_eq!((pids.current, pids.limit), (3, u64::MAX));
    }

    #[test]
    fn devices_and_interfaces_are_told_apart() {
        let io = io("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:0\nnonsense\n");
        assert_eq!((io[0].major, io[0].minor, io[0].wios), (8, 16, 4));
        assert_eq!(io.len(), 2);
        let interfaces = interfaces(
            "Inter-|   Receive      |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes\n\
                lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n",
        );
        assert_eq!(interfaces.len(), 1);
        assert_eq!(interfaces[0].name, "eth0");
        assert_eq!((interfaces[0].rx_dropped, interfaces[0].tx_dropped), (4, 8));
    }

    #[test]
    fn sizes_of_pages_are_named_as_in_the_cgroups_files() {
        assert_eq!([64, 2048, 1 << 20].map(size_name), ["64KB", "2MB", "1GB"]);
    }
}
