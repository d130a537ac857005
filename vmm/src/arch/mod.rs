//! Everything that knows the processor's architecture, one folder for each.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
