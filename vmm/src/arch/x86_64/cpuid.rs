//! What CPUID tells the guest: the host's processor as KVM can offer it, with the pod's own number of CPUs, one thread a
//! core, without nested virtualization and performance counters.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// CPUID for the processor whose APIC id is `id`, of `vcpus` in all, made from what KVM supports.
///
/// `None` when there are more leaves than KVM takes.
#[must_use]
pub fn for_processor(supported: &CpuId, id: u8, vcpus: u8) -> Option<CpuId> {
    let entries = entries(supported.as_slice(), Topology::new(id, vcpus));
    CpuId::from_entries(&entries).ok()
}

/// One socket with a core for each CPU.
#[derive(Clone, Copy)]
struct Topology {
    id: u32,
    vcpus: u32,
    /// The bits of an APIC id that number the cores.
    id_bits: u32,
}

impl Topology {
    fn new(id: u8, vcpus: u8) -> Self {
        let vcpus = u32::from(vcpus.max(1));
        Self {
            id: u32::from(id),
            vcpus,
            id_bits: vcpus.next_power_of_two().trailing_zeros(),
        }
    }

    /// The APIC ids reserved for the socket, less one.
    fn last_id(self) -> u32 {
        (1 << self.id_bits) - 1
    }
}

fn bit(number: u32) -> u32 {
    1 << number
}

fn field(register: &mut u32, shift: u32, bits: u32, value: u32) {
    let mask = ((1 << bits) - 1) << shift;
    *register = *register & !mask | value << shift & mask;
}

fn entries(supported: &[kvm_cpuid_entry2], topology: Topology) -> Vec<kvm_cpuid_entry2> {
    let highest = supported
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    let mut entries: Vec<_> = supported
        .iter()
        // Topology and V2 topology are written anew.
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .copied()
        .map(|mut entry| {
            adjust(&mut entry, topology);
            entry
        })
        .collect();
    if highest >= 0xb {
        entries.extend(extended_topology(topology));
    }
    entries
}

/// Leaf 0xb (Intel SDM, volume 2, CPUID): threads, then cores.
fn extended_topology(topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: topology.id,
        ..Default::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, topology.id_bits, topology.vcpus, 2),
        level(2, 0, 0, 0),
    ]
}

fn adjust(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let clear = |entry: &mut kvm_cpuid_entry2| {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
    };
    match entry.function {
        1 => {
            field(&mut entry.ebx, 24, 8, topology.id);
            field(&mut entry.ebx, 16, 8, topology.last_id() + 1);
            // VMX, performance capabilities.
            entry.ecx &= !(bit(5) | bit(15));
            // TSC deadline timer, which KVM has but doesn't list, and "this is a hypervisor's guest".
            entry.ecx |= bit(24) | bit(31);
            // Several logical processors in the package.
            field(&mut entry.edx, 28, 1, u32::from(topology.vcpus > 1));
        }
        // Intel's caches; a leaf of all zeroes ends the list.
        4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            field(
                &mut entry.eax,
                14,
                12,
                if level >= 3 { topology.last_id() } else { 0 },
            );
            field(&mut entry.eax, 26, 6, topology.last_id().min(63));
        }
        // Performance counters (architectural, last branch records, AMD's), processor trace, SGX, SVM, and AMD's
        // instruction based sampling: none are offered.
        0xa | 0x12 | 0x14 | 0x1c | 0x8000_000a | 0x8000_001b | 0x8000_0022 => clear(entry),
        0x8000_0001 => {
            // SVM, extended counters of core, north bridge and last-level cache.
            entry.ecx &= !(bit(2) | bit(23) | bit(24) | bit(28));
            // AMD: cores, not threads, share the package.
            if entry.ecx & bit(22) != 0 {
                field(&mut entry.ecx, 1, 1, u32::from(topology.vcpus > 1));
            }
        }
        0x8000_0008 => {
            field(&mut entry.ecx, 0, 8, topology.vcpus - 1);
            field(&mut entry.ecx, 12, 4, topology.id_bits);
        }
        // AMD's caches.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            field(
                &mut entry.eax,
                14,
                12,
                if level >= 3 { topology.last_id() } else { 0 },
            );
        }
        // AMD: extended APIC id, core id with one thread each, node 0 of one.
        0x8000_001e => {
            entry.eax = topology.id;
            entry.ebx = topology.id & 0xff;
            entry.ecx = 0;
            entry.edx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    #[test]
    fn every_processor_has_its_own_apic_id_in_every_leaf() {
        let supported = [
            leaf(0, 0x1f, 0, 0, 0),
            leaf(1, 0, 0x77ff_0000, 0, 0),
            leaf(0x8000_001e, 9, 9, 9, 9),
        ];
        let entries = entries(&supported, Topology::new(5, 6));
        assert_eq!(find(&entries, 1, 0).ebx >> 24, 5);
        assert_eq!(find(&entries, 1, 0).ebx >> 16 & 0xff, 8);
        assert_eq!(find(&entries, 0xb, 0).edx, 5);
        assert_eq!(find(&entries, 0xb, 1).eax, 3);
        assert_eq!(find(&entries, 0xb, 1).ebx, 6);
        assert_eq!(find(&entries, 0x8000_001e, 0).eax, 5);
    }

    #[test]
    fn nested_virtualization_and_counters_are_not_offered() {
        let all = u32::MAX;
        let supported = [
            leaf(0, 0x1f, 0, 0, 0),
            leaf(1, 0, 0, all, all),
            leaf(0xa, all, all, all, all),
            leaf(0x8000_0001, all, all, all, all),
            leaf(0x8000_000a, all, all, all, all),
        ];
        let entries = entries(&supported, Topology::new(0, 1));
        assert_eq!(find(&entries, 1, 0).ecx & bit(5), 0);
        assert_eq!(find(&entries, 0xa, 0), leaf(0xa, 0, 0, 0, 0));
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & bit(2), 0);
        assert_eq!(find(&entries, 0x8000_000a, 0), leaf(0x8000_000a, 0, 0, 0, 0));
    }

    #[test]
    fn the_deadline_timer_and_the_hypervisor_are_announced() {
        let entries = entries(&[leaf(1, 0, 0, 0, 0)], Topology::new(0, 1));
        let features = find(&entries, 1, 0).ecx;
        assert_ne!(features & bit(24), 0);
        assert_ne!(features & bit(31), 0);
    }

    #[test]
    fn a_processor_without_the_topology_leaf_gets_none() {
        let entries = entries(&[leaf(0, 4, 0, 0, 0)], Topology::new(0, 2));
        assert!(entries.iter().all(|entry| entry.function != 0xb));
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let supported = [leaf(4, 0xfc00_4121, 0, 0, 0), leaf(4, 0xfc07_c163, 0, 0, 0)];
        let entries = entries(&supported, Topology::new(0, 4));
        assert_eq!(entries[0].eax >> 14 & 0xfff, 0);
        assert_eq!(entries[1].eax >> 14 & 0xfff, 3);
        assert_eq!(entries[1].eax >> 26, 3);
    }
}
