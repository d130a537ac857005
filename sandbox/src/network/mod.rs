//! The pod's network: what a network plugin has made in the pod's network namespace becomes the guest's.
//!
//! For every interface in the [`namespace`] ([`survey`]) there is a [`tap`] beside it, and every packet that comes in at
//! one goes out at the other ([`redirect`]): no address is translated and no packet is routed on the host. The guest gets
//! the interface's own hardware address, addresses, routes and neighbours, so that the rest of the world can't tell it
//! from a container. All of this happens on a thread of its own while the monitor starts ([`attached`]).
//!
//! Afterwards the namespace is watched, and what changes there ([`change`]) changes in the guest ([`watch`]). What connects
//! to the pod from inside the namespace itself, as port forwarding does, is taken to the guest by the agent ([`forward`]).

mod attached;
mod change;
mod error;
mod forward;
mod limit;
mod namespace;
mod redirect;
mod steer;
mod survey;
mod tap;
pub(crate) mod watch;

pub use attached::{Attached, Attaching, Change, Plug, clean_up};
pub use error::Error;
pub use forward::Forward;
pub use namespace::Namespace;
