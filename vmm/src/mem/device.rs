//! The device: its configuration (virtio 1.2, 5.15.4) and its queue of requests (5.15.6).

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::GuestMemoryMmap;

use super::{
    blocks::{BLOCK, Plugged, Refusal},
    growth::Growth,
};
use crate::{
    memory::give_back,
    template::NotAtRest,
    virtio::device::{ActivateError, Activation, ActiveQueue, Memory, Part, VirtioDevice},
};

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

/// `struct virtio_mem_req`.
const REQUEST: usize = 24;
/// `struct virtio_mem_resp`.
const RESPONSE: usize = 10;

/// The most requests for one notification; what is left has its turn after the other devices.
const MAX_TURN: usize = 64;

/// The device.
pub struct Mem {
    growth: Growth,
}

impl Mem {
    /// The device of a region.
    #[must_use]
    pub fn new(growth: Growth) -> Self {
        Self { growth }
    }

    /// `struct virtio_mem_config`.
    fn config(&self) -> [u8; 56] {
        let fields = self.growth.with(|blocks| {
            [
                BLOCK,
                // The node's number, which needs a feature that is not offered.
                0,
                blocks.start(),
                blocks.size(),
                // All of it is usable from the first.
                blocks.size(),
                blocks.plugged(),
                blocks.requested(),
            ]
        });
        let mut config = [0; 56];
        for (place, field) in config.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        config
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..))
            .unwrap_or_default();
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = *value;
        }
    }

    fn config_generation(&self) -> u8 {
        self.growth.generation()
    }

    /// Nothing is there yet: a template's memory is that of its start.
    fn save(&self) -> Result<Vec<u8>, NotAtRest> {
        let (plugged, requested) = self.growth.with(|blocks| (blocks.plugged(), blocks.requested()));
        if plugged > 0 || requested > 0 {
            return Err(NotAtRest("it has grown".to_owned()));
        }
        Ok(Vec::new())
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Part>, ActivateError> {
        let Activation {
            memory,
            queues,
            config_interrupt,
            ..
        } = activation;
        match queues.into_iter().next() {
            Some(queue) if queue.queue.ready() => {
                self.growth.connect(Some(config_interrupt));
                Ok(vec![Part::shared(ActiveMem {
                    memory,
                    queue,
                    growth: self.growth.clone(),
                })])
            }
            _ => Err(ActivateError::QueueNotEnabled(0)),
        }
    }
}

struct ActiveMem {
    memory: Memory,
    queue: ActiveQueue,
    growth: Growth,
}

impl Drop for ActiveMem {
    fn drop(&mut self) {
        self.growth.connect(None);
    }
}

/// Carries one request out. Returns the bytes of the answer, `None` when there is no room for one.
fn request(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    growth: &Growth,
) -> Option<u32> {
    use std::io::{Read, Write};
    let mut request = [0; REQUEST];
    let read = chain
        .clone()
        .reader(memory)
        .ok()?
        .read_exact(&mut request)
        .is_ok();
    let answer = if read {
        answer(&request, memory, growth)
    } else {
        (ERROR, 0)
    };
    let mut response = [0; RESPONSE];
    response[..2].copy_from_slice(&answer.0.to_le_bytes());
    response[8..].copy_from_slice(&answer.1.to_le_bytes());
    chain.writer(memory).ok()?.write_all(&response).ok()?;
    Some(RESPONSE as u32)
}

/// The answer's type and state.
fn answer(request: &[u8; REQUEST], memory: &GuestMemoryMmap, growth: &Growth) -> (u16, u16) {
    let kind = u16::from_le_bytes([request[0], request[1]]);
    let mut address = [0; 8];
    address.copy_from_slice(&request[8..16]);
    let address = u64::from_le_bytes(address);
    let count = u16::from_le_bytes([request[16], request[17]]);
    let result = growth.with(|blocks| match kind {
        PLUG => blocks.plug(address, count).map(|()| (None, 0)),
        UNPLUG => blocks.unplug(address, count).map(|range| (Some(range), 0)),
        UNPLUG_ALL => Ok((Some(blocks.unplug_all()), 0)),
        STATE => blocks.state(address, count).map(|state| {
            let state = match state {
                Plugged::All => 0,
                Plugged::None => 1,
                Plugged::Some => 2,
            };
            (None, state)
        }),
        _ => Err(Refusal::Error),
    });
    match result {
        Ok((unplugged, state)) => {
            if let Some(range) = unplugged {
                give_back(memory, range.start, range.length);
            }
            (ACK, state)
        }
        Err(Refusal::Nack) => (NACK, 0),
        Err(Refusal::Error) => (ERROR, 0),
    }
}

impl MutEventSubscriber for ActiveMem {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let (memory, growth) = (&self.memory, &self.growth);
        self.queue.turn(memory, MAX_TURN, |chain| {
            request(chain, memory, growth).unwrap_or(0)
        });
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Fails only if the host has no memory left: the guest then gets no more either.
        let _ = ops.add(Events::new(&self.queue.kick, EventSet::IN));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::{
        Queue,
        desc::{RawDescriptor, split::Descriptor},
        mock::MockSplitQueue,
    };
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const START: u64 = 4 << 30;
    const FROM: u64 = 0x1_0000;
    const TO: u64 = 0x1_1000;

    fn machine() -> (Memory, Growth) {
        let regions = [(GuestAddress(0), 0x2_0000), (GuestAddress(START), 8 << 20)];
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        (Arc::new(memory), Growth::new(GuestAddress(START), 8 << 20))
    }

    fn wire(kind: u16, address: u64, count: u16) -> [u8; REQUEST] {
        let mut request = [0; REQUEST];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        request
    }

    /// The length and the answer to a request of `lengths` bytes, for the request and for the answer.
    fn ask(
        (memory, growth): &(Memory, Growth),
        bytes: &[u8],
        lengths: (u32, u32),
    ) -> (Option<u32>, [u8; RESPONSE]) {
        memory.write_slice(bytes, GuestAddress(FROM)).unwrap();
        memory.write_slice(&[0xff; RESPONSE], GuestAddress(TO)).unwrap();
        let ring = MockSplitQueue::new(memory.as_ref(), 16);
        let chain = [
            RawDescriptor::from(Descriptor::new(FROM, lengths.0, 1, 1)),
            RawDescriptor::from(Descriptor::new(TO, lengths.1, VRING_DESC_F_WRITE as u16, 0)),
        ];
        ring.build_desc_chain(&chain).unwrap();
        let mut queue: Queue = ring.create_queue().unwrap();
        let chain = queue.pop_descriptor_chain(memory.as_ref()).unwrap();
        let length = request(chain, memory, growth);
        let mut answer = [0; RESPONSE];
        memory.read_slice(&mut answer, GuestAddress(TO)).unwrap();
        (length, answer)
    }

    fn answer_to(machine: &(Memory, Growth), kind: u16, address: u64, count: u16) -> (u16, u16) {
        let (length, answer) = ask(machine, &wire(kind, address, count), (24, 10));
        assert_eq!(length, Some(10));
        (
            u16::from_le_bytes([answer[0], answer[1]]),
            u16::from_le_bytes([answer[8], answer[9]]),
        )
    }

    #[test]
    fn requests_are_answered_as_the_specification_says() {
        let machine = machine();
        assert_eq!(answer_to(&machine, PLUG, START, 1), (NACK, 0));
        assert_eq!(machine.1.request(6 << 20), 6 << 20);
        assert_eq!(answer_to(&machine, PLUG, START, 2), (ACK, 0));
        assert_eq!(answer_to(&machine, STATE, START, 2), (ACK, 0));
        assert_eq!(answer_to(&machine, STATE, START + (4 << 20), 1), (ACK, 1));
        assert_eq!(answer_to(&machine, STATE, START, 3), (ACK, 2));
        assert_eq!(answer_to(&machine, UNPLUG, START, 3), (ERROR, 0));
        assert_eq!(answer_to(&machine, UNPLUG, START, 1), (ACK, 0));
        assert_eq!(answer_to(&machine, UNPLUG_ALL, 0, 0), (ACK, 0));
        assert_eq!(answer_to(&machine, STATE, START, 4), (ACK, 1));
        assert_eq!(answer_to(&machine, 4, START, 1), (ERROR, 0));
    }

    #[test]
    fn unplugged_memory_goes_back_to_the_host() {
        let machine = machine();
        assert_eq!(machine.1.request(8 << 20), 8 << 20);
        answer_to(&machine, PLUG, START, 4);
        let written = GuestAddress(START + 5);
        machine.0.write_obj(7_u8, written).unwrap();
        answer_to(&machine, UNPLUG, START, 1);
        assert_eq!(machine.0.read_obj::<u8>(written).unwrap(), 0);
    }

    #[test]
    fn half_a_request_is_an_error_and_half_an_answer_none() {
        let machine = machine();
        assert_eq!(machine.1.request(8 << 20), 8 << 20);
        let (length, answer) = ask(&machine, &wire(PLUG, START, 1), (23, 10));
        assert_eq!((length, answer[0]), (Some(10), 3));
        assert_eq!(ask(&machine, &wire(PLUG, START, 1), (24, 9)).0, None);
    }

    #[test]
    fn the_configuration_tells_the_region_and_what_is_wanted() {
        let (_, growth) = machine();
        let device = Mem::new(growth.clone());
        assert_eq!(growth.request(4 << 20), 4 << 20);
        let field = |offset| {
            let mut field = [0; 8];
            device.read_config(offset, &mut field);
            u64::from_le_bytes(field)
        };
        assert_eq!(field(0), 2 << 20);
        assert_eq!(field(16), START);
        assert_eq!((field(24), field(32)), (8 << 20, 8 << 20));
        assert_eq!((field(40), field(48)), (0, 4 << 20));
        assert_eq!(field(56), 0);
        assert_eq!(field(u64::MAX), 0);
    }

    proptest! {
        #[test]
        fn no_request_plugs_more_than_was_granted(
            requests in prop::collection::vec((0_u16..6, any::<u64>(), any::<u16>(), any::<bool>()), 0..40),
        ) {
            let machine = machine();
            prop_assert_eq!(machine.1.request(4 << 20), 4 << 20);
            for (kind, address, count, near) in requests {
                let (address, count) = if near {
                    (START + (address % 5) * BLOCK, count % 6)
                } else {
                    (address, count)
                };
                answer_to(&machine, kind, address, count);
                prop_assert!(machine.1.with(|blocks| blocks.plugged()) <= 4 << 20);
            }
        }
    }
}
