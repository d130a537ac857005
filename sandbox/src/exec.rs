//! Further processes in a running container.

use std::sync::Arc;

use sealock_protocol::guest::MAX_SPEC;

use crate::{
    agent::Of,
    attachment::Attachment,
    container::Container,
    error::Error,
    guest_process::GuestProcess,
    spec, state,
    stdio::{Owner, Paths, Streams},
};

/// A process to be started in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Its identifier.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The OCI `process` in JSON, at most [`MAX_SPEC`] bytes.
    pub process: Vec<u8>,
    /// Its standard streams.
    pub stdio: Paths,
}

impl ExecRequest {
    /// Checks what can be without the container.
    ///
    /// # Errors
    /// The identifier or the process is none.
    pub fn check(&self) -> Result<(), Error> {
        state::check_name("the process's identifier", &self.id)?;
        if self.process.len() > MAX_SPEC {
            return Err(spec::Error::Invalid {
                field: "process".to_owned(),
                problem: "larger than a specification may be",
            }
            .into());
        }
        Ok(())
    }
}

impl Container {
    /// Starts a process in this container, which has to be running. After an error nothing of it is left.
    ///
    /// # Errors
    /// The program can't be executed, a stream can't be opened, the container doesn't run, or the pod has ended.
    pub async fn exec(&self, request: &ExecRequest) -> Result<GuestProcess, Error> {
        request.check()?;
        let sandbox = self.process().sandbox();
        let owner = Owner {
            namespace: &request.namespace,
            id: &request.id,
        };
        let streams = Streams::open(&request.stdio, owner).await?;
        let attachment = Attachment::new(sandbox, &request.id, request.stdio.terminal, streams)?;
        attachment.open_stdin();
        let of = Of {
            container: self.id().to_owned(),
            exec: request.id.clone(),
        };
        let agent = self.process().agent().clone();
        let stdio = attachment.stdio();
        let guest_pid = sandbox
            .answer(agent.exec_process(&of, request.process.clone(), stdio))
            .await?;
        Ok(GuestProcess::new(
            Arc::clone(sandbox),
            agent,
            of,
            guest_pid,
            attachment,
        ))
    }
}
