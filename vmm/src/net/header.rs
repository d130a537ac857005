//! The header before each packet (`struct virtio_net_hdr_v1`, virtio 1.2, 5.1.6).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use super::features::has;

/// The header's length in bytes, with `num_buffers`, which every modern driver has.
pub const LENGTH: usize = 12;
/// Where `num_buffers` is.
pub const NUM_BUFFERS: usize = 10;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const UDP: u8 = VIRTIO_NET_HDR_GSO_UDP_L4 as u8;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// The header of a packet that the guest sends, as the host is to see it: `bytes`, whose packet is `frame` bytes long. `None` when
/// it asks for what was not negotiated or refers to what isn't in the packet; the host's kernel would find that out too, but
/// it needn't.
pub fn checked(bytes: [u8; LENGTH], features: u64, frame: usize) -> Option<[u8; LENGTH]> {
    let [flags, kind, ..] = bytes;
    let field = |place: usize| u16::from_le_bytes([bytes[place], bytes[place + 1]]);
    let (header_length, segment, start, offset) = (field(2), field(4), field(6), field(8));

    // The other flags are the device's.
    let flags = flags & NEEDS_CSUM;
    if flags != 0 {
        let end = usize::from(start) + usize::from(offset) + 2;
        if !has(features, VIRTIO_NET_F_CSUM) || end > frame {
            return None;
        }
    }
    let needed = match kind & !ECN {
        NONE if kind == NONE => None,
        TCPV4 => Some(VIRTIO_NET_F_HOST_TSO4),
        TCPV6 => Some(VIRTIO_NET_F_HOST_TSO6),
        UDP => Some(VIRTIO_NET_F_HOST_USO),
        _ => return None,
    };
    if let Some(needed) = needed {
        let negotiated = has(features, needed) && (kind & ECN == 0 || has(features, VIRTIO_NET_F_HOST_ECN));
        // Segmentation needs a checksum to be computed (5.1.6.2.1).
        if !negotiated || flags == 0 || segment == 0 || usize::from(header_length) > frame {
            return None;
        }
    }
    let mut header = [0; LENGTH];
    header[0] = flags;
    header[1] = kind;
    if needed.is_some() {
        header[2..6].copy_from_slice(&bytes[2..6]);
    }
    if flags != 0 {
        header[6..10].copy_from_slice(&bytes[6..10]);
    }
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    fn header(flags: u8, kind: u8, length: u16, segment: u16, start: u16, offset: u16) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = flags;
        bytes[1] = kind;
        for (place, value) in (2..).step_by(2).zip([length, segment, start, offset]) {
            bytes[place..place + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn plain_packets_and_offloads_pass_as_they_are() {
        for good in [
            header(0, NONE, 0, 0, 0, 0),
            header(1, NONE, 0, 0, 34, 16),
            header(1, TCPV4, 54, 1448, 34, 16),
            header(1, TCPV6 | ECN, 74, 1428, 54, 16),
            header(1, UDP, 42, 1472, 34, 6),
        ] {
            assert_eq!(checked(good, ALL, 3000), Some(good));
        }
    }

    #[test]
    fn what_was_not_negotiated_is_dropped() {
        let without = |feature: u32| ALL & !(1 << feature);
        assert_eq!(
            checked(header(1, NONE, 0, 0, 34, 16), without(VIRTIO_NET_F_CSUM), 3000),
            None
        );
        let segmented = |kind| header(1, kind, 54, 1448, 34, 16);
        assert_eq!(
            checked(segmented(TCPV4), without(VIRTIO_NET_F_HOST_TSO4), 3000),
            None
        );
        assert_eq!(
            checked(segmented(TCPV6), without(VIRTIO_NET_F_HOST_TSO6), 3000),
            None
        );
        assert_eq!(
            checked(segmented(UDP), without(VIRTIO_NET_F_HOST_USO), 3000),
            None
        );
        assert_eq!(
            checked(segmented(TCPV4 | ECN), without(VIRTIO_NET_F_HOST_ECN), 3000),
            None
        );
    }

    #[test]
    fn nonsense_is_dropped() {
        for bad in [
            header(1, NONE, 0, 0, 2999, 0),
            header(1, NONE, 0, 0, 0xffff, 0xffff),
            // Fragmentation of UDP, which is not offered.
            header(1, 3, 42, 1472, 34, 6),
            header(1, 2, 42, 1472, 34, 6),
            header(0, ECN, 0, 0, 0, 0),
            header(1, 0x7f, 54, 1448, 34, 16),
            header(1, TCPV4, 54, 0, 34, 16),
            header(0, TCPV4, 54, 1448, 34, 16),
            header(1, TCPV4, 3001, 1448, 34, 16),
        ] {
            assert_eq!(checked(bad, ALL, 3000), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_the_devices_or_means_nothing_is_cleared() {
        let mut odd = header(0xfe, NONE, 7, 7, 7, 7);
        odd[NUM_BUFFERS] = 9;
        assert_eq!(checked(odd, ALL, 3000), Some([0; LENGTH]));
    }
}
