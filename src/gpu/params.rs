//! Parameters of dispatches: uniform blocks by content, in buffers of many.

use super::numbers_hash::BuildNumbersHash;
use super::tensor::{Buffer, BufferKind};
use super::Gpu;
use crate::error::Result;
use std::collections::HashMap;

/// Largest uniform block of any kernel.
pub(crate) const PARAM_BYTES: usize = 80;
const SLOTS_PER_BUFFER: u64 = 1024;
/// Buffers of blocks that are kept: 16,384 blocks, 4 MiB where they are 256 bytes apart. A decode step has some hundreds.
const BUFFERS: usize = 16;

/// Parameter blocks by content. A block, once written, is never changed: so any number of recorded passes, the app's
/// own among them, may refer to it, and a decode loop that repeats its parameters writes nothing. Where there are too many,
/// the buffer whose blocks were not asked for the longest is let go, with the bind groups that name it; a pass that refers to
/// it keeps its memory. A block of it that is asked for again is written anew elsewhere.
#[derive(Default)]
pub(super) struct ParamPool {
    slots: HashMap<[u8; PARAM_BYTES], ParamSlot, BuildNumbersHash>,
    blocks: Vec<Blocks>,
    /// The one of `blocks` that is being filled.
    filling: usize,
    clock: u64,
}

/// A buffer of blocks.
struct Blocks {
    buffer: Buffer,
    used: u64,
    /// When one of them was last asked for.
    asked: u64,
}

#[derive(Clone)]
pub(super) struct ParamSlot {
    pub(super) buffer: Buffer,
    pub(super) offset: u32,
    /// The buffer's place in the pool.
    place: usize,
}

impl Gpu {
    pub(super) fn param_slot(&self, bytes: &[u8]) -> Result<ParamSlot> {
        let mut key = [0u8; PARAM_BYTES];
        key[..bytes.len()].copy_from_slice(bytes);
        let mut pool = self.lock(&self.inner.params);
        pool.clock += 1;
        let clock = pool.clock;
        if let Some(slot) = pool.slots.get(&key).cloned() {
            pool.blocks[slot.place].asked = clock;
            return Ok(slot);
        }
        let stride = (PARAM_BYTES as u64).next_multiple_of(u64::from(self.capabilities().uniform_align_bytes).max(1));
        let mut gone = None;
        if pool.blocks.get(pool.filling).is_none_or(|blocks| blocks.used == SLOTS_PER_BUFFER) {
            let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
            let buffer = self.create_buffer_as("params", stride * SLOTS_PER_BUFFER, usage, BufferKind::Params)?;
            gone = pool.make_room(Blocks { buffer, used: 0, asked: clock });
        }
        let place = pool.filling;
        let blocks = &mut pool.blocks[place];
        let offset = blocks.used * stride;
        (blocks.used, blocks.asked) = (blocks.used + 1, clock);
        // Not ordered after pending commands on purpose: nothing recorded so far can refer to a fresh slot.
        self.inner.queue.write_buffer(blocks.buffer.raw(), offset, &key);
        let slot = ParamSlot { buffer: blocks.buffer.clone(), offset: offset as u32, place };
        pool.slots.insert(key, slot.clone());
        drop(pool);
        drop(gone); // looks for bind groups that name it
        Ok(slot)
    }
}

impl ParamPool {
    /// Takes in a buffer to fill next. What had to go for it is returned, with the last handles of its own.
    fn make_room(&mut self, blocks: Blocks) -> Option<Vec<Buffer>> {
        if self.blocks.len() < BUFFERS {
            self.filling = self.blocks.len();
            self.blocks.push(blocks);
            return None;
        }
        let place = (0..BUFFERS).min_by_key(|place| self.blocks[*place].asked)?;
        let mut gone = Vec::new();
        self.slots.retain(|_, slot| {
            let stays = slot.place != place;
            if !stays {
                gone.push(slot.buffer.clone());
            }
            stays
        });
        self.filling = place;
        gone.push(std::mem::replace(&mut self.blocks[place], blocks).buffer);
        Some(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noop() -> Gpu {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        Gpu::from_wgpu(None, device, queue).unwrap()
    }

    /// However many blocks there were, so many are kept, the last ones asked for among them; and a slot that someone holds is
    /// not given to another.
    #[test]
    fn parameter_blocks_are_bounded_and_never_overwritten() {
        let gpu = noop();
        let block = |i: u64| [i.to_le_bytes(); PARAM_BYTES / 8].concat();
        let often = gpu.param_slot(&block(u64::MAX)).unwrap();
        let mut first = None;
        for i in 0..40 * SLOTS_PER_BUFFER {
            let slot = gpu.param_slot(&block(i)).unwrap();
            let (held, at) = first.get_or_insert((slot.buffer.clone(), slot.offset));
            assert!(i == 0 || held.id() != slot.buffer.id() || *at != slot.offset, "block {i} overwrites the first");
            // What is asked for all the time stays where it is.
            if i % 100 == 0 {
                let again = gpu.param_slot(&block(u64::MAX)).unwrap();
                assert_eq!((again.buffer.id(), again.offset), (often.buffer.id(), often.offset));
            }
        }
        let pool = gpu.lock(&gpu.inner.params);
        assert!(pool.slots.len() as u64 <= BUFFERS as u64 * SLOTS_PER_BUFFER && pool.blocks.len() == BUFFERS);
        assert_eq!(gpu.counters().buffers, 41, "40 of blocks, and one for the block more");
    }
}
