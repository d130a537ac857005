//! Who is who on a mount whose ids are mapped (mount_setattr(2), `MOUNT_ATTR_IDMAP`).

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
};

use nix::{
    sched::CloneFlags,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{Pid, getpid},
};
use serde_json::{Map, Value};

/// A range of ids (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Range {
    /// The first id in the file system.
    inside: u32,
    /// What it is through the mount.
    outside: u32,
    /// How many there are.
    size: u32,
}

/// The most ranges that the kernel takes (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_RANGES: usize = 340;

/// Both kinds of ids. Whether ranges overlap is for the kernel to say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdMap {
    users: Vec<Range>,
    groups: Vec<Range>,
}

impl IdMap {
    /// Reads `uidMappings` and `gidMappings` (config.md, "Mounts", and config-linux.md, "User namespace mappings"); `None`
    /// when there is neither.
    ///
    /// # Errors
    /// The name of the field that is missing or none.
    pub fn of_spec(object: &Map<String, Value>) -> Result<Option<Self>, &'static str> {
        let read = |name: &'static str| match object.get(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(list) => ranges_of_spec(list).ok_or(name),
        };
        let (users, groups) = (read("uidMappings")?, read("gidMappings")?);
        match (users.is_empty(), groups.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Ok(Some(Self { users, groups })),
            (true, false) => Err("uidMappings"),
            (false, true) => Err("gidMappings"),
        }
    }

    /// Reads the values of containerd's mount options `uidmap` and `gidmap`: `INSIDE:OUTSIDE:SIZE`, separated by commas.
    #[must_use]
    pub fn of_options(users: &str, groups: &str) -> Option<Self> {
        Some(Self {
            users: ranges_of_option(users)?,
            groups: ranges_of_option(groups)?,
        })
    }

    /// A user namespace with these mappings, in which no process is.
    ///
    /// # Errors
    /// The kernel refuses a range, or has no namespace or process to spare.
    pub fn namespace(&self) -> io::Result<OwnedFd> {
        let parent = getpid();
        let wait = move || -> isize {
            // SAFETY: calls of the kernel alone, in a process that is a copy of one thread of this one.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // From here on it ends with the thread that began it.
                while libc::getppid() == parent.as_raw() {
                    libc::pause();
                }
            }
            0
        };
        let mut stack = vec![0; 64 << 10];
        // SAFETY: the new process has a copy of this one's memory, and does nothing in it but to wait.
        let pid = unsafe {
            nix::sched::clone(
                Box::new(wait),
                &mut stack,
                CloneFlags::CLONE_NEWUSER,
                Some(libc::SIGCHLD),
            )
        }?;
        let made = self.write(pid);
        kill(pid, Signal::SIGKILL)?;
        waitpid(pid, None)?;
        made
    }

    fn write(&self, pid: Pid) -> io::Result<OwnedFd> {
        for (name, ranges) in [("uid_map", &self.users), ("gid_map", &self.groups)] {
            let text: String = ranges
                .iter()
                .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.size))
                .collect();
            // One write: the kernel takes what comes with it for all there is.
            File::options()
                .write(true)
                .open(format!("/proc/{pid}/{name}"))?
                .write_all(text.as_bytes())?;
        }
        File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
    }
}

fn ranges_of_spec(list: &Value) -> Option<Vec<Range>> {
    let list = list.as_array().filter(|list| list.len() <= MAX_RANGES)?;
    list.iter()
        .map(|range| {
            let number = |name| match range.get(name) {
                None => Some(0),
                Some(number) => u32::try_from(number.as_u64()?).ok(),
            };
            range.as_object()?;
            Some(Range {
                inside: number("containerID")?,
                outside: number("hostID")?,
                size: number("size").filter(|size| *size > 0)?,
            })
        })
        .collect()
}

fn ranges_of_option(value: &str) -> Option<Vec<Range>> {
    let ranges: Vec<&str> = value.split(',').take(MAX_RANGES + 1).collect();
    if ranges.len() > MAX_RANGES {
        return None;
    }
    ranges
        .into_iter()
        .map(|range| {
            let mut numbers = range.split(':').map(|number| number.parse().ok());
            let range = Range {
                inside: numbers.next()??,
                outside: numbers.next()??,
                size: numbers.next()??,
            };
            (numbers.next().is_none() && range.size > 0).then_some(range)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_ways_of_writing_say_the_same() {
        let ranges = json!([
            {"containerID": 0, "hostID": 1000, "size": 10},
            {"containerID": 10, "hostID": 5, "size": 1},
        ]);
        let spec = json!({"uidMappings": ranges, "gidMappings": [ranges[0]]});
        let read = IdMap::of_spec(spec.as_object().unwrap()).unwrap();
        assert_eq!(read, IdMap::of_options("0:1000:10,10:5:1", "0:1000:10"));
        assert!(read.is_some());
        assert_eq!(IdMap::of_spec(json!({}).as_object().unwrap()), Ok(None));
    }

    #[test]
    fn what_is_no_mapping_is_told() {
        let good = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
        for (spec, field) in [
            (json!({"uidMappings": good}), "gidMappings"),
            (json!({"gidMappings": good}), "uidMappings"),
            (
                json!({"uidMappings": [{"size": 0}], "gidMappings": good}),
                "uidMappings",
            ),
            (json!({"uidMappings": good, "gidMappings": "x"}), "gidMappings"),
            (
                json!({"uidMappings": good, "gidMappings": [{"size": 1_u64 << 40}]}),
                "gidMappings",
            ),
            (
                json!({"uidMappings": vec![&good[0]; 341], "gidMappings": good}),
                "uidMappings",
            ),
        ] {
            assert_eq!(IdMap::of_spec(spec.as_object().unwrap()), Err(field));
        }
        for option in ["", "0", "0:0", "0:0:0", "0:0:1:0", "0:-1:1", "0:0:1,"] {
            assert_eq!(IdMap::of_options(option, "0:0:1"), None, "{option}");
        }
    }

    #[test]
    fn a_namespace_has_the_mappings_and_no_process() {
        let children = || {
            let path = format!("/proc/self/task/{}/children", nix::unistd::gettid());
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let before = children();
        let map = IdMap::of_options("0:100000:65536", "0:100000:1000").unwrap();
        map.namespace().expect("this test needs root");
        assert_eq!(children(), before);
        // The kernel's word.
        let twice = IdMap::of_options("0:0:10,5:100:10", "0:0:1").unwrap();
        assert_eq!(twice.namespace().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(children(), before);
    }
}
