//! `sealock check`: is this host fit?

use anyhow::Result;
use sealock_sandbox::{check, config::Config};

/// Checks what every start of a microVM checks, and tells what it would use.
pub fn run() -> Result<()> {
    let config = Config::load()?;
    check::open(&config)?;
    println!("KVM, with hardware virtualization: yes");
    for (what, path) in [
        ("guest kernel", config.kernel()),
        ("initramfs", config.initramfs()),
        ("machine monitor", config.vmm()),
        ("file server", config.fsd()),
    ] {
        println!("{what}: {}", path.display());
    }
    println!(
        "a pod without limits gets {} CPU(s), {} MiB of memory",
        config.vcpus(),
        config.memory_mib()
    );
    println!("this host can run microVMs");
    Ok(())
}
