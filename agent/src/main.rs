//! The guest's init: runs a pod's containers.

fn main() {}
