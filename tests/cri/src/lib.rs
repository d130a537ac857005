//! A small client of Kubernetes' Container Runtime Interface (CRI v1), in the words that tests need: pods and containers
//! that go away by themselves, commands and their output, logs, streams.
//!
//! It does to containerd what a node's kubelet does. Nothing in it knows a runtime but by the name of its handler, so that
//! the same test says of each whether it keeps a promise: see `suite/`.

mod api;
mod container;
mod log;
mod pod;
mod stream;

pub use api::{Cri, handler};
pub use container::{Container, ContainerRequest, Output, words};
pub use k8s_cri::v1;
pub use log::{Line, read_log};
pub use pod::{Pod, mode};
pub use stream::{Channel, Stream};
