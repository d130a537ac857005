//! `linux.sysctl`: kernel parameters of the container's own namespaces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    namespaces::{NamespaceSource, Namespaces},
    object::{Object, SpecError},
    share_path::SharePath,
};

/// A kernel parameter to set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Its name as the specification has it.
    pub name: String,
    /// Its path below `/proc/sys`, of plain components.
    pub path: SharePath,
    /// What to write.
    pub value: String,
}

/// Parameters of the IPC namespace, besides those below `fs/mqueue`.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

impl Sysctl {
    /// Reads `linux.sysctl`.
    ///
    /// # Errors
    /// A parameter that belongs to no namespace, or to one that the container does not have for itself.
    pub fn parse_all(linux: &mut Object, namespaces: &Namespaces) -> Result<Vec<Self>, SpecError> {
        let field = linux.field("sysctl");
        let parameters: BTreeMap<String, String> = linux.take_or_default("sysctl")?;
        parameters
            .into_iter()
            .map(|(name, value)| {
                let refuse = |reason: &str| SpecError::invalid(format!("{field}[{name:?}]"), reason);
                let path = SharePath::parse(&format!("{field}[{name:?}]"), path(&name))?;
                if path.as_str().starts_with("net/") {
                    // The guest's network is the pod's own.
                } else if IPC.contains(&path.as_str()) || path.as_str().starts_with("fs/mqueue/") {
                    if namespaces.ipc == NamespaceSource::Guest {
                        return Err(refuse("the container has no IPC namespace to set it in"));
                    }
                } else if path.as_str() == "kernel/domainname" || path.as_str() == "kernel/hostname" {
                    if namespaces.uts == NamespaceSource::Guest {
                        return Err(refuse("the container has no UTS namespace to set it in"));
                    }
                } else {
                    return Err(refuse("is not a parameter of a namespace"));
                }
                Ok(Self { name, path, value })
            })
            .collect()
    }
}

/// Names are separated by dots or by slashes, whichever comes first; the other is then part of a component, where in the
/// file system a dot is a dot and a slash cannot be (sysctl(8)).
fn path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, ipc: NamespaceSource) -> Result<Sysctl, SpecError> {
        let text = format!(r#"{{"sysctl":{{"{name}":"1"}}}}"#);
        let namespaces = Namespaces {
            ipc,
            ..Namespaces::default()
        };
        Sysctl::parse_all(&mut Object::parse(text.as_bytes()).unwrap(), &namespaces)
            .map(|mut all| all.remove(0))
    }

    #[test]
    fn both_separators_lead_to_the_same_file() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
            ("net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
        ] {
            assert_eq!(parse(name, NamespaceSource::New).unwrap().path.as_str(), path);
        }
    }

    #[test]
    fn parameters_of_the_whole_guest_are_refused_by_name() {
        for name in [
            "vm.overcommit_memory",
            "kernel.core_pattern",
            "net/../kernel/core_pattern",
            "net",
        ] {
            let error = parse(name, NamespaceSource::New).unwrap_err().to_string();
            assert!(error.starts_with(&format!("sysctl[{name:?}]: ")), "{error}");
        }
    }

    #[test]
    fn ipc_parameters_need_an_ipc_namespace() {
        parse("kernel.shmmax", NamespaceSource::New).unwrap();
        parse("kernel.shmmax", NamespaceSource::Guest).unwrap_err();
    }
}
