//! Packets from the guest: from the buffers of a transmit queue to the tap, without a copy in between.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, QueueOwnedT};
use vm_memory::{Address, Bytes, GuestMemoryMmap};

use super::{
    bucket::Limit,
    header,
    pair::Turn,
    pieces::{MAX_PIECES, Pieces},
    tap::{Passed, Tap},
};
use crate::virtio::{
    device::{ActiveQueue, Broken, Memory},
    used::UsedRing,
};

/// Chains before the other direction has its turn.
const CHAINS_AT_ONCE: usize = 64;

/// The longest frame that is carried, in bytes: the longest packet there is, and the link's header with two VLAN tags.
const LONGEST: usize = 65535 + 14 + 8;

/// One transmit queue.
pub struct Sender {
    queue: ActiveQueue,
    used: UsedRing,
    features: u64,
    frame: Pieces,
    limit: Option<Arc<Limit>>,
    /// The tap takes nothing now.
    pub stuck: bool,
    /// There is no tap: packets end here.
    pub cut: bool,
    broken: bool,
}

impl Sender {
    pub fn new(memory: &Memory, queue: ActiveQueue, features: u64, limit: Option<Arc<Limit>>) -> Self {
        Self {
            used: UsedRing::of(&queue.queue),
            queue,
            features,
            frame: Pieces::new(memory),
            limit,
            stuck: false,
            cut: false,
            broken: false,
        }
    }

    pub fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    /// Carries packets for one turn.
    pub fn serve(&mut self, tap: &Tap) -> Turn {
        let memory = self.frame.memory().clone();
        let turn = self.carry(tap, &memory).unwrap_or_else(|Broken| {
            self.broken = true;
            Turn::Done
        });
        self.broken |= self.used.publish(&memory).is_err();
        if self.used.driver_waits(&memory) {
            self.queue.interrupt.trigger();
        }
        turn
    }

    fn carry(&mut self, tap: &Tap, memory: &GuestMemoryMmap) -> Result<Turn, Broken> {
        for _ in 0..CHAINS_AT_ONCE {
            if self.broken || self.stuck {
                return Ok(Turn::Done);
            }
            if let Some(wait) = self.limit.as_ref().and_then(|limit| limit.wait()) {
                return Ok(Turn::After(wait));
            }
            let Some(chain) = self.queue.next_chain(memory)? else {
                return Ok(Turn::Done);
            };
            let head = chain.head_index();
            if let Some((mut header, length)) = self.parse(chain)
                && !self.cut
            {
                match tap.write(&mut header, &mut self.frame) {
                    Passed::Later => {
                        self.stuck = true;
                        self.queue.queue.go_to_previous_position();
                        return Ok(Turn::Done);
                    }
                    Passed::Gone => {
                        self.cut = true;
                        self.used.push(memory, head, 0).map_err(|_| Broken)?;
                        return Ok(Turn::Gone);
                    }
                    // What the tap doesn't take is lost, as on any wire.
                    Passed::Packet(_) | Passed::Dropped => {}
                }
                if let Some(limit) = &self.limit {
                    limit.take(length as u64);
                }
            }
            self.used.push(memory, head, 0).map_err(|_| Broken)?;
        }
        Ok(Turn::Again)
    }

    /// The header of the packet in `chain`, and the length of its frame, whose pieces are in `frame` then. `None` when it
    /// is no packet.
    fn parse(&mut self, chain: DescriptorChain<&GuestMemoryMmap>) -> Option<([u8; header::LENGTH], usize)> {
        self.frame.truncate(0);
        let memory = self.frame.memory().clone();
        let mut header = [0; header::LENGTH];
        let mut filled = 0;
        let mut length = 0_usize;
        for (number, descriptor) in chain.enumerate() {
            if number >= MAX_PIECES || descriptor.is_write_only() {
                return None;
            }
            let size = descriptor.len() as usize;
            let first = size.min(header::LENGTH - filled);
            memory
                .read_slice(&mut header[filled..filled + first], descriptor.addr())
                .ok()?;
            filled += first;
            if size > first {
                length = length
                    .checked_add(size - first)
                    .filter(|length| *length <= LONGEST)?;
                let address = descriptor.addr().checked_add(first as u64)?;
                self.frame.push(address, size - first).ok()?;
            }
        }
        if filled < header::LENGTH || length == 0 || self.frame.len() > MAX_PIECES {
            return None;
        }
        Some((header::checked(header, self.features, length)?, length))
    }
}
