//! Packets to the guest: from the tap into the buffers of a receive queue, without a copy in between.

use std::{collections::VecDeque, sync::Arc};

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use virtio_queue::{DescriptorChain, QueueOwnedT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    bucket::Limit,
    features::{has, receives_large},
    header::{self, NUM_BUFFERS},
    pair::Turn,
    pieces::{MAX_PIECES, Pieces},
    tap::{Passed, Tap},
};
use crate::virtio::{
    device::{ActiveQueue, Broken, Memory},
    used::UsedRing,
};

/// Packets before the other direction has its turn.
const PACKETS_AT_ONCE: usize = 64;
/// Chains looked at before it, should most of them be of no use.
const CHAINS_AT_ONCE: usize = 1024;

/// The longest frame that segmentation offload makes, in bytes: a packet and the link's header with two VLAN tags.
const LARGEST: usize = 65535 + LINK_HEADER;
const LINK_HEADER: usize = 14 + 8;

/// One receive queue.
pub struct Receiver {
    queue: ActiveQueue,
    used: UsedRing,
    /// The buffers of `chains`, one after the other.
    window: Pieces,
    chains: VecDeque<Chain>,
    /// The length of the window in bytes.
    room: usize,
    /// The largest window there was.
    most_room: usize,
    /// The longest packet to be expected, header included.
    longest: usize,
    /// A packet may be spread over several chains.
    mergeable: bool,
    /// The driver knows what is said of checksums.
    checksums: bool,
    limit: Option<Arc<Limit>>,
    /// The tap may have packets.
    pub readable: bool,
    broken: bool,
}

/// A chain whose buffers are in the window.
struct Chain {
    head: u16,
    pieces: usize,
    length: usize,
    /// Where the header's first byte goes.
    flags: GuestAddress,
    /// Where the two bytes of the number of buffers go.
    count: [GuestAddress; 2],
}

/// Whether a packet can be read.
enum Room {
    Enough,
    /// The driver will say when it has made more available.
    Lacking,
    /// Too much was looked at for one turn.
    Busy,
}

impl Receiver {
    pub fn new(
        memory: &Memory,
        queue: ActiveQueue,
        features: u64,
        mtu: u16,
        limit: Option<Arc<Limit>>,
    ) -> Self {
        let frame = if receives_large(features) {
            LARGEST
        } else {
            usize::from(mtu) + LINK_HEADER
        };
        Self {
            used: UsedRing::of(&queue.queue),
            queue,
            window: Pieces::new(memory),
            chains: VecDeque::new(),
            room: 0,
            most_room: 0,
            longest: header::LENGTH + frame,
            mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
            checksums: has(features, VIRTIO_NET_F_GUEST_CSUM),
            limit,
            readable: true,
            broken: false,
        }
    }

    pub fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    /// Carries packets for one turn.
    pub fn serve(&mut self, tap: &Tap) -> Turn {
        let turn = self.carry(tap).unwrap_or_else(|Broken| {
            self.broken = true;
            Turn::Done
        });
        let memory = self.window.memory();
        if self.used.driver_waits(memory) {
            self.queue.interrupt.trigger();
        }
        turn
    }

    fn carry(&mut self, tap: &Tap) -> Result<Turn, Broken> {
        let mut packets = PACKETS_AT_ONCE;
        let mut chains = CHAINS_AT_ONCE;
        while self.readable && !self.broken {
            if packets == 0 {
                return Ok(Turn::Again);
            }
            packets -= 1;
            if let Some(wait) = self.limit.as_ref().and_then(|limit| limit.wait()) {
                return Ok(Turn::After(wait));
            }
            match self.make_room(&mut chains)? {
                Room::Enough => {}
                Room::Lacking => return Ok(Turn::Done),
                Room::Busy => return Ok(Turn::Again),
            }
            match tap.read(&mut self.window) {
                Passed::Packet(length) if length >= header::LENGTH => {
                    if let Some(limit) = &self.limit {
                        limit.take((length - header::LENGTH) as u64);
                    }
                    self.deliver(length)?;
                }
                Passed::Gone => {
                    self.readable = false;
                    return Ok(Turn::Gone);
                }
                // There is none; or something that is no packet, and the tap will say when it has the next.
                Passed::Later | Passed::Dropped | Passed::Packet(_) => self.readable = false,
            }
        }
        Ok(Turn::Done)
    }

    /// Takes buffers for the next packet, whose length nobody knows yet.
    fn make_room(&mut self, chains: &mut usize) -> Result<Room, Broken> {
        let memory = self.window.memory().clone();
        let mut full = false;
        loop {
            let enough = if self.mergeable {
                self.room >= self.longest
            } else {
                !self.chains.is_empty()
            };
            if enough || full {
                return Ok(Room::Enough);
            }
            if *chains == 0 {
                return Ok(Room::Busy);
            }
            *chains -= 1;
            match self.queue.next_chain(&memory)? {
                Some(chain) => full = self.take(chain, &memory)?,
                // A driver whose buffers never suffice for the longest packet gets the shorter ones, with half of what it
                // gave once.
                None if self.most_room < self.longest && self.room > self.most_room / 2 => {
                    return Ok(Room::Enough);
                }
                None => return Ok(Room::Lacking),
            }
        }
    }

    /// Takes a chain into the window. Returns whether the window is full without it.
    fn take(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, Broken> {
        let head = chain.head_index();
        let before = self.window.len();
        match self.parse(chain) {
            Some(_) if self.window.len() > MAX_PIECES && !self.chains.is_empty() => {
                self.window.truncate(before);
                self.queue.queue.go_to_previous_position();
                return Ok(true);
            }
            Some(chain) if self.window.len() <= MAX_PIECES => {
                self.room += chain.length;
                self.most_room = self.most_room.max(self.room);
                self.chains.push_back(chain);
            }
            // Of no use for any packet: given back empty.
            _ => {
                self.window.truncate(before);
                self.used.push(memory, head, 0).map_err(|_| Broken)?;
                self.used.publish(memory).map_err(|_| Broken)?;
            }
        }
        Ok(false)
    }

    /// Adds the buffers of a chain to the window, and more if it is of no use.
    fn parse(&mut self, chain: DescriptorChain<&GuestMemoryMmap>) -> Option<Chain> {
        let head = chain.head_index();
        let before = self.window.len();
        let mut length = 0_usize;
        let mut flags = None;
        let mut count = [GuestAddress(0); 2];
        for (number, descriptor) in chain.enumerate() {
            if number >= MAX_PIECES || !descriptor.is_write_only() {
                return None;
            }
            let size = descriptor.len() as usize;
            if size == 0 {
                continue;
            }
            flags.get_or_insert(descriptor.addr());
            for (place, byte) in (NUM_BUFFERS..).zip(&mut count) {
                if let Some(within) = place.checked_sub(length).filter(|within| *within < size) {
                    *byte = descriptor.addr().checked_add(within as u64)?;
                }
            }
            self.window.push(descriptor.addr(), size).ok()?;
            length = length.checked_add(size)?;
        }
        (length >= header::LENGTH).then_some(Chain {
            head,
            pieces: self.window.len() - before,
            length,
            flags: flags?,
            count,
        })
    }

    /// Gives the driver the packet of `length` bytes that lies at the beginning of the window.
    fn deliver(&mut self, length: usize) -> Result<(), Broken> {
        if length > self.room {
            // It was cut off. Its buffers are there for the next one.
            return Ok(());
        }
        let mut rest = length;
        let mut needed = 0_u16;
        for chain in &self.chains {
            if rest == 0 {
                break;
            }
            needed += 1;
            rest = rest.saturating_sub(chain.length);
        }
        let memory = self.window.memory().clone();
        if let Some(first) = self.chains.front() {
            let write = |byte: u8, address| memory.write_obj(byte, address).map_err(|_| Broken);
            for (byte, address) in needed.to_le_bytes().into_iter().zip(first.count) {
                write(byte, address)?;
            }
            if !self.checksums {
                write(0, first.flags)?;
            }
        }
        let mut rest = length;
        for chain in self.chains.drain(..usize::from(needed)) {
            let part = rest.min(chain.length);
            rest -= part;
            self.room -= chain.length;
            self.window.remove_first(chain.pieces);
            // At most a packet.
            self.used
                .push(&memory, chain.head, part as u32)
                .map_err(|_| Broken)?;
        }
        self.used.publish(&memory).map_err(|_| Broken)
    }
}
