//! A shim spoken to directly, as containerd does.

use std::{fs, path::Path, process::Command};

use containerd_shim_protos::{
    protobuf::Message,
    ttrpc::{self, Client, Code, Error, proto::Request},
};

/// Where containerd keeps the bundles of its namespace `default`.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/default";

/// A container's shim, by its address.
#[derive(Debug)]
pub struct Shim(String);

impl Shim {
    /// The shim that serves the task `id`.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn of(id: &str) -> Self {
        let address = fs::read_to_string(format!("{BUNDLES}/{id}/address")).expect("the task has a bundle");
        Self(address.trim().to_owned())
    }

    /// Has the shim of the container `id` started in its bundle, as containerd does, or finds that of its pod. There is no
    /// containerd to be told of events.
    ///
    /// # Errors
    /// What the program said instead of an address.
    ///
    /// # Panics
    /// It can't be run.
    pub fn start(bundle: &Path, id: &str) -> Result<Self, String> {
        let output = Command::new("containerd-shim-sealock-v2")
            .args(["-namespace", "default", "-address", "", "-id", id, "start"])
            .current_dir(bundle)
            .output()
            .expect("Sealock is installed in the lab");
        let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(Self(told(&output.stdout)))
        } else {
            Err(told(&output.stderr))
        }
    }

    /// Calls `method` of the task service.
    ///
    /// # Errors
    /// The shim's code and words.
    ///
    /// # Panics
    /// The shim doesn't answer.
    pub fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Result<A, (Code, String)> {
        // As containerd 1.7 calls it, and later shims still know it.
        match self.call_service("containerd.task.v2.Task", method, request) {
            Err((Code::UNIMPLEMENTED | Code::INVALID_ARGUMENT, words)) if words.contains("service") => {
                self.call_service("containerd.task.v3.Task", method, request)
            }
            answer => answer,
        }
    }

    fn call_service<Q: Message, A: Message>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
    ) -> Result<A, (Code, String)> {
        let mut call = Request::new();
        service.clone_into(&mut call.service);
        method.clone_into(&mut call.method);
        call.timeout_nano = 120_000_000_000;
        call.payload = request.write_to_bytes().expect("messages can be encoded");
        let client = Client::connect(&self.0).expect("the shim listens");
        match client.request(call) {
            Ok(answer) => Ok(A::parse_from_bytes(&answer.payload).expect("the answer is of its type")),
            Err(Error::RpcStatus(status)) => Err((code(&status), status.message)),
            Err(error) => panic!("{method}: {error}"),
        }
    }
}

fn code(status: &ttrpc::Status) -> Code {
    status.code.enum_value_or_default()
}
