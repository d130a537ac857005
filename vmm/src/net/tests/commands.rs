//! The control queue and the configuration space.

use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_OK};

use super::guest::Guest;
use crate::virtio::{
    device::VirtioDevice,
    ring::{NEXT, WRITE},
};

const OK: Option<u8> = Some(VIRTIO_NET_OK as u8);
const ERR: Option<u8> = Some(VIRTIO_NET_ERR as u8);

#[test]
fn the_configuration_space_says_what_was_configured() {
    let (guest, _wire) = Guest::new();
    let mut config = [0xff; 16];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5, 0, 0, 0, 0]);
    let mut beyond = [0xff; 4];
    guest.device.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn the_driver_changes_its_address_and_the_configuration_says_so() {
    let (mut guest, _wire) = Guest::new();
    let generation = guest.device.config_generation();
    assert_eq!(guest.command(&[&[1, 1], &[2, 1, 2, 3, 4, 5]]), OK);
    let mut mac = [0; 6];
    guest.device.read_config(0, &mut mac);
    assert_eq!(mac, [2, 1, 2, 3, 4, 5]);
    assert_ne!(guest.device.config_generation(), generation);
}

#[test]
fn receive_modes_are_accepted_and_what_is_unknown_is_not() {
    let (mut guest, _wire) = Guest::new();
    assert_eq!(guest.command(&[&[0, 0], &[1]]), OK);
    assert_eq!(guest.command(&[&[0, 1], &[0]]), OK);
    let table = [[0; 4].as_slice(), &[0; 4]].concat();
    assert_eq!(guest.command(&[&[1, 0], &table]), OK);
    assert_eq!(guest.command(&[&[0, 9], &[1]]), ERR);
    assert_eq!(guest.command(&[&[2, 0], &[1, 0]]), ERR);
    assert_eq!(guest.command(&[&[99, 0]]), ERR);
    assert_eq!(guest.command(&[&[1, 1], &[2, 1, 2]]), ERR);
    assert_eq!(guest.command(&[&[1]]), ERR);
    // More pairs than there are, also where there is one.
    assert_eq!(guest.command(&[&[4, 0], &[2, 0]]), ERR);
}

#[test]
fn a_command_without_room_for_an_answer_is_returned() {
    let (mut guest, _wire) = Guest::new();
    for (index, (address, length, flags)) in (10..).zip([
        (0xe_0000, 8, 0),
        (0xe_0000, 0, WRITE),
        (u64::MAX - 3, 16, WRITE),
        (0xe_0000, 8, NEXT),
    ]) {
        guest.control.describe(index, address, length, flags, index);
        guest.control.publish(index);
        guest.kick(2);
        guest.settle();
        assert_eq!(guest.control.take_used(), Some((index, 0)));
    }
    assert_eq!(guest.command(&[&[0, 0], &[1]]), OK);
}
