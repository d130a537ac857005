//! Limits on what goes through a pod's interfaces, asked for with annotations; each holds for each interface.

use sealock_protocol::control::RateLimit;
use serde_json::Value;

use super::Error;
use crate::spec;

/// Bytes a second that the guest may receive.
pub const RECEIVE_BYTES: &str = "io.sealock.receive-bytes-per-second";
/// Packets a second that the guest may receive.
pub const RECEIVE_PACKETS: &str = "io.sealock.receive-packets-per-second";
/// Bytes a second that the guest may send.
pub const SEND_BYTES: &str = "io.sealock.send-bytes-per-second";
/// Packets a second that the guest may send.
pub const SEND_PACKETS: &str = "io.sealock.send-packets-per-second";

/// Less would not let a connection through.
const LEAST_BYTES: u64 = 1024;

/// The least burst: a few of the largest packets, segmentation being left to the device.
const LEAST_BURST: u64 = 256 * 1024;

/// Of a pod's interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// What the guest receives.
    pub receive: Option<RateLimit>,
    /// What the guest sends.
    pub send: Option<RateLimit>,
}

impl Limits {
    /// Those that a specification asks for.
    ///
    /// # Errors
    /// An annotation is not a number, or too small.
    pub fn of(spec: &Value) -> Result<Self, Error> {
        Ok(Self {
            receive: limit(spec, RECEIVE_BYTES, RECEIVE_PACKETS)?,
            send: limit(spec, SEND_BYTES, SEND_PACKETS)?,
        })
    }

    /// Whether there is one.
    #[must_use]
    pub fn any(&self) -> bool {
        self.receive.is_some() || self.send.is_some()
    }
}

fn limit(spec: &Value, bytes: &'static str, packets: &'static str) -> Result<Option<RateLimit>, Error> {
    let (bytes, packets) = (number(spec, bytes, LEAST_BYTES)?, number(spec, packets, 1)?);
    if bytes.is_none() && packets.is_none() {
        return Ok(None);
    }
    // A tenth of a second's worth may come at once.
    Ok(Some(RateLimit {
        bytes: bytes.unwrap_or(0),
        bytes_burst: bytes.map_or(0, |bytes| (bytes / 10).max(LEAST_BURST)),
        packets: packets.unwrap_or(0),
        packets_burst: packets.map_or(0, |packets| (packets / 10).max(64)),
    }))
}

fn number(spec: &Value, name: &'static str, least: u64) -> Result<Option<u64>, Error> {
    let Some(value) = spec::annotation(spec, name) else {
        return Ok(None);
    };
    match value.parse() {
        Ok(number) if number >= least => Ok(Some(number)),
        _ => Err(Error::Annotation {
            name,
            value: value.chars().take(32).collect(),
            least,
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_asked_for_with_annotations() {
        assert!(!Limits::of(&json!({})).unwrap().any());
        let limits =
            Limits::of(&json!({"annotations": {RECEIVE_BYTES: "10000000", SEND_PACKETS: "500"}})).unwrap();
        let receive = limits.receive.unwrap();
        assert_eq!(
            (receive.bytes, receive.bytes_burst, receive.packets),
            (10_000_000, 1_000_000, 0)
        );
        let send = limits.send.unwrap();
        assert_eq!((send.bytes, send.packets, send.packets_burst), (0, 500, 64));
    }

    #[test]
    fn a_limit_that_is_none_is_refused_by_name() {
        for value in ["", "0", "-1", "10M"] {
            let error = Limits::of(&json!({"annotations": {SEND_BYTES: value}})).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("annotation io.sealock.send-bytes-per-second: "),
                "{error}"
            );
        }
    }
}
