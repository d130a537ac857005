//! What the shim, the monitor and the guest's agent say to each other: whatever it is, it is a message or an error.
#![no_main]

use protobuf::Message;
use sealock_protocol::{
    agent::{
        ContainerStatsResponse, CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest,
        ListProcessesResponse, NextEventResponse, UpdateNetworkRequest, WaitContainerResponse,
    },
    broker, control,
};

/// What was read is said again as it was.
macro_rules! json {
    ($data:ident, $($type:ty)*) => {
        $(if let Ok(message) = serde_json::from_slice::<$type>($data) {
            let said = serde_json::to_vec(&message).expect("a message can be said");
            assert!(serde_json::from_slice::<$type>(&said).is_ok_and(|again| again == message));
        })*
    };
}

macro_rules! protobuf {
    ($data:ident, $($type:ty)*) => {
        $(if let Ok(message) = <$type>::parse_from_bytes($data) {
            let said = message.write_to_bytes().expect("a message can be said");
            assert!(<$type>::parse_from_bytes(&said).is_ok());
        })*
    };
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    json!(data, control::Request control::Event broker::Request broker::Answer);
    protobuf!(
        data,
        CreateSandboxRequest CreateContainerRequest ExecProcessRequest UpdateNetworkRequest WaitContainerResponse
        NextEventResponse ListProcessesResponse ContainerStatsResponse
    );
});
