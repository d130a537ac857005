//! What a container uses, as containerd's clients read it: `io.containerd.cgroups.v2.Metrics`.

use containerd_shim_protos::{
    cgroups_v2::metrics::{
        CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PSIData,
        PSIStats, PidsStat,
    },
    protobuf::{Message, MessageField, MessageFull, well_known_types::any::Any},
    ttrpc::{self, Code},
};
use sealock_protocol::agent;

use crate::status;

/// The most entries of a list that are passed on.
const MAX_ENTRIES: usize = 256;

/// The figures as a typed value.
///
/// # Errors
/// They can't be encoded.
pub fn any(stats: agent::ContainerStatsResponse) -> ttrpc::Result<Any> {
    let mut any = Any::new();
    Metrics::descriptor().full_name().clone_into(&mut any.type_url);
    any.value = metrics(stats)
        .write_to_bytes()
        .map_err(|error| status::refusal(Code::INTERNAL, error))?;
    Ok(any)
}

/// The sum over a pod's containers of what is one's own; the network is everybody's.
#[must_use]
pub fn sum(all: impl IntoIterator<Item = agent::ContainerStatsResponse>) -> agent::ContainerStatsResponse {
    let mut sum = agent::ContainerStatsResponse::new();
    for one in all {
        let cpu = sum.cpu.mut_or_insert_default();
        for (total, part) in [
            (&mut cpu.usage_usec, one.cpu.usage_usec),
            (&mut cpu.user_usec, one.cpu.user_usec),
            (&mut cpu.system_usec, one.cpu.system_usec),
        ] {
            *total = total.saturating_add(part);
        }
        let memory = sum.memory.mut_or_insert_default();
        memory.usage = memory.usage.saturating_add(one.memory.usage);
        memory.usage_limit = u64::MAX;
        for (name, part) in one.memory.stat.iter().take(MAX_ENTRIES) {
            let total = memory.stat.entry(name.clone()).or_default();
            *total = total.saturating_add(*part);
        }
        let pids = sum.pids.mut_or_insert_default();
        pids.current = pids.current.saturating_add(one.pids.current);
        sum.interfaces = one.interfaces;
    }
    sum
}

fn metrics(stats: agent::ContainerStatsResponse) -> Metrics {
    let mut metrics = Metrics::new();
    metrics.pids = stats.pids.into_option().map(pids).into();
    metrics.cpu = stats.cpu.into_option().map(cpu).into();
    if let Some(memory) = stats.memory.into_option() {
        metrics.memory_events = Some(memory_events(&memory)).into();
        metrics.memory = Some(memory_stat(memory)).into();
    }
    let mut io = IOStat::new();
    io.usage = stats.io.into_iter().take(MAX_ENTRIES).map(io_entry).collect();
    metrics.io = Some(io).into();
    metrics.hugetlb = stats.hugetlb.into_iter().take(MAX_ENTRIES).map(hugetlb).collect();
    metrics.network = stats
        .interfaces
        .into_iter()
        .take(MAX_ENTRIES)
        .map(network)
        .collect();
    metrics
}

fn pids(stats: agent::PidsStats) -> PidsStat {
    let mut pids = PidsStat::new();
    pids.current = stats.current;
    // Without a limit containerd's own shim says 0.
    pids.limit = if stats.limit == u64::MAX { 0 } else { stats.limit };
    pids
}

fn cpu(stats: agent::CpuStats) -> CPUStat {
    let mut cpu = CPUStat::new();
    cpu.usage_usec = stats.usage_usec;
    cpu.user_usec = stats.user_usec;
    cpu.system_usec = stats.system_usec;
    cpu.nr_periods = stats.nr_periods;
    cpu.nr_throttled = stats.nr_throttled;
    cpu.throttled_usec = stats.throttled_usec;
    cpu.psi = pressure(stats.pressure);
    cpu
}

fn pressure(pressure: MessageField<agent::Pressure>) -> MessageField<PSIStats> {
    let line = |line: MessageField<agent::PressureLine>| {
        line.into_option().map(|line| {
            let mut data = PSIData::new();
            data.avg10 = line.avg10;
            data.avg60 = line.avg60;
            data.avg300 = line.avg300;
            data.total = line.total_usec;
            data
        })
    };
    pressure
        .into_option()
        .map(|pressure| {
            let mut psi = PSIStats::new();
            psi.some = line(pressure.some).into();
            psi.full = line(pressure.full).into();
            psi
        })
        .into()
}

fn memory_stat(stats: agent::MemoryStats) -> MemoryStat {
    let of = |name: &str| stats.stat.get(name).copied().unwrap_or(0);
    let mut memory = MemoryStat::new();
    memory.anon = of("anon");
    memory.file = of("file");
    memory.kernel_stack = of("kernel_stack");
    memory.slab = of("slab");
    memory.sock = of("sock");
    memory.shmem = of("shmem");
    memory.file_mapped = of("file_mapped");
    memory.file_dirty = of("file_dirty");
    memory.file_writeback = of("file_writeback");
    memory.anon_thp = of("anon_thp");
    memory.inactive_anon = of("inactive_anon");
    memory.active_anon = of("active_anon");
    memory.inactive_file = of("inactive_file");
    memory.active_file = of("active_file");
    memory.unevictable = of("unevictable");
    memory.slab_reclaimable = of("slab_reclaimable");
    memory.slab_unreclaimable = of("slab_unreclaimable");
    memory.pgfault = of("pgfault");
    memory.pgmajfault = of("pgmajfault");
    // Since Linux 5.9 these two are told apart by kind of page.
    memory.workingset_refault = of("workingset_refault_anon").saturating_add(of("workingset_refault_file"));
    memory.workingset_activate =
        of("workingset_activate_anon").saturating_add(of("workingset_activate_file"));
    memory.workingset_nodereclaim = of("workingset_nodereclaim");
    memory.pgrefill = of("pgrefill");
    memory.pgscan = of("pgscan");
    memory.pgsteal = of("pgsteal");
    memory.pgactivate = of("pgactivate");
    memory.pgdeactivate = of("pgdeactivate");
    memory.pglazyfree = of("pglazyfree");
    memory.pglazyfreed = of("pglazyfreed");
    memory.thp_fault_alloc = of("thp_fault_alloc");
    memory.thp_collapse_alloc = of("thp_collapse_alloc");
    memory.usage = stats.usage;
    memory.usage_limit = stats.usage_limit;
    memory.max_usage = stats.max_usage;
    memory.swap_usage = stats.swap_usage;
    memory.swap_limit = stats.swap_limit;
    memory.psi = pressure(stats.pressure);
    memory
}

fn memory_events(stats: &agent::MemoryStats) -> MemoryEvents {
    let of = |name: &str| stats.events.get(name).copied().unwrap_or(0);
    let mut events = MemoryEvents::new();
    events.low = of("low");
    events.high = of("high");
    events.max = of("max");
    events.oom = of("oom");
    events.oom_kill = of("oom_kill");
    events.oom_group_kill = of("oom_group_kill");
    events
}

fn io_entry(stats: agent::IoEntry) -> IOEntry {
    let mut entry = IOEntry::new();
    entry.major = stats.major;
    entry.minor = stats.minor;
    entry.rbytes = stats.rbytes;
    entry.wbytes = stats.wbytes;
    entry.rios = stats.rios;
    entry.wios = stats.wios;
    entry
}

fn hugetlb(stats: agent::HugetlbStats) -> HugeTlbStat {
    let mut entry = HugeTlbStat::new();
    entry.current = stats.current;
    entry.max = stats.max;
    entry.pagesize = stats.page_size;
    entry.failcnt = stats.failcnt;
    entry
}

fn network(stats: agent::InterfaceStats) -> NetworkStat {
    let mut entry = NetworkStat::new();
    entry.name = stats.name;
    entry.rx_bytes = stats.rx_bytes;
    entry.rx_packets = stats.rx_packets;
    entry.rx_errors = stats.rx_errors;
    entry.rx_dropped = stats.rx_dropped;
    entry.tx_bytes = stats.tx_bytes;
    entry.tx_packets = stats.tx_packets;
    entry.tx_errors = stats.tx_errors;
    entry.tx_dropped = stats.tx_dropped;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_arrive_under_the_name_that_containerds_clients_know() {
        let mut stats = agent::ContainerStatsResponse::new();
        let mut memory = agent::MemoryStats::new();
        memory.usage = 7;
        memory.usage_limit = u64::MAX;
        memory.stat.insert("anon".to_owned(), 5);
        memory.stat.insert("workingset_refault_anon".to_owned(), u64::MAX);
        memory.stat.insert("workingset_refault_file".to_owned(), 2);
        memory.events.insert("oom_kill".to_owned(), 3);
        stats.memory = Some(memory).into();
        let mut cpu = agent::CpuStats::new();
        cpu.usage_usec = 11;
        let mut pressure = agent::Pressure::new();
        let mut line = agent::PressureLine::new();
        line.total_usec = 13;
        pressure.some = Some(line).into();
        cpu.pressure = Some(pressure).into();
        stats.cpu = Some(cpu).into();
        let mut pids = agent::PidsStats::new();
        pids.current = 2;
        pids.limit = u64::MAX;
        stats.pids = Some(pids).into();

        let any = any(stats).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.memory.usage, metrics.memory.anon), (7, 5));
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!(metrics.memory.workingset_refault, u64::MAX);
        assert_eq!(metrics.memory_events.oom_kill, 3);
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.psi.some.total), (11, 13));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (2, 0));
        assert!(metrics.rdma.is_none());
    }

    #[test]
    fn a_pods_figures_are_the_sum_of_its_containers() {
        let one = |usage, anon| {
            let mut stats = agent::ContainerStatsResponse::new();
            stats.cpu.mut_or_insert_default().usage_usec = usage;
            let memory = stats.memory.mut_or_insert_default();
            memory.usage = usage;
            memory.stat.insert("anon".to_owned(), anon);
            stats.pids.mut_or_insert_default().current = 1;
            stats
        };
        let sum = sum([one(1, 10), one(2, u64::MAX)]);
        assert_eq!(
            (sum.cpu.usage_usec, sum.memory.usage, sum.pids.current),
            (3, 3, 2)
        );
        assert_eq!(sum.memory.stat["anon"], u64::MAX);
    }
}
