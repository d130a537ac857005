//! `process.user`.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// Who the container's process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
}

/// The mask of a process whose specification has none.
const DEFAULT_UMASK: u32 = 0o022;

/// The most supplementary groups (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

impl User {
    /// Reads `process.user`.
    ///
    /// # Errors
    /// An id that is none, or a mask of more than nine bits.
    pub fn parse(process: &mut Object) -> Result<Self, SpecError> {
        let Some(mut user) = process.object("user")? else {
            return Ok(Self {
                umask: DEFAULT_UMASK,
                ..Self::default()
            });
        };
        let parsed = Self {
            uid: user.take_or_default("uid")?,
            gid: user.take_or_default("gid")?,
            additional_gids: user.take_or_default("additionalGids")?,
            umask: user.take("umask")?.unwrap_or(DEFAULT_UMASK),
        };
        // -1 means "leave as it is" to setresuid(2) and setresgid(2).
        if parsed.uid == u32::MAX {
            return Err(SpecError::invalid(user.field("uid"), "is not a user"));
        }
        if parsed.gid == u32::MAX {
            return Err(SpecError::invalid(user.field("gid"), "is not a group"));
        }
        if parsed.additional_gids.len() > MAX_GROUPS || parsed.additional_gids.contains(&u32::MAX) {
            return Err(SpecError::invalid(
                user.field("additionalGids"),
                format!("not a list of at most {MAX_GROUPS} groups"),
            ));
        }
        if parsed.umask > 0o777 {
            return Err(SpecError::invalid(user.field("umask"), "is more than 0777"));
        }
        user.finish()?;
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(user: &str) -> Result<User, SpecError> {
        let mut spec = Object::parse(format!(r#"{{"process":{{"user":{user}}}}}"#).as_bytes()).unwrap();
        User::parse(&mut spec.object("process").unwrap().unwrap())
    }

    #[test]
    fn ids_that_leave_root_in_place_are_refused() {
        for user in [
            r#"{"uid":4294967295}"#,
            r#"{"gid":4294967295}"#,
            r#"{"additionalGids":[4294967295]}"#,
            r#"{"uid":-1}"#,
            r#"{"umask":512}"#,
            r#"{"username":"root"}"#,
        ] {
            parse(user).expect_err(user);
        }
        assert_eq!(parse(r#"{"uid":1000}"#).unwrap().umask, 0o022);
    }
}
