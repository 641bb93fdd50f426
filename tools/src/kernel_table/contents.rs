//! What the pools of a row hold: random elements, written by copies on the device, and the same as numbers for the check.

use crate::common::timing::{repeat, upload, Block};
use half::f16;
use latten::kv::StateLayout;
use latten::{wgpu, DType, Gpu, HeadLayout, Result};

/// Contents for one layout and page size. Of floats any sequence makes a cache, so the block does for all of them; pages
/// of integers have planes of halves and of scales, and are made for the layout.
pub struct Contents<'a> {
    block: &'a Block,
    heads: HeadLayout,
    page_size: usize,
    layout: StateLayout,
    scaled: Option<ScaledPages>,
}

/// Pages of integers with their scales, to be repeated.
struct ScaledPages {
    bytes: Vec<u8>,
    buffer: wgpu::Buffer,
}

/// Bytes of scaled pages, about: few copies fill a pool, and the host makes them in a moment.
const SCALED_BYTES: usize = 24 << 20;

impl<'a> Contents<'a> {
    pub fn new(gpu: &Gpu, heads: HeadLayout, page_size: usize, block: &'a Block) -> Self {
        let layout = StateLayout::new(&heads, block.dtype());
        let mut contents = Contents { block, heads, page_size, layout, scaled: None };
        if contents.layout.spans > 0 {
            let bytes = contents.scaled_pages();
            contents.scaled = Some(ScaledPages { buffer: upload(gpu, &bytes), bytes });
        }
        contents
    }

    /// Writes them into a pool.
    pub fn fill(&self, gpu: &Gpu, pool: &wgpu::Buffer) -> Result<()> {
        match &self.scaled {
            Some(pages) => repeat(gpu, &pages.buffer, pool),
            None => self.block.fill(gpu, pool),
        }
    }

    /// First word of a page's rope keys, first word of its scales, and its words in all.
    fn plane_words(&self) -> [usize; 3] {
        let states = self.heads.groups() * self.layout.state_words;
        [states, states + self.layout.rope_words, self.layout.row_words(self.heads.groups())]
            .map(|w| w * self.page_size)
    }

    /// Whether a byte holds two integers.
    fn nibbles(&self) -> bool {
        self.block.dtype() == DType::I4
    }

    /// Integer `i` of those that begin with the first of `bytes`.
    fn whole(&self, bytes: &[u8], i: usize) -> f64 {
        let whole = match self.nibbles() {
            false => bytes[i] as i8,
            // A nibble in the upper half of a byte, and back with its sign.
            true => ((bytes[i / 2] >> (4 * (i % 2))) << 4) as i8 >> 4,
        };
        whole.into()
    }

    fn scaled_pages(&self) -> Vec<u8> {
        let [rope_first, scales_first, page_words] = self.plane_words();
        // An odd number: no two pages of a sequence that lie a power of two apart are alike.
        let count = (SCALED_BYTES / (16 * page_words)).max(2) | 1;
        let mut bytes = Vec::with_capacity(16 * page_words * count);
        let mut values = self.block.values().iter().copied().cycle();
        let mut next = |n: usize| values.by_ref().take(n).collect::<Vec<f32>>();
        // Of integers, to one.
        let steps = if self.nibbles() { 3.5 } else { 63.5 };
        for _ in 0..count {
            // Values lie between -2 and 2.
            let whole = |value: f32| (value * steps).round() as i8 as u8;
            match self.nibbles() {
                false => bytes.extend(next(16 * rope_first).iter().map(|value| whole(*value))),
                true => {
                    let pairs = next(32 * rope_first);
                    bytes.extend(pairs.chunks_exact(2).map(|pair| whole(pair[0]) & 15 | whole(pair[1]) << 4));
                }
            }
            let halves = next(8 * (scales_first - rope_first));
            bytes.extend(halves.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()));
            // About the step that would keep the values' size, another for every token and span.
            let scales = next(4 * (page_words - scales_first));
            bytes.extend(scales.iter().flat_map(|value| ((1.0 + 0.25 * value) / steps).to_le_bytes()));
        }
        bytes
    }

    /// States of one group, and rope keys, of the first tokens of a sequence with these pages.
    pub fn rows(&self, pages: &[u32], tokens: usize, group: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut states, mut keys) = (Vec::new(), Vec::new());
        let [rope_first, _, page_words] = self.plane_words();
        for t in 0..tokens {
            let (page, offset) = (pages[t / self.page_size] as usize, t % self.page_size);
            // Words of the pool. The table's shapes need no padding: a state's elements are consecutive.
            let page_first = page * page_words;
            let state = page_first + (group * self.page_size + offset) * self.layout.state_words;
            let rope = page_first + rope_first + offset * self.layout.rope_words;
            match &self.scaled {
                None => {
                    let elements = self.layout.elems_per_word;
                    states.extend((0..self.heads.state_dim()).map(|i| self.block.value(state * elements + i)));
                    keys.extend((0..self.heads.rope_dim()).map(|i| self.block.value(rope * elements + i)));
                }
                Some(pages) => {
                    let scales = [0, 1].map(|span| self.scale(pages, page_first, offset, group, span));
                    // A second scale where the value lies apart from the key.
                    let value_first = if self.layout.spans == 2 { self.heads.v_offset() } else { usize::MAX };
                    let scale = |i: usize| scales[usize::from(i >= value_first)];
                    let state = pages.at(16 * state);
                    states.extend((0..self.heads.state_dim()).map(|i| scale(i) * self.whole(state, i)));
                    let rope = pages.at(16 * rope)[..2 * self.heads.rope_dim()].chunks_exact(2);
                    keys.extend(rope.map(|half| f16::from_le_bytes([half[0], half[1]]).to_f64()));
                }
            }
        }
        (states, keys)
    }

    /// The scale of a token's span; where there is one span, either is it.
    fn scale(&self, pages: &ScaledPages, page_first: usize, offset: usize, group: usize, span: usize) -> f64 {
        let [_, scales_first, _] = self.plane_words();
        let word = page_first + scales_first + offset * self.layout.scale_words;
        let index = group * self.layout.spans + span.min(self.layout.spans - 1);
        let bytes = &pages.at(16 * word)[4 * index..];
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into()
    }
}

impl ScaledPages {
    /// From a byte of the pool on, to the end of its page at least.
    fn at(&self, byte: usize) -> &[u8] {
        &self.bytes[byte % self.bytes.len()..]
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::measure;
    use super::super::shapes::Shape;
    use super::*;
    use latten::{GpuOptions, Gqa, Gta, Tier};

    /// A state of two spans, and one of one with a rope key; pages of many tokens and of one. What the kernels read must be what the
    /// reference is given, or `measure` fails.
    #[test]
    fn contents_are_what_kernels_read() {
        // The kernels that software GPUs compile fastest.
        let options = GpuOptions { tier: Some(Tier::Portable), ..Default::default() };
        let gpu = pollster::block_on(Gpu::with_options(options)).unwrap();
        if !gpu.capabilities().timestamps {
            println!("skipped: no timestamp queries on {}", gpu.capabilities().adapter);
            return;
        }
        let gqa = HeadLayout::gqa(Gqa { q_heads: 4, kv_heads: 2, head_dim: 16 }).unwrap();
        let gta = HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 16, rope_dim: 8 }).unwrap();
        // Whose keys fill words of 32 elements.
        let wide = HeadLayout::gqa(Gqa { q_heads: 4, kv_heads: 2, head_dim: 32 }).unwrap();
        for (dtype, layouts) in
            [(DType::BF16, &[(gta, 16)][..]), (DType::I8, &[(gqa, 16), (gta, 1)]), (DType::I4, &[(wide, 16), (gta, 1)])]
        {
            let block = Block::new(&gpu, dtype);
            for &(heads, page_size) in layouts {
                let lengths = vec![300, 17, 150];
                let shape = Shape { name: "small".into(), heads, lengths, q_len: 2, page_size, warm: true };
                let start = std::time::Instant::now();
                let measured = pollster::block_on(measure(&gpu, &shape, &block)).unwrap();
                println!("{heads:?} {dtype}: {:.1?}", start.elapsed());
                assert!(measured.max_error < 1e-5, "{heads:?} {dtype}: {:e}", measured.max_error);
            }
        }
    }

    /// GQA: a key's and a value's scale per group; GTA: one per group, and a rope key of halves.
    #[test]
    fn bytes_of_integers_count_scales_and_halves() {
        let shape = |heads| {
            let lengths = vec![1000];
            Shape { name: String::new(), heads, lengths, q_len: 1, page_size: 64, warm: false }
        };
        let gqa = shape(HeadLayout::gqa(Gqa { q_heads: 16, kv_heads: 4, head_dim: 128 }).unwrap());
        let gta = shape(HeadLayout::gta(Gta { q_heads: 16, kv_heads: 4, head_dim: 128, rope_dim: 64 }).unwrap());
        for (shape, i4_bytes, i8_bytes, bf16_bytes) in [(gqa, 544, 1056, 2048), (gta, 400, 656, 1152)] {
            let io = 4 * 16 * (128 + 128 + 1);
            assert_eq!(shape.bytes_and_flops(DType::I4).0, (1000 * i4_bytes + io) as f64, "{:?}", shape.heads);
            assert_eq!(shape.bytes_and_flops(DType::I8).0, (1000 * i8_bytes + io) as f64, "{:?}", shape.heads);
            assert_eq!(shape.bytes_and_flops(DType::BF16).0, (1000 * bf16_bytes + io) as f64, "{:?}", shape.heads);
        }
    }
}
