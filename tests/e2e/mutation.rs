//! Broken `config.json` files, given to shims themselves: each is a container that is as its specification says, or an error that names
//! the field, and nothing is left of it.

mod pod;
mod right;

use std::{fs, path::Path, time::Duration};

use sealock_tests::{
    cni::Namespace,
    ctr::fresh_id,
    host::Leavings,
    mutation::{Variant, fields, pause, plain_container, variant},
};
use serde_json::Value;

use self::{
    pod::{Neighbour, Outcome, Pod, container_of},
    right::complaint,
};
use crate::Host;

/// More than the two thousand take on a slow machine.
const LONGEST: Duration = Duration::from_secs(3 * 3600);

/// What came of variants.
#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    ran: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, change: &str, base: &Value, spec: &Value, outcome: &Outcome) {
        match outcome {
            Outcome::Refused(_) => self.refused += 1,
            Outcome::Ran(_) => self.ran += 1,
        }
        if let Some(complaint) = complaint(base, spec, outcome) {
            let wrong = format!("{change}: {complaint}: {outcome:?}");
            // Each as soon as it is known: the whole takes long.
            eprintln!("{wrong}");
            self.wrong.push(wrong);
        }
    }

    fn add_variant(&mut self, base: &Value, variant: &Variant, outcome: &Outcome) {
        self.add(&variant.change, base, &variant.spec, outcome);
    }

    fn assert_right(self) {
        eprintln!("{} refused, {} ran", self.refused, self.ran);
        assert!(
            self.wrong.is_empty(),
            "{} are wrong: {:#?}",
            self.wrong.len(),
            self.wrong
        );
    }
}

/// Gives one pod so many variants of a container as Kubernetes asks for, and of one with more fields, one after the other.
fn try_in_a_pod(how_many: impl Fn(&Value) -> u64) {
    /// How many variants there are between looks at all of the host, which take long.
    const BETWEEN: u64 = 10;
    /// What the guest's kernel may have more of, for a while.
    const THREADS: u64 = 16;
    /// In KiB: the caches and counters of a kernel that has memory to spare, and those of its cgroups which they keep from ending.
    const MEMORY_OF_EACH: u64 = 24;
    let host = Host::take_for(LONGEST);
    let id = fresh_id();
    let netns = Namespace::new(&id);
    let pod = Pod::start(&id, &pause(&id, &netns.path())).expect("this one is whole");
    let bases = [container_of(&pod), plain_container("rootfs")];
    let mut neighbour = Neighbour::start(&pod, &bases[0]);
    let mut tally = Tally::default();
    for base in &bases {
        tally.add("nothing changed", base, base, &pod.try_out(base));
    }
    let (in_guest, on_host, shared) = (neighbour.look(), Leavings::now(), pod.shared());
    let mut last = in_guest.clone();
    for base in &bases {
        for number in 0..how_many(base) {
            let variant = variant(base, number);
            let outcome = pod.try_out(&variant.spec);
            tally.add_variant(base, &variant, &outcome);
            last = neighbour.look();
            assert_eq!(pod.shared(), shared, "{}", variant.change);
            assert_eq!(last.cgroups, in_guest.cgroups, "{}", variant.change);
            if number % BETWEEN == 0 {
                on_host.assert_gone();
            }
        }
    }
    for base in &bases {
        tally.add("nothing changed, at the end", base, base, &pod.try_out(base));
    }
    let tried = (tally.refused + tally.ran) as u64;
    assert!(
        last.threads <= in_guest.threads + THREADS
            && last.available + tried * MEMORY_OF_EACH > in_guest.available,
        "the guest had {in_guest:?}, and has {last:?}"
    );
    let log = pod.log();
    assert!(!log.contains("panicked"), "{log}");
    neighbour.end();
    pod.end();
    drop(netns);
    tally.assert_right();
    host.assert_clean();
}

/// Makes pods, one after the other, of every variant whose number is a multiple of `step`: of a container by itself, and of a pod's own
/// container.
fn try_as_pods(step: usize) {
    let host = Host::take_for(LONGEST);
    let id = fresh_id();
    let netns = Namespace::new(&id);
    let before = Leavings::now();
    let mut tally = Tally::default();
    let container = plain_container("rootfs");
    for number in (0..fields(&container)).step_by(step) {
        let variant = variant(&container, number);
        tally.add_variant(&container, &variant, &Pod::try_alone(&id, &variant.spec));
        remove_cgroups_above(&variant.spec);
        before.assert_gone();
    }
    let own = pause(&id, &netns.path());
    for number in (0..fields(&own)).step_by(step) {
        let variant = variant(&own, number);
        match Pod::start(&id, &variant.spec) {
            // It has no program that could tell what it is like.
            Ok(pod) => {
                pod.end();
                tally.ran += 1;
            }
            Err(refused) => tally.add_variant(&own, &variant, &refused),
        }
        remove_cgroups_above(&variant.spec);
        before.assert_gone();
    }
    drop(netns);
    tally.assert_right();
    host.assert_clean();
}

/// Those on the way to a pod's cgroup may be others' as well: they stay, as under other runtimes.
fn remove_cgroups_above(spec: &Value) {
    const HIERARCHY: &str = "/sys/fs/cgroup";
    /// Of the containers that made the host what each test finds.
    const THERE_BEFORE: &str = "/sys/fs/cgroup/default";
    let path = spec.pointer("/linux/cgroupsPath").and_then(Value::as_str);
    let Some(path) = path.filter(|path| !path.contains("..")) else {
        return;
    };
    let place = Path::new(HIERARCHY).join(path.trim_start_matches('/'));
    let above = place.ancestors().skip(1);
    let is_kept = |place: &Path| place == Path::new(HIERARCHY) || place == Path::new(THERE_BEFORE);
    for cgroup in above.take_while(|place| !is_kept(place)) {
        // It may not be there, or have others in it.
        let _ = fs::remove_dir(cgroup);
    }
}

#[test]
fn a_container_with_any_field_broken_is_right_or_refused_by_the_fields_name() {
    try_in_a_pod(fields);
}

#[test]
#[ignore = "takes long: scripts/test --full"]
fn two_thousand_broken_containers_are_right_or_refused_by_the_fields_name() {
    try_in_a_pod(|_| 1000);
}

#[test]
fn a_pod_with_a_field_broken_is_right_or_refused_by_the_fields_name() {
    try_as_pods(13);
}

#[test]
#[ignore = "takes long: scripts/test --full"]
fn a_pod_with_any_field_broken_is_right_or_refused_by_the_fields_name() {
    try_as_pods(1);
}
