//! What the end-to-end tests and the benchmarks share: running containers by `ctr`, and looking at the host.

pub mod cni;
pub mod config;
pub mod containerd;
pub mod ctr;
pub mod host;
pub mod intruder;
pub mod memory;
pub mod mutation;
pub mod pty;
pub mod task;
pub mod throughput;
