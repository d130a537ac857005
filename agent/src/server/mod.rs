//! The agent's service: answers the host's requests ([`sealock_protocol::agent`]).
//!
//! One thread; whatever is waited for is waited for by the runtime. When the host closes the stream the pod is over.

mod container;
mod error;
mod events;
mod exec;
mod freeze;
mod host_stream;
mod init_link;
mod launch;
mod machine;
mod network;
mod pod;
mod process;
mod pumps;
mod restore;
mod service;
mod stats;
mod stdio;
mod surroundings;
mod undelivered;
mod volume_copy;
mod volumes;

use std::{convert::Infallible, fs, io, os::fd::OwnedFd, sync::Arc};

use futures::stream;
use sealock_protocol::{agent::create_agent, seqpacket::SeqPacket};
use tokio::runtime;
use ttrpc::r#async::{Server, transport::Listener};

use self::{host_stream::HostStream, init_link::InitLink, pod::Pod, service::Service};
use crate::init::{log, power_off};

/// Serves the host on a stream on which the hello has been said, then powers the guest off.
pub fn run(host: OwnedFd, init: SeqPacket) -> ! {
    // When memory runs out it is containers that have to go. They are init's children and don't inherit this.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        log(&format!("keeping the server from being killed: {error}"));
    }
    let Err(error) = serve(host, init);
    log(&format!("serving the host: {error}"));
    power_off()
}

fn serve(host: OwnedFd, init: SeqPacket) -> io::Result<Infallible> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stream, ended) = HostStream::new(host);
        let link = InitLink::new(init)?;
        let pod = Arc::new(Pod::new(Arc::clone(&link)));
        let over = Arc::clone(&pod);
        tokio::spawn(async move {
            if let Err(error) = link.run().await {
                log(&format!("speaking with init: {error}"));
                power_off();
            }
        });
        let connections = stream::iter([Ok::<_, io::Error>(stream)]);
        let mut server = Server::new()
            .add_listener(Listener::new(connections))
            .register_service(create_agent(Arc::new(Service::new(pod))));
        server.start().await.map_err(io::Error::other)?;
        tokio::select! {
            () = ended.notified() => {}
            () = over.over() => {}
        }
        // Here, while init still hears of us: to it the end of the server is a failure.
        power_off()
    })
}
