//! The control queue (virtio 1.2, 5.1.6.5).

use std::{
    io::{Read, Write},
    sync::Arc,
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::{link::Link, tap::Tap};
use crate::virtio::{
    device::{ActiveQueue, Broken, Memory},
    used::UsedRing,
};

/// Commands before other devices have their turn.
const COMMANDS_AT_ONCE: usize = 16;

const RX: u8 = VIRTIO_NET_CTRL_RX as u8;
const PROMISC: u8 = VIRTIO_NET_CTRL_RX_PROMISC as u8;
const ALLMULTI: u8 = VIRTIO_NET_CTRL_RX_ALLMULTI as u8;
const MAC: u8 = VIRTIO_NET_CTRL_MAC as u8;
const TABLE_SET: u8 = VIRTIO_NET_CTRL_MAC_TABLE_SET as u8;
const ADDR_SET: u8 = VIRTIO_NET_CTRL_MAC_ADDR_SET as u8;
const MQ: u8 = VIRTIO_NET_CTRL_MQ as u8;
const PAIRS_SET: u8 = VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8;

/// The control queue with what its commands are about.
pub struct Commands {
    memory: Memory,
    queue: ActiveQueue,
    used: UsedRing,
    /// Those that the driver may use.
    taps: Vec<Arc<Tap>>,
    link: Arc<Link>,
    broken: bool,
}

impl Commands {
    pub fn new(memory: Memory, queue: ActiveQueue, taps: Vec<Arc<Tap>>, link: Arc<Link>) -> Self {
        Self {
            memory,
            used: UsedRing::of(&queue.queue),
            queue,
            taps,
            link,
            broken: false,
        }
    }

    fn serve(&mut self) -> Result<(), Broken> {
        let memory = self.memory.clone();
        let mut left = COMMANDS_AT_ONCE;
        while let Some(chain) = self.queue.next_chain(&memory)? {
            let head = chain.head_index();
            let length = self.answer(chain, &memory);
            self.used.push(&memory, head, length).map_err(|_| Broken)?;
            left -= 1;
            if left == 0 {
                self.queue.come_back();
                break;
            }
        }
        self.used.publish(&memory).map_err(|_| Broken)?;
        if self.used.driver_waits(&memory) {
            self.queue.interrupt.trigger();
        }
        Ok(())
    }

    /// Carries out the command in `chain` and writes whether it could. Returns the length of that.
    fn answer(&mut self, chain: DescriptorChain<&GuestMemoryMmap>, memory: &GuestMemoryMmap) -> u32 {
        let Ok(mut writer) = chain.clone().writer(memory) else {
            return 0;
        };
        let done = chain
            .reader(memory)
            .is_ok_and(|mut reader| self.carry_out(&mut reader));
        let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8;
        u32::from(writer.write_all(&[answer]).is_ok())
    }

    fn carry_out(&self, command: &mut impl Read) -> bool {
        let mut kind = [0; 2];
        if command.read_exact(&mut kind).is_err() {
            return false;
        }
        match kind {
            // Everything that reaches the tap reaches the guest, as the interface that the tap stands for has it.
            [RX, PROMISC | ALLMULTI] | [MAC, TABLE_SET] => true,
            [MAC, ADDR_SET] => {
                let mut mac = [0; 6];
                let given = command.read_exact(&mut mac).is_ok();
                if given {
                    self.link.set_mac(mac);
                }
                given
            }
            [MQ, PAIRS_SET] => {
                let mut pairs = [0; 2];
                command.read_exact(&mut pairs).is_ok() && self.use_pairs(u16::from_le_bytes(pairs).into())
            }
            _ => false,
        }
    }

    fn use_pairs(&self, pairs: usize) -> bool {
        (1..=self.taps.len()).contains(&pairs) && use_pairs(&self.taps, pairs)
    }
}

/// Has the interface use the first `pairs` of its queues only. Returns whether it does.
pub fn use_pairs(taps: &[Arc<Tap>], pairs: usize) -> bool {
    let mut done = true;
    for (number, tap) in taps.iter().enumerate() {
        done &= tap.attach(number < pairs).is_ok();
    }
    done
}

impl MutEventSubscriber for Commands {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // A descriptor of ours that epoll knows how to poll: only memory can be lacking.
        if let Err(error) = ops.add(Events::new(&self.queue.kick, EventSet::IN)) {
            eprintln!("sealock-vmm: cannot watch a network device's control queue: {error}");
        }
        // Whatever became available before.
        self.queue.come_back();
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // Fails only if there is nothing to be read.
        let _ = self.queue.kick.read();
        if !self.broken {
            self.broken = self.serve().is_err();
        }
    }
}
