//! The agent's ttrpc service, generated from `proto/agent.proto`, where every field is explained.

#![allow(warnings, clippy::all)]

mod generated {
    pub mod agent {
        include!(concat!(env!("OUT_DIR"), "/agent/agent.rs"));
    }
    pub mod agent_ttrpc {
        include!(concat!(env!("OUT_DIR"), "/agent/agent_ttrpc.rs"));
    }
}

pub use generated::{agent::*, agent_ttrpc::*};
