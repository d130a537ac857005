//! The device as guest and shim see it: real descriptor chains in guest memory, a real event loop, a shim at the other
//! end of the broker's socket.

mod closing;
mod connecting;
mod descriptors;
mod flow;
mod guest;
mod hostile;
mod restoring;
