//! Whether what became of a specification is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use sealock_tests::mutation::{first_word, names};
use serde_json::Value;

use super::pod::{Outcome, Ran};

/// Errors that don't begin with a field: the words of other runtimes, and what may have another reason.
const CLEAR: [&str; 3] = [
    "executable file not found in $PATH",
    // A filter does not let it, or its arguments are too long.
    "exec /bin/sh: ",
    "is linux.resources.memory.limit too small?",
];

/// More than this nobody reads, in characters.
const LONGEST: usize = 2048;

/// What is wrong with `outcome` of `spec`, which was `base` before it was changed.
pub fn complaint(base: &Value, spec: &Value, outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Refused(words) => complaint_of_refusal(base, spec, words),
        Outcome::Ran(ran) => Comparison { base, spec }.complaint(ran),
    }
}

fn complaint_of_refusal(base: &Value, spec: &Value, words: &str) -> Option<String> {
    if words.chars().count() > LONGEST || words.chars().any(char::is_control) {
        return Some("the error is not a line to be read".to_owned());
    }
    let field = first_word(words.strip_prefix("the pod did not start: ").unwrap_or(words));
    let known = [names(base), names(spec)].concat();
    let named = known.iter().any(|name| name == field);
    let clear = CLEAR.iter().any(|clear| words.contains(clear));
    (!named && !clear).then(|| "no field is named".to_owned())
}

/// What a container printed.
#[derive(Default)]
struct Printed {
    /// Lines, those of files after the file's path, each word after one space.
    lines: BTreeSet<String>,
    /// Its mounts: the first option by the place.
    mounts: BTreeMap<String, String>,
}

impl Printed {
    fn of(output: &str) -> Self {
        let mut printed = Self::default();
        let mut file = "";
        for line in output.lines() {
            // As head(1) separates files.
            let header = line
                .strip_prefix("==> ")
                .and_then(|line| line.strip_suffix(" <=="));
            file = header.unwrap_or(file);
            let words: Vec<_> = line.split_whitespace().collect();
            if let ("/proc/self/mounts", [_, place, _, options, ..]) = (file, &words[..]) {
                let first = options.split(',').next().unwrap_or_default();
                printed.mounts.insert((*place).to_owned(), first.to_owned());
            }
            printed
                .lines
                .insert([&[file], &words[..]].concat().join(" ").trim().to_owned());
        }
        printed
    }
}

struct Comparison<'a> {
    base: &'a Value,
    spec: &'a Value,
}

impl Comparison<'_> {
    fn complaint(&self, ran: &Ran) -> Option<String> {
        // Whatever another program does is right, and one that may not call the kernel.
        if !self.same("/process/args") || !self.same("/linux/seccomp") {
            return None;
        }
        let complete = self.same_mount("/proc") && self.same_mount("/sys/fs/cgroup");
        if ran.killed || ran.status > u32::from(!complete) {
            return Some("it did not end well".to_owned());
        }
        let printed = Printed::of(&ran.output);
        let mut expected = self.expected_anyway();
        if self.same_mount("/proc") {
            expected.extend(self.expected_of_proc());
            let places = self
                .items("/mounts")
                .filter_map(|mount| mount["destination"].as_str());
            for place in places.filter(|place| is_plain(place)) {
                if !printed.mounts.contains_key(place) {
                    return Some(format!("nothing is mounted at {place:?}"));
                }
            }
            let readonly = self.spec.pointer("/root/readonly") == Some(&Value::Bool(true));
            if printed.mounts.get("/").map(String::as_str) != Some(if readonly { "ro" } else { "rw" }) {
                return Some("the root is not as read-only as it should be".to_owned());
            }
        }
        if complete && self.same("/linux/namespaces") {
            expected.extend(self.expected_of_cgroup());
        }
        let missing: Vec<_> = expected
            .iter()
            .filter(|&line| !printed.lines.contains(line))
            .collect();
        (!missing.is_empty()).then(|| format!("it did not print {missing:?}"))
    }

    fn same(&self, pointer: &str) -> bool {
        self.base.pointer(pointer) == self.spec.pointer(pointer)
    }

    /// Whether the same is mounted at a place and on the way to it.
    fn same_mount(&self, place: &str) -> bool {
        let on_the_way = |spec: &Value| {
            let mounts = spec["mounts"].as_array();
            let above = |mount: &Value| {
                let destination = mount["destination"].as_str();
                destination.is_some_and(|destination| Path::new(place).starts_with(destination))
            };
            let mounts = mounts.into_iter().flatten().filter(|mount| above(mount));
            mounts.cloned().collect::<Vec<_>>()
        };
        on_the_way(self.base) == on_the_way(self.spec)
    }

    fn number(&self, pointer: &str) -> Option<i64> {
        self.spec.pointer(pointer)?.as_i64()
    }

    fn items(&self, pointer: &str) -> impl Iterator<Item = &Value> {
        let list = self.spec.pointer(pointer).and_then(Value::as_array);
        list.into_iter().flatten()
    }

    fn expected_anyway(&self) -> Vec<String> {
        let mut env = self.items("/process/env").filter_map(Value::as_str);
        let port = env.find_map(|item| item.strip_prefix("KUBERNETES_SERVICE_PORT="));
        let mut lines = vec![format!("port {}", port.unwrap_or_default()).trim().to_owned()];
        let limits = self.items("/process/rlimits");
        lines.extend(
            limits
                .filter(|limit| limit["type"] == "RLIMIT_NOFILE")
                .map(|limit| format!("nofile {}", limit["soft"])),
        );
        let cwd = self.spec.pointer("/process/cwd").and_then(Value::as_str);
        lines.extend(cwd.map(|cwd| format!("cwd {cwd}")));
        lines
    }

    fn expected_of_proc(&self) -> Vec<String> {
        let status = |line: String| format!("/proc/self/status {line}").trim_end().to_owned();
        let mut lines = Vec::new();
        for (name, field) in [("Uid", "/process/user/uid"), ("Gid", "/process/user/gid")] {
            let id = self.number(field).unwrap_or(0);
            lines.push(status(format!("{name}: {id} {id} {id} {id}")));
        }
        let mut groups: Vec<_> = self
            .items("/process/user/additionalGids")
            .filter_map(Value::as_u64)
            .collect();
        groups.sort_unstable();
        let groups: Vec<_> = groups.iter().map(u64::to_string).collect();
        lines.push(status(format!("Groups: {}", groups.join(" "))));
        let locked = self.spec.pointer("/process/noNewPrivileges") == Some(&Value::Bool(true));
        lines.push(status(format!("NoNewPrivs: {}", u8::from(locked))));
        let score = self.number("/process/oomScoreAdj");
        lines.extend(score.map(|score| format!("/proc/self/oom_score_adj {score}")));
        let name = self.spec.pointer("/hostname").and_then(Value::as_str);
        lines.extend(
            name.filter(|name| !name.is_empty())
                .map(|name| format!("/proc/sys/kernel/hostname {name}")),
        );
        lines
    }

    fn expected_of_cgroup(&self) -> Vec<String> {
        let limits = [
            ("pids.max", "/linux/resources/pids/limit"),
            ("memory.max", "/linux/resources/memory/limit"),
        ];
        let line = |(file, field): (&str, &str)| match self.number(field) {
            Some(limit @ 1..) => format!("/sys/fs/cgroup/{file} {limit}"),
            _ => format!("/sys/fs/cgroup/{file} max"),
        };
        // Only what runs below a mount of them prints them.
        let mounted = self
            .items("/mounts")
            .any(|mount| mount["destination"] == "/sys/fs/cgroup");
        limits.into_iter().filter(|_| mounted).map(line).collect()
    }
}

/// Whether a path is one that the kernel would tell as it is written.
fn is_plain(path: &str) -> bool {
    path.starts_with('/')
        && path.split('/').skip(1).all(|part| {
            let mut bytes = part.bytes();
            !part.is_empty() && !part.starts_with("..") && bytes.all(|byte| byte.is_ascii_graphic())
        })
}
