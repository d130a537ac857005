//! Words with the kernel about networks: rtnetlink(7), a question and its answer at a time.
//!
//! Both sides of a pod need it: on the host what a network plugin has made is read and taps are tied to it, in the guest
//! the same is made again. The kernel answers at once, so nothing here needs a runtime. A [`Socket`] belongs for good to
//! the network namespace in which it was opened ([`namespace`]).

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod namespace;
mod socket;

pub use netlink_packet_core as core;
pub use netlink_packet_route as route;
pub use socket::{Error, Events, Socket};
