//! Lists of processors: `process.execCPUAffinity` and `linux.resources.cpu.cpus`.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// Processors as the host numbers them, in the list format of cpuset(7): `0-3,7`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuList(BTreeSet<u16>);

impl CpuList {
    /// Takes the field `name`; `None` when it is absent or empty.
    ///
    /// # Errors
    /// It is no such list.
    pub fn take(object: &mut Object, name: &str) -> Result<Option<Self>, SpecError> {
        let Some(text) = object.take_text(name)? else {
            return Ok(None);
        };
        Self::parse(&text).map(Some).ok_or_else(|| {
            SpecError::invalid(
                object.field(name),
                format!("{text:?} is not a list of processors like 0-3,7"),
            )
        })
    }

    /// Reads the list format; `None` when it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut all = BTreeSet::new();
        for part in text.trim().split(',') {
            let part = part.trim();
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u16, u16) = (number(first)?, number(last)?);
            if first > last {
                return None;
            }
            all.extend(first..=last);
        }
        Some(Self(all))
    }

    /// As many of the guest's processors, of which there are `count`, or all of them. The numbers of the host mean nothing
    /// in the guest, but those that the guest has, too, are kept, and different ones stay different as far as possible: each is
    /// taken modulo the guest's count, or the next that is free.
    pub fn in_guest(&self, count: u16) -> Self {
        let count = count.max(1);
        let mut taken = BTreeSet::new();
        for host in &self.0 {
            let wanted = host % count;
            let free = (wanted..count).chain(0..wanted).find(|cpu| !taken.contains(cpu));
            match free {
                Some(cpu) => taken.insert(cpu),
                None => break,
            };
        }
        Self(taken)
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

fn number(text: &str) -> Option<u16> {
    // `parse` would take a sign.
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|&next| next == last + 1) {
                last = next;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// Where a process that joins a container runs. It counts for such processes only: of a container's first one it is read and
/// checked, and that is all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecAffinity {
    /// Before it is one of the container's.
    pub initial: Option<CpuList>,
    /// From then on.
    pub last: Option<CpuList>,
}

impl ExecAffinity {
    /// Reads `process.execCPUAffinity`.
    ///
    /// # Errors
    /// A list that is none.
    pub fn parse(process: &mut Object) -> Result<Self, SpecError> {
        let Some(mut affinity) = process.object("execCPUAffinity")? else {
            return Ok(Self::default());
        };
        let parsed = Self {
            initial: CpuList::take(&mut affinity, "initial")?,
            last: CpuList::take(&mut affinity, "final")?,
        };
        affinity.finish()?;
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_guest(list: &str, count: u16) -> String {
        CpuList::parse(list).unwrap().in_guest(count).to_string()
    }

    #[test]
    fn the_list_format_is_understood() {
        for (text, canonical) in [("0", "0"), ("0-3,7", "0-3,7"), ("3, 1,2", "1-3"), ("5-5", "5")] {
            assert_eq!(CpuList::parse(text).unwrap().to_string(), canonical);
        }
        for text in ["", "a", "1-", "3-1", "-1", "+1", "1,,2", "65536", "0-3:1/2"] {
            assert_eq!(CpuList::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_hosts_processors_become_as_many_of_the_guests() {
        assert_eq!(in_guest("0-1", 4), "0-1");
        assert_eq!(in_guest("4-5", 2), "0-1");
        assert_eq!(in_guest("4,6", 2), "0-1");
        assert_eq!(in_guest("4", 2), "0");
        assert_eq!(in_guest("5", 2), "1");
        assert_eq!(in_guest("0-65535", 3), "0-2");
        assert_eq!(in_guest("7", 0), "0");
    }

    #[test]
    fn an_affinity_that_is_no_list_is_named() {
        let mut spec =
            Object::parse(br#"{"process":{"execCPUAffinity":{"initial":"0","final":"1-"}}}"#).unwrap();
        assert_eq!(
            ExecAffinity::parse(&mut spec.object("process").unwrap().unwrap())
                .unwrap_err()
                .to_string(),
            r#"process.execCPUAffinity.final: "1-" is not a list of processors like 0-3,7"#
        );
    }
}
