//! Network namespaces, and the reference network plugins called as containerd does (CNI specification 1.0).

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

/// Where Debian installs them.
const PLUGINS: &str = "/usr/lib/cni";

/// A network namespace, with the networks it has been added to. All of it is undone when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    added: Vec<(Vec<Value>, String)>,
}

impl Namespace {
    /// An empty one, with its loopback interface up.
    ///
    /// # Panics
    /// It can't be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let namespace = Self {
            name: name.to_owned(),
            added: Vec::new(),
        };
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        namespace
    }

    /// The path for the specification.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// What `ctr run` takes to have a pod in it.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("network:{}", self.path())
    }

    /// Adds it to the network that `plugins` make, as `interface`; gives the result's addresses, without prefix lengths.
    ///
    /// # Panics
    /// A plugin refuses.
    pub fn add(&mut self, plugins: &[Value], interface: &str) -> Vec<String> {
        let mut result = Value::Null;
        for plugin in plugins {
            let output = self.call("ADD", plugin, &result, interface);
            assert!(
                output.status.success(),
                "{plugin}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            result = serde_json::from_slice(&output.stdout).expect("a plugin answers with JSON");
        }
        self.added.push((plugins.to_vec(), interface.to_owned()));
        result["ips"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|ip| ip["address"].as_str()?.split('/').next())
            .map(str::to_owned)
            .collect()
    }

    /// Removes it from the network that it was added to last.
    pub fn remove_last(&mut self) {
        if let Some((plugins, interface)) = self.added.pop() {
            for plugin in plugins.iter().rev() {
                self.call("DEL", plugin, &Value::Null, &interface);
            }
        }
    }

    fn call(&self, verb: &str, plugin: &Value, previous: &Value, interface: &str) -> Output {
        let mut config = plugin.clone();
        config["cniVersion"] = "1.0.0".into();
        config["name"] = format!("test-{}", plugin["network"].as_str().unwrap_or("net")).into();
        if let Some(config) = config.as_object_mut() {
            config.remove("network");
        }
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let program = plugin["type"].as_str().expect("a plugin has a type");
        let mut child = Command::new(format!("{PLUGINS}/{program}"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.name)
            .env("CNI_NETNS", self.path())
            .env("CNI_IFNAME", interface)
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the lab has the reference plugins");
        child
            .stdin
            .take()
            .expect("it is a pipe")
            .write_all(config.to_string().as_bytes())
            .expect("a plugin reads its configuration");
        child.wait_with_output().expect("a plugin ends")
    }

    /// A command line to be run in it.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words);
        command
    }

    /// Runs ip(8) in it.
    ///
    /// # Panics
    /// It fails.
    #[must_use]
    pub fn ip(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut bridges = Vec::new();
        for plugin in self.added.iter().flat_map(|(plugins, _)| plugins) {
            bridges.extend(plugin["bridge"].as_str().map(str::to_owned));
        }
        while !self.added.is_empty() {
            self.remove_last();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
        // A bridge that nobody is on any more: its plugin leaves it.
        for bridge in bridges {
            let ports = std::fs::read_dir(format!("/sys/class/net/{bridge}/brif"));
            if ports.is_ok_and(|mut ports| ports.next().is_none()) {
                let _ = Command::new("ip").args(["link", "del", &bridge]).output();
            }
        }
    }
}

/// Runs ip(8) on the host.
///
/// # Panics
/// It fails.
pub fn ip(words: &str) -> String {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .expect("the lab has ip");
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A bridge with a gateway and addresses of both families, translated to the outside.
#[must_use]
pub fn bridge(mtu: u32) -> Value {
    json!({
        "network": "bridge", "type": "bridge", "bridge": "test0", "isGateway": true, "ipMasq": true, "mtu": mtu,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    })
}
