//! Which blocks of the region are plugged (virtio 1.2, 5.15.6).

use vm_memory::GuestAddress;

/// The size of a block in bytes: what the guest can plug at once. Linux can use no smaller ones, and the host can back one by
/// a huge page.
pub const BLOCK: u64 = 2 << 20;

/// A range of blocks that is in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first block's address.
    pub start: GuestAddress,
    /// In bytes.
    pub length: u64,
}

/// Why a request gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It would be more than was requested by the host.
    Nack,
    /// Its blocks are not in the region, or not in the state that it needs.
    Error,
}

/// What the blocks of a range are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugged {
    /// All plugged.
    All,
    /// None.
    None,
    /// Some.
    Some,
}

/// The region's blocks.
#[derive(Debug)]
pub struct Blocks {
    start: u64,
    count: u64,
    /// A bit for each block.
    bits: Vec<u64>,
    plugged: u64,
    requested: u64,
}

impl Blocks {
    /// Of a region of `length` bytes at `start`, none plugged. Both are multiples of [`BLOCK`], and their sum is an address.
    #[must_use]
    pub fn new(start: GuestAddress, length: u64) -> Self {
        let count = length / BLOCK;
        Self {
            start: start.0,
            count,
            bits: vec![0; usize::try_from(count.div_ceil(64)).unwrap_or(0)],
            plugged: 0,
            requested: 0,
        }
    }

    /// The region's address.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.count * BLOCK
    }

    /// What is plugged, in bytes.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        self.plugged * BLOCK
    }

    /// What the host wants plugged, in bytes.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.requested * BLOCK
    }

    /// Changes what the host wants plugged, down to whole blocks and the region's size.
    pub fn request(&mut self, bytes: u64) {
        self.requested = (bytes / BLOCK).min(self.count);
    }

    fn is_plugged(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64)
            .ok()
            .and_then(|word| self.bits.get(word));
        word.is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    fn set(&mut self, blocks: std::ops::Range<u64>, plugged: bool) {
        for block in blocks {
            let word = usize::try_from(block / 64)
                .ok()
                .and_then(|word| self.bits.get_mut(word));
            if let Some(word) = word {
                let bit = 1 << (block % 64);
                *word = if plugged { *word | bit } else { *word & !bit };
            }
        }
    }

    /// The blocks' numbers, if they are in the region.
    fn range(&self, address: u64, count: u16) -> Result<std::ops::Range<u64>, Refusal> {
        let offset = address.checked_sub(self.start).ok_or(Refusal::Error)?;
        let first = offset / BLOCK;
        let end = first.checked_add(count.into()).ok_or(Refusal::Error)?;
        if count == 0 || !offset.is_multiple_of(BLOCK) || end > self.count {
            return Err(Refusal::Error);
        }
        Ok(first..end)
    }

    /// What `count` blocks from `address` on are.
    ///
    /// # Errors
    /// [`Refusal::Error`]
    pub fn state(&self, address: u64, count: u16) -> Result<Plugged, Refusal> {
        let mut range = self.range(address, count)?;
        let first = self.is_plugged(range.start);
        if range.any(|block| self.is_plugged(block) != first) {
            return Ok(Plugged::Some);
        }
        Ok(if first { Plugged::All } else { Plugged::None })
    }

    /// Plugs blocks, none of which is plugged.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn plug(&mut self, address: u64, count: u16) -> Result<(), Refusal> {
        let range = self.range(address, count)?;
        if self.state(address, count)? != Plugged::None {
            return Err(Refusal::Error);
        }
        let plugged = self.plugged + u64::from(count);
        if plugged > self.requested {
            return Err(Refusal::Nack);
        }
        self.set(range, true);
        self.plugged = plugged;
        Ok(())
    }

    /// Unplugs blocks, all of which are plugged. Returns where they are.
    ///
    /// # Errors
    /// [`Refusal::Error`]
    pub fn unplug(&mut self, address: u64, count: u16) -> Result<Range, Refusal> {
        let range = self.range(address, count)?;
        if self.state(address, count)? != Plugged::All {
            return Err(Refusal::Error);
        }
        self.set(range, false);
        self.plugged -= u64::from(count);
        Ok(Range {
            start: GuestAddress(address),
            length: u64::from(count) * BLOCK,
        })
    }

    /// Unplugs all. Returns where the region is.
    pub fn unplug_all(&mut self) -> Range {
        self.bits.fill(0);
        self.plugged = 0;
        Range {
            start: GuestAddress(self.start),
            length: self.size(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 4 << 30;

    fn blocks(count: u64) -> Blocks {
        let mut blocks = Blocks::new(GuestAddress(START), count * BLOCK);
        blocks.request(u64::MAX);
        blocks
    }

    #[test]
    fn the_guest_gets_what_the_host_requested_and_no_more() {
        let mut blocks = blocks(128);
        blocks.request(3 * BLOCK + 1);
        assert_eq!(blocks.requested(), 3 * BLOCK);
        assert_eq!(blocks.plug(START, 4), Err(Refusal::Nack));
        blocks.plug(START + BLOCK, 2).unwrap();
        assert_eq!(blocks.plug(START + 4 * BLOCK, 2), Err(Refusal::Nack));
        blocks.plug(START + 4 * BLOCK, 1).unwrap();
        assert_eq!(blocks.plugged(), 3 * BLOCK);
        blocks.request(0);
        assert_eq!(
            blocks.plugged(),
            3 * BLOCK,
            "what the guest has is the guest's to give back"
        );
    }

    #[test]
    fn blocks_outside_of_the_region_are_an_error() {
        let mut blocks = blocks(128);
        for (address, count) in [
            (START, 0),
            (START - BLOCK, 1),
            (START + 1, 1),
            (START, 129),
            (START + 128 * BLOCK, 1),
            (START + 127 * BLOCK, 2),
            (0, u16::MAX),
            (u64::MAX, u16::MAX),
            (!(BLOCK - 1), 1),
        ] {
            assert_eq!(blocks.plug(address, count), Err(Refusal::Error));
            assert_eq!(blocks.unplug(address, count), Err(Refusal::Error));
            assert_eq!(blocks.state(address, count), Err(Refusal::Error));
        }
        assert_eq!(blocks.plugged(), 0);
    }

    #[test]
    fn a_block_is_plugged_once_and_unplugged_once() {
        let mut blocks = blocks(128);
        blocks.plug(START + 62 * BLOCK, 4).unwrap();
        assert_eq!(blocks.plug(START + 65 * BLOCK, 2), Err(Refusal::Error));
        assert_eq!(blocks.unplug(START + 65 * BLOCK, 2), Err(Refusal::Error));
        assert_eq!(blocks.state(START + 62 * BLOCK, 4), Ok(Plugged::All));
        assert_eq!(blocks.state(START + 61 * BLOCK, 2), Ok(Plugged::Some));
        assert_eq!(blocks.state(START + 66 * BLOCK, 62), Ok(Plugged::None));
        let range = blocks.unplug(START + 63 * BLOCK, 2).unwrap();
        assert_eq!((range.start.0, range.length), (START + 63 * BLOCK, 2 * BLOCK));
        assert_eq!(blocks.plugged(), 2 * BLOCK);
        assert_eq!(blocks.unplug_all().length, 128 * BLOCK);
        assert_eq!(blocks.plugged(), 0);
        assert_eq!(blocks.state(START, 128), Ok(Plugged::None));
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_blocks(requests in prop::collection::vec((0_u64..200, 0_u16..80, any::<bool>()), 0..60)) {
            let mut blocks = blocks(150);
            let mut model = [false; 150];
            for (first, count, plug) in requests {
                let address = START + first * BLOCK;
                let done = if plug {
                    blocks.plug(address, count).is_ok()
                } else {
                    blocks.unplug(address, count).is_ok()
                };
                let range = first as usize..first as usize + usize::from(count);
                let possible = count > 0
                    && model.get(range.clone()).is_some_and(|range| range.iter().all(|&is| is != plug));
                prop_assert_eq!(done, possible);
                if done {
                    model[range].fill(plug);
                }
                let plugged = model.iter().filter(|&&is| is).count();
                prop_assert_eq!(blocks.plugged(), plugged as u64 * BLOCK);
            }
        }
    }
}
