//! Serves a pod's files to the virtual machine monitor over FUSE messages.

fn main() {}
