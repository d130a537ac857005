//! Boots one microVM from descriptors it is given: the virtual machine monitor.

fn main() {}
