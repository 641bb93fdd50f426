//! Every way that blocks go, on the device that is there, against the reference: the choice between them never shows.

use super::*;
use crate::cache::{CacheOptions, Pages, SeqId};
use crate::kv::{Gla, Gqa, KvSource};
use crate::reference;

const CHOICES: [WayKind; 3] = [WayKind::Copies, WayKind::Kernel, WayKind::Host];
const LEN: usize = 70;

/// A cache with two sequences whose pages alternate, but for some that follow each other, down and then up; every word of it
/// another number.
fn cache(gpu: &Gpu, heads: HeadLayout, dtype: DType, size: usize) -> (PagedKvCache, Vec<u32>, SeqId) {
    let mut cache =
        PagedKvCache::new(gpu, heads, CacheOptions::new(dtype, Pages { count: 3 * LEN, size, layers: 1 })).unwrap();
    let gone = cache.insert();
    cache.reserve(&[gone], 60).unwrap();
    cache.remove(gone).unwrap();
    let ids = [cache.insert(), cache.insert()];
    for n in [20, 3, 1, 17, 5, 24] {
        ids.iter().for_each(|id| cache.reserve(&[*id], n).unwrap());
        cache.commit(&ids, n).unwrap();
    }
    let words: Vec<u32> = (0..cache.pool_bytes() as u32 / 4).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    gpu.write(&cache.slabs.layers[0].buffers()[0], 0, bytemuck::cast_slice(&words)).unwrap();
    (cache, words, ids[1])
}

/// The words of the pool that the block is, in the order of a file.
fn places(cache: &PagedKvCache, id: SeqId, block: &RowBlock) -> Vec<usize> {
    let (layout, groups) = (cache.layout, cache.heads.groups());
    let mut planes = vec![4 * layout.state_words; groups];
    planes.extend([4 * layout.rope_words, 4 * layout.scale_words]);
    let all: Vec<usize> = (0..cache.pool_bytes() / 4).collect();
    let table = cache.batch(&[id]).unwrap().page_table;
    let rows = reference::pages_rows(&planes, cache.pages.size, &table, LEN, &all).unwrap();
    let row: usize = planes.iter().sum();
    let mut places = Vec::new();
    let mut first = 0;
    for width in planes {
        let tokens = rows.chunks_exact(row).skip(block.first).take(block.tokens);
        places.extend(tokens.flat_map(|row| &row[first..first + width]));
        first += width;
    }
    places
}

fn kinds() -> Vec<(HeadLayout, DType)> {
    let gla = HeadLayout::gla(Gla { q_heads: 2, latent_heads: 2, latent_dim: 24, rope_dim: 8 }).unwrap();
    let gqa = HeadLayout::gqa(Gqa { q_heads: 3, kv_heads: 3, head_dim: 8 }).unwrap();
    vec![(gla, DType::F16), (gla, DType::I8), (gla, DType::I4), (gqa, DType::F32), (gqa, DType::I8)]
}

/// First token and tokens: whole, inside, across the ends of pages, alone, the last.
const BLOCKS: [(usize, usize); 7] = [(0, LEN), (0, 16), (3, 9), (16, 32), (15, 50), (42, 1), (64, 6)];

fn blocks() -> impl Iterator<Item = RowBlock> {
    BLOCKS.into_iter().map(|(first, tokens)| RowBlock { sequence: 0, layer: 0, first, tokens })
}

#[test]
fn every_way_out_of_pages_gives_the_same_bytes() {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    for ((heads, dtype), size) in kinds().into_iter().flat_map(|kind| [1, 4, 16].map(|size| (kind, size))) {
        let (cache, words, id) = cache(&gpu, heads, dtype, size);
        for choice in CHOICES {
            let mut rows = PageRows::by(choice, &cache, Direction::FromPages, (LEN, LEN)).unwrap();
            rows.sequence(&gpu, cache.table.page_table(id).unwrap()).unwrap();
            for block in blocks() {
                let memory = gpu.host_buffer(rows.most_bytes()).unwrap();
                let (reading, unsorted) = rows.start_read(&gpu, &cache.layer(0).unwrap(), &block, memory).unwrap();
                let arrived = pollster::block_on(gpu.arrived(reading)).unwrap();
                // The next block may be of another sequence.
                rows.sequence(&gpu, &[9; LEN][..LEN.div_ceil(size)]).unwrap();
                let (got, _) = arrived.take(|bytes| rows.read(unsorted.as_ref(), bytes).to_vec()).unwrap();
                rows.sequence(&gpu, cache.table.page_table(id).unwrap()).unwrap();
                let want: Vec<u32> = places(&cache, id, &block).into_iter().map(|at| words[at]).collect();
                let same = got == bytemuck::cast_slice::<u32, u8>(&want);
                assert!(same, "{choice:?} {heads:?} {dtype}, pages of {size}, {block:?}");
            }
        }
    }
}

#[test]
fn every_way_into_pages_writes_the_same_and_nothing_else() {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    for ((heads, dtype), size) in kinds().into_iter().flat_map(|kind| [1, 4, 16].map(|size| (kind, size))) {
        for choice in CHOICES {
            let (cache, mut want, id) = cache(&gpu, heads, dtype, size);
            let mut rows = PageRows::by(choice, &cache, Direction::ToPages, (LEN, LEN)).unwrap();
            rows.sequence(&gpu, cache.table.page_table(id).unwrap()).unwrap();
            for (i, block) in blocks().enumerate() {
                let places = places(&cache, id, &block);
                let words: Vec<u32> = (0..places.len() as u32).map(|w| w << 8 | i as u32 | 1 << 31).collect();
                places.iter().zip(&words).for_each(|(at, word)| want[*at] = *word);
                rows.write(&gpu, &cache.layer(0).unwrap(), &block, bytemuck::cast_slice(&words)).unwrap();
                let pool = crate::Tensor::from_wgpu(
                    &gpu,
                    cache.layer(0).unwrap().wgpu_buffers()[0].clone(),
                    &[want.len()],
                    DType::U32,
                );
                let got = pollster::block_on(gpu.download::<u32>(&pool.unwrap())).unwrap();
                let wrong = got.iter().zip(&want).position(|(got, want)| got != want);
                assert_eq!(wrong, None, "{choice:?} {heads:?} {dtype}, pages of {size}, {block:?}");
            }
        }
    }
}
