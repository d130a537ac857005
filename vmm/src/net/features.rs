//! Feature bits (virtio 1.2, 5.1.3): what a tap interface and its host make it possible to offer, and what the tap is told
//! of what the driver takes.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

/// Always offered.
const BASIC: &[u32] = &[
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
];

/// Segmentation of UDP: taps have it since Linux 6.2.
const UDP_SEGMENTATION: &[u32] = &[
    VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
];

/// What the tap is told to leave to the guest (`TUNSETOFFLOAD`) when a feature is negotiated.
const OFFLOADS: &[(u32, libc::c_uint)] = &[
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
];

/// Both kinds of UDP segmentation, which the tap takes together only.
pub const USO: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Whether `features` contain bit number `feature`.
#[must_use]
pub fn has(features: u64, feature: u32) -> bool {
    features >> feature & 1 != 0
}

fn bits(features: &[u32]) -> u64 {
    features.iter().fold(0, |bits, feature| bits | 1 << feature)
}

/// What a device with `pairs` pairs of queues offers; `uso`: whether its tap knows segmentation of UDP.
#[must_use]
pub fn offered(pairs: usize, uso: bool) -> u64 {
    let mut features = bits(BASIC);
    if uso {
        features |= bits(UDP_SEGMENTATION);
    }
    if pairs > 1 {
        features |= bits(&[VIRTIO_NET_F_MQ]);
    }
    features
}

/// What the tap may leave to a driver that took `features`.
#[must_use]
pub fn offloads(features: u64) -> libc::c_uint {
    // Everything depends on it (5.1.3.1).
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut offloads = libc::TUN_F_CSUM;
    for (feature, offload) in OFFLOADS {
        if has(features, *feature) {
            offloads |= offload;
        }
    }
    if has(features, VIRTIO_NET_F_GUEST_USO4) && has(features, VIRTIO_NET_F_GUEST_USO6) {
        offloads |= USO;
    }
    offloads
}

/// Whether a packet to a driver that took `features` can be larger than the interface's MTU.
#[must_use]
pub fn receives_large(features: u64) -> bool {
    offloads(features) & !libc::TUN_F_CSUM != 0
}

/// The number of pairs of queues that a driver which took `features` may use, of `pairs`. It also says where the control
/// queue is (5.1.2).
#[must_use]
pub fn usable_pairs(features: u64, pairs: usize) -> usize {
    if has(features, VIRTIO_NET_F_MQ) { pairs } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tap_leaves_to_the_guest_what_it_has_taken() {
        assert_eq!(offloads(0), 0);
        assert_eq!(
            offloads(offered(1, true)),
            libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN | USO
        );
        let without_checksum = offered(1, true) & !(1 << VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(offloads(without_checksum), 0, "nothing goes without checksums");
        let half = offered(1, true) & !(1 << VIRTIO_NET_F_GUEST_USO6);
        assert_eq!(offloads(half) & USO, 0, "the tap takes both or none");
    }

    #[test]
    fn several_queues_are_offered_where_there_are_some() {
        assert!(!has(offered(1, false), VIRTIO_NET_F_MQ));
        assert!(has(offered(2, false), VIRTIO_NET_F_MQ));
        assert_eq!(usable_pairs(offered(4, false), 4), 4);
        assert_eq!(usable_pairs(offered(1, false), 4), 1);
    }
}
