//! `uidMappings` and `gidMappings`, of `linux` and of mounts.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// A range of ids (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// The first id inside.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many there are; at least one.
    pub size: u32,
}

/// Both kinds of ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    /// Users.
    pub users: Vec<IdMapping>,
    /// Groups.
    pub groups: Vec<IdMapping>,
}

/// The most ranges that the kernel takes (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_RANGES: usize = 340;

impl IdMappings {
    /// Reads both lists of an object; `None` when there is neither.
    ///
    /// # Errors
    /// One list without the other, or a range that is none.
    pub fn parse(object: &mut Object) -> Result<Option<Self>, SpecError> {
        let parsed = Self {
            users: ranges(object, "uidMappings")?,
            groups: ranges(object, "gidMappings")?,
        };
        match (parsed.users.is_empty(), parsed.groups.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Ok(Some(parsed)),
            (true, false) => Err(SpecError::invalid(
                object.field("uidMappings"),
                "is missing beside gidMappings",
            )),
            (false, true) => Err(SpecError::invalid(
                object.field("gidMappings"),
                "is missing beside uidMappings",
            )),
        }
    }
}

fn ranges(object: &mut Object, name: &str) -> Result<Vec<IdMapping>, SpecError> {
    let items = object.objects(name)?;
    if items.len() > MAX_RANGES {
        return Err(SpecError::invalid(
            object.field(name),
            format!("more than {MAX_RANGES} ranges"),
        ));
    }
    let mut all: Vec<IdMapping> = Vec::with_capacity(items.len());
    for mut item in items {
        let range = IdMapping {
            inside: item.take_or_default("containerID")?,
            outside: item.take_or_default("hostID")?,
            size: item.take_or_default("size")?,
        };
        // The largest number is no id.
        let fits = |first: u32| first.checked_add(range.size).is_some();
        if range.size == 0 || !fits(range.inside) || !fits(range.outside) {
            return Err(SpecError::invalid(item.path(), "is not a range of ids"));
        }
        let meets = |one: u32, one_size: u32, other: u32| {
            one < other.saturating_add(range.size) && other < one.saturating_add(one_size)
        };
        if all.iter().any(|one| {
            meets(one.inside, one.size, range.inside) || meets(one.outside, one.size, range.outside)
        }) {
            return Err(SpecError::invalid(item.path(), "overlaps an earlier range"));
        }
        item.finish()?;
        all.push(range);
    }
    Ok(all)
}

/// As `/proc/PID/uid_map` takes it.
pub fn map_text(ranges: &[IdMapping]) -> String {
    ranges
        .iter()
        .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.size))
        .collect()
}

/// What the id `inside` is outside.
pub fn to_outside(ranges: &[IdMapping], inside: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = inside
            .checked_sub(range.inside)
            .filter(|offset| *offset < range.size)?;
        range.outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(users: &str, groups: &str) -> Result<Option<IdMappings>, SpecError> {
        let text = format!(r#"{{"uidMappings":{users},"gidMappings":{groups}}}"#);
        IdMappings::parse(&mut Object::parse(text.as_bytes()).unwrap())
    }

    const RANGE: &str = r#"[{"containerID":0,"hostID":1000,"size":10}]"#;

    #[test]
    fn ranges_are_what_the_kernel_reads() {
        let mappings = parse(RANGE, RANGE).unwrap().unwrap();
        assert_eq!(map_text(&mappings.users), "0 1000 10\n");
        assert_eq!(to_outside(&mappings.users, 9), Some(1009));
        assert_eq!(to_outside(&mappings.users, 10), None);
        assert_eq!(parse("[]", "[]").unwrap(), None);
    }

    #[test]
    fn ranges_that_cannot_be_are_named() {
        for (users, groups, message) in [
            (RANGE, "[]", "gidMappings: is missing beside uidMappings"),
            ("[]", RANGE, "uidMappings: is missing beside gidMappings"),
            (r#"[{"size":0}]"#, RANGE, "uidMappings[0]: is not a range of ids"),
            (
                r#"[{"hostID":4294967290,"size":10}]"#,
                RANGE,
                "uidMappings[0]: is not a range of ids",
            ),
            (
                RANGE,
                r#"[{"containerID":0,"hostID":0,"size":5},{"containerID":4,"hostID":100,"size":5}]"#,
                "gidMappings[1]: overlaps an earlier range",
            ),
        ] {
            assert_eq!(parse(users, groups).unwrap_err().to_string(), message);
        }
    }
}
