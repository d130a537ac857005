//! What Kubernetes relies on, each promise a test, of one runtime of containerd's: the handler that `CRI_HANDLER` names.
//!
//! Run by `tests/cri/run` in the lab, first with runc, whose result is the measure. A test that a kind of runtime can't
//! keep is in [`shared_host`]; everything else has to hold for all.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod containers;
mod crictl;
mod exec;
mod images;
mod limits;
mod logs;
mod namespaces;
mod network;
mod pods;
mod recovery;
mod security;
mod shared_host;
mod stats;
mod streaming;
mod user_namespaces;
mod volumes;
