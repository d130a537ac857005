//! The device as a driver sees it: real descriptor chains in guest memory, a real event loop; at the other end a socket,
//! which keeps packets apart as a tap does, or a real tap interface in a network namespace of the test's own.

mod commands;
mod guest;
mod hostile;
mod interface;
mod limits;
mod receiving;
mod sending;
