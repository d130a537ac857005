//! containerd's task service for Sealock.

fn main() {}
