//! Saved caches: every bit of every committed row, through pages of other sizes, and their tokens.
//! Files that are refused: `saved_files.rs`.

use crate::append::pool;
use crate::common::{bits, gpu, gpu_with, layouts, small, wait, Rng};
use latten::cache::{saved_info, LoadedSequence, Progress, Save, SaveSequence};
use latten::kv::{KvSource, StateLayout};
use latten::{
    reference, CacheOptions, DType, Decode, DecodeArgs, Error, ErrorKind, Gla, Gpu, GpuOptions, HeadLayout,
    PagedKvCache, Pages, Rope, RopePairs, SeqId, SequenceOptions, SplitPolicy, Tensor,
};

pub const MODEL: &[u8] = b"some model";

pub fn cache(gpu: &Gpu, heads: HeadLayout, dtype: DType, pages: Pages) -> PagedKvCache {
    PagedKvCache::new(gpu, heads, CacheOptions::new(dtype, pages)).unwrap()
}

/// Puts random bits everywhere, so that every word counts, NaN among them, and nothing is where it should not be.
pub fn scramble(gpu: &Gpu, cache: &PagedKvCache, rng: &mut Rng) {
    for layer in 0..cache.pages().layers {
        for slab in cache.layer(layer).unwrap().wgpu_buffers() {
            let words: Vec<u8> = (0..slab.size() / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
            gpu.queue().write_buffer(&slab, 0, &words);
        }
    }
}

/// Sequences of these lengths, their pages in turn and so scattered; each has two more tokens reserved.
pub fn grow(cache: &mut PagedKvCache, lengths: &[usize]) -> Vec<SeqId> {
    let ids: Vec<SeqId> = lengths.iter().map(|_| cache.insert()).collect();
    let step = 3 + cache.pages().size;
    for first in (0..lengths.iter().copied().max().unwrap_or(0)).step_by(step) {
        for (id, len) in ids.iter().zip(lengths).rev().filter(|(_, len)| **len > first) {
            let n = step.min(len - first);
            cache.reserve(&[*id], n).unwrap();
            cache.commit(&[*id], n).unwrap();
        }
    }
    cache.reserve(&ids, 2).unwrap();
    ids
}

fn rows(gpu: &Gpu, cache: &PagedKvCache, id: SeqId, layer: usize) -> Vec<u32> {
    let layout = StateLayout::new(cache.heads(), cache.dtype());
    let mut planes = vec![4 * layout.state_words; cache.heads().groups()];
    planes.extend([4 * layout.rope_words, 4 * layout.scale_words]);
    let (batch, size) = (cache.batch(&[id]).unwrap(), cache.pages().size);
    let pool = pool(gpu, cache, layer);
    reference::pages_rows(&planes, size, &batch.page_table, cache.len(id).unwrap(), &pool).unwrap()
}

/// Rows as a block of the file holds them: plane by plane.
fn as_block(cache: &PagedKvCache, rows: &[u32]) -> Vec<u32> {
    let layout = StateLayout::new(cache.heads(), cache.dtype());
    let groups = cache.heads().groups();
    let (mut block, mut first) = (vec![], 0);
    for width in vec![4 * layout.state_words; groups].into_iter().chain([4 * layout.rope_words, 4 * layout.scale_words])
    {
        let row = 4 * layout.row_words(groups);
        block.extend(rows.chunks_exact(row).flat_map(|r| &r[first..first + width]));
        first += width;
    }
    block
}

/// All rows of these sequences, in the order of a file.
pub fn all_rows(gpu: &Gpu, cache: &PagedKvCache, ids: &[SeqId]) -> Vec<u32> {
    let layers = 0..cache.pages().layers;
    ids.iter().flat_map(|id| layers.clone().flat_map(move |layer| rows(gpu, cache, *id, layer))).collect()
}

pub fn saved(cache: &PagedKvCache, ids: &[SeqId]) -> Result<Vec<u8>, Error> {
    let sequences: Vec<_> = ids.iter().map(|id| SaveSequence { id: *id, tokens: &[] }).collect();
    let mut bytes = Vec::new();
    wait(cache.save(Save { sequences: &sequences, fingerprint: MODEL }, &mut bytes, |_| {}))?;
    Ok(bytes)
}

pub fn load(cache: &mut PagedKvCache, bytes: &[u8]) -> Result<Vec<LoadedSequence>, Error> {
    wait(cache.load(MODEL, bytes, |_| {}))
}

pub fn ids(loaded: &[LoadedSequence]) -> Vec<SeqId> {
    loaded.iter().map(|l| l.id).collect()
}

/// The pool's words that these sequences do not own, reservations counted as owned.
fn others(gpu: &Gpu, cache: &PagedKvCache, sequences: &[SeqId], layer: usize) -> Vec<u32> {
    let mut words = pool(gpu, cache, layer);
    let layout = StateLayout::new(cache.heads(), cache.dtype());
    let mut planes = vec![4 * layout.state_words; cache.heads().groups()];
    planes.extend([4 * layout.rope_words, 4 * layout.scale_words]);
    let places: Vec<usize> = (0..words.len()).collect();
    for id in sequences {
        let batch = cache.batch(&[*id]).unwrap();
        let len = batch.sequences[0].kv_len as usize;
        let owned = reference::pages_rows(&planes, cache.pages().size, &batch.page_table, len, &places).unwrap();
        owned.into_iter().for_each(|word| words[word] = 0);
    }
    words
}

/// Every layout and dtype, ragged lengths, from pages of one size into pages of another: the file holds what the pages do,
/// by the reference, and the other cache's pages hold it too, and nothing else there has changed.
#[test]
fn rows_survive_in_pages_of_other_sizes() {
    let (gpu, mut rng) = (gpu(), Rng(3));
    let odd = HeadLayout::gla(Gla { q_heads: 2, latent_heads: 2, latent_dim: 12, rope_dim: 6 }).unwrap();
    for (i, heads) in layouts().into_iter().chain([small(), odd]).enumerate() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4] {
            let sizes = [1, 64, 32, 4];
            let (from, into) = (sizes[i % 4], sizes[(i + 1) % 4]);
            let lengths = [37, 0, 1, 64, 20];
            let pages = |size: usize| Pages { count: 600 / size + 10, size, layers: 2 };
            let mut source = cache(gpu, heads, dtype, pages(from));
            scramble(gpu, &source, &mut rng);
            let kept = grow(&mut source, &lengths);
            let bytes = saved(&source, &kept).unwrap();
            let want = all_rows(gpu, &source, &kept);

            // One block per layer and sequence, as small as these are, each followed by its checksum.
            let mut at = bytes.len();
            let mut found = Vec::new();
            for len in lengths.into_iter().rev().flat_map(|len| [len, len]).filter(|len| *len > 0) {
                let size = len * source.token_bytes() / 2;
                at -= size + 8;
                found.push(&bytes[at..at + size]);
            }
            let found: Vec<u8> = found.into_iter().rev().flatten().copied().collect();
            let what = format!("{heads:?} {dtype} pages of {from} to {into}");
            let places = kept.iter().flat_map(|id| [(id, 0), (id, 1)]);
            let blocks = places.flat_map(|(id, layer)| as_block(&source, &rows(gpu, &source, *id, layer)));
            assert!(found == bytemuck::cast_slice::<u32, u8>(&blocks.collect::<Vec<_>>()), "{what}: the file");

            let mut other = cache(gpu, heads, dtype, pages(into));
            scramble(gpu, &other, &mut rng);
            // Where they were, there is somebody else.
            let neighbours = grow(&mut other, &[9, 40]);
            let before = all_rows(gpu, &other, &neighbours);
            let images: Vec<_> = (0..2).map(|layer| pool(gpu, &other, layer)).collect();
            let loaded = ids(&load(&mut other, &bytes).unwrap());
            assert!(all_rows(gpu, &other, &loaded) == want, "{what}: the pages");
            assert!(all_rows(gpu, &other, &neighbours) == before, "{what}: the neighbours");
            for (layer, image) in images.iter().enumerate() {
                let now = others(gpu, &other, &loaded, layer);
                let changed = now.iter().zip(image).position(|(now, image)| *now != 0 && now != image);
                assert_eq!(changed, None, "{what}: u32 of layer {layer}");
            }
            // Saved again, they are the same file, but for the page size, and so the checksums.
            let again = saved(&other, &loaded).unwrap();
            let info = saved_info(&again[..]).unwrap();
            assert_eq!((again.len(), info.page_size), (bytes.len(), into), "{what}");
            assert_eq!(load(&mut source, &again).unwrap().len(), lengths.len());
        }
    }
}

/// Blocks of 1 MiB: several per layer, the last one short; and no memory that grows with their number.
#[test]
fn large_sequences_stream_through_fixed_memory() {
    let gpu = gpu_with(GpuOptions::default());
    let heads = HeadLayout::gla(Gla { q_heads: 2, latent_heads: 2, latent_dim: 256, rope_dim: 64 }).unwrap();
    let mut rng = Rng(5);
    let mut source = cache(&gpu, heads, DType::F16, Pages { count: 6000, size: 1, layers: 3 });
    scramble(&gpu, &source, &mut rng);
    let kept = grow(&mut source, &[2500, 911, 910]);
    saved(&source, &kept[1..2]).unwrap();
    let before = gpu.counters();
    let mut reports: Vec<Progress> = Vec::new();
    let sequences: Vec<_> = kept.iter().map(|id| SaveSequence { id: *id, tokens: &[] }).collect();
    let mut bytes = Vec::new();
    let what = Save { sequences: &sequences, fingerprint: MODEL };
    wait(source.save(what, &mut bytes, |p| reports.push(p))).unwrap();
    let after = gpu.counters();
    // 910 rows of 1152 bytes are the most in 1 MiB.
    let blocks = 3 * (3 + 2 + 1);
    assert_eq!(after.readbacks - before.readbacks, blocks);
    // Host memory is that of the last save. The page table is the kernel's, which software GPUs do without.
    let made = if gpu.capabilities().is_software() { 1 } else { 2 };
    assert_eq!(after.buffers - before.buffers, made, "block and page table");
    assert_eq!(reports.len() as u64, 1 + blocks);
    assert!(reports.windows(2).all(|p| p[0].bytes < p[1].bytes && p[0].total_bytes == p[1].total_bytes));
    let whole = bytes.len() as u64;
    assert_eq!(reports.last(), Some(&Progress { bytes: whole, total_bytes: whole }));

    let mut other = cache(&gpu, heads, DType::F16, Pages { count: 100, size: 64, layers: 3 });
    let (before, mut loads) = (gpu.counters(), Vec::new());
    let loaded = ids(&wait(other.load(MODEL, &bytes[..], |p| loads.push(p))).unwrap());
    let after = gpu.counters();
    assert_eq!(loads, reports);
    assert_eq!(
        (after.buffers - before.buffers, after.dispatches - before.dispatches),
        (1, 0),
        "pages of 64 are copied"
    );
    assert!(all_rows(&gpu, &other, &loaded) == all_rows(&gpu, &source, &kept));
}

/// Attention over pages of another size, split at the same tokens: the same bits.
#[test]
fn decode_after_a_load_gives_the_same_bits() {
    let (gpu, heads, mut rng) = (gpu(), small(), Rng(77));
    let decode = Decode::new(gpu, heads, DType::F16).unwrap().with_policy(SplitPolicy::FixedTokens(32));
    let mut stayed = cache(gpu, heads, DType::F16, Pages { count: 60, size: 8, layers: 1 });
    let lengths = [200, 45];
    let kept: Vec<SeqId> = lengths.iter().map(|_| stayed.insert()).collect();
    for (id, n) in kept.iter().zip(lengths) {
        stayed.reserve(&[*id], n).unwrap();
        let kv = Tensor::from_slice(gpu, &[n, heads.kv_dim()], &rng.values(n * heads.kv_dim()), DType::F32).unwrap();
        stayed.append(0, &[*id], &kv).unwrap();
        stayed.commit(&[*id], n).unwrap();
    }
    let bytes = saved(&stayed, &kept).unwrap();
    let q = rng.values(2 * heads.q_heads() * heads.q_dim());
    let q = Tensor::from_slice(gpu, &[2, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
    let kv = Tensor::from_slice(gpu, &[2, heads.kv_dim()], &rng.values(2 * heads.kv_dim()), DType::F32).unwrap();
    let step = |cache: &mut PagedKvCache, ids: &[SeqId]| {
        cache.reserve(ids, 1).unwrap();
        let plan = decode.plan(cache, ids).unwrap();
        assert!(plan.is_split());
        cache.append(0, ids, &kv).unwrap();
        let got = decode.run(DecodeArgs::new(&plan, &cache.layer(0).unwrap(), &q, 0.3)).unwrap();
        (bits(&wait(gpu.download(&got.out)).unwrap()), bits(&wait(gpu.download(&got.lse)).unwrap()))
    };
    let want = step(&mut stayed, &kept);
    for size in [1, 16, 128] {
        let mut other = cache(gpu, heads, DType::F16, Pages { count: 400 / size + 4, size, layers: 1 });
        scramble(gpu, &other, &mut rng);
        let loaded = ids(&load(&mut other, &bytes).unwrap());
        assert!(step(&mut other, &loaded) == want, "pages of {size}");
    }
}

/// What was recorded and not yet submitted is saved; what is reserved is not; tokens and lengths come back.
#[test]
fn a_save_is_of_all_that_was_committed() {
    let (gpu, heads, mut rng) = (gpu(), small(), Rng(8));
    let pages = Pages { count: 20, size: 4, layers: 1 };
    let rope = Some(Rope::new(heads.rope_dim(), 100.0, RopePairs::Half).unwrap());
    let options = CacheOptions { rope, ..CacheOptions::new(DType::F16, pages) };
    let turning = || PagedKvCache::new(gpu, heads, options.clone()).unwrap();
    let mut source = turning();
    let id = source.insert();
    source.reserve(&[id], 9).unwrap();
    let kv = Tensor::from_slice(gpu, &[9, heads.kv_dim()], &rng.values(9 * heads.kv_dim()), DType::F32).unwrap();
    source.append(0, &[id], &kv).unwrap();
    source.commit(&[id], 6).unwrap();
    source.reserve(&[id], 5).unwrap();
    let tokens: Vec<u32> = (100..107).collect();
    let sequences = [SaveSequence { id, tokens: &tokens }];
    let mut bytes = Vec::new();
    wait(source.save(Save { sequences: &sequences, fingerprint: MODEL }, &mut bytes, |_| {})).unwrap();
    assert_eq!(source.batch(&[id]).unwrap().slots.len(), 5, "the reservation stays");
    let mut other = turning();
    let loaded = load(&mut other, &bytes).unwrap();
    assert_eq!((other.len(loaded[0].id).unwrap(), &loaded[0].tokens), (6, &tokens));
    assert_eq!(other.stats().used, 2);
    assert_eq!(rows(gpu, &other, loaded[0].id, 0), rows(gpu, &source, id, 0));
    assert!(rows(gpu, &source, id, 0).iter().any(|w| *w != 0));
    // A cache without sequences, and one that is empty, are files too.
    let none = saved(&source, &[]).unwrap();
    assert_eq!(load(&mut other, &none).unwrap(), []);
}

/// A sequence that is longer than its window, and than the cache that loads it: what it holds is saved, goes into pages as
/// large or smaller, and is freed there as its window moves on. Pages that begin before its rows are refused.
#[test]
fn a_sequence_that_its_window_has_cut_is_saved_with_what_it_holds() {
    let (gpu, mut rng) = (gpu(), Rng(31));
    let at = |size: usize, count: usize| cache(gpu, small(), DType::F16, Pages { count, size, layers: 2 });
    let mut source = at(8, 20);
    scramble(gpu, &source, &mut rng);
    let step = |cache: &mut PagedKvCache, id, n| {
        cache.reserve(&[id], n).unwrap();
        cache.commit(&[id], n).unwrap();
    };
    // Windows; first tokens, which are whole pages; tokens. The last one has freed nothing yet.
    let sequences = [(8, 0, 200), (20, 5, 203), (1, 17, 100), (30, 9, 33)];
    let mut kept = Vec::new();
    for (window, keep_first, len) in sequences {
        let id = source.insert_with(SequenceOptions { window: Some(window), keep_first }).unwrap();
        (0..len).for_each(|_| step(&mut source, id, 1));
        kept.push(id);
    }
    kept.push(grow(&mut source, &[9])[0]);
    let bytes = saved(&source, &kept).unwrap();
    let info = saved_info(&bytes[..]).unwrap();
    assert_eq!(info.sequences.iter().map(|s| s.gap.clone()).collect::<Vec<_>>(), [0..192, 8..184, 24..96, 0..0, 0..0]);
    assert_eq!(info.sequences.iter().map(|s| s.len).collect::<Vec<_>>(), [200, 203, 100, 33, 9]);
    let held = |cache: &PagedKvCache, id| held_rows(gpu, cache, id);
    for size in [8, 4, 1] {
        // Fewer tokens than each of the long ones has.
        let mut other = at(size, 160 / size);
        scramble(gpu, &other, &mut rng);
        let loaded = ids(&load(&mut other, &bytes).unwrap());
        for ((before, after), (window, ..)) in kept.iter().zip(&loaded).zip(sequences) {
            assert_eq!(other.len(*after).unwrap(), source.len(*before).unwrap());
            let (want, got) = (held(&source, *before), held(&other, *after));
            // Smaller pages may be freed at once; what is left is the same.
            assert!(got.iter().all(|row| want.contains(row)), "pages of {size}, window of {window}");
            let (len, seen) = (other.len(*after).unwrap(), |t: &usize| *t + window > other.len(*after).unwrap());
            let seen = (0..len).filter(seen).all(|t| got.iter().any(|(position, _)| *position == t));
            assert!(seen, "pages of {size}, window of {window}");
        }
        if size == 8 {
            assert!(saved(&other, &loaded).unwrap() == bytes);
        }
        // It goes on as a windowed sequence does, and may be cut where the other may.
        for (id, (window, keep_first, len)) in loaded.iter().zip(sequences) {
            (0..60).for_each(|_| step(&mut other, *id, 1));
            let batch = other.batch(&[*id]).unwrap();
            let most = (keep_first + 8) / size + window / size + 3;
            assert!(batch.page_table.len() <= most, "{} pages of {size}", batch.page_table.len());
            assert!(other.truncate(*id, len.min(60)).is_err() || len < 60);
        }
        loaded.iter().for_each(|id| other.remove(*id).unwrap());
        assert_eq!(other.stats().used, 0);
    }
    let mut large = at(16, 20);
    let e = load(&mut large, &bytes).unwrap_err();
    assert_eq!(
        e.to_string(),
        "saved cache from a reader: its page size is 8, and a window has freed the tokens 8..184, here it is 16"
    );
    assert_eq!(large.stats().used, 0);
    // Those that have freed nothing go anywhere.
    let bytes = saved(&source, &kept[3..]).unwrap();
    assert_eq!(load(&mut large, &bytes).unwrap().len(), 2);
}

/// The rows of layer 0 that a sequence holds, by their tokens.
fn held_rows(gpu: &Gpu, cache: &PagedKvCache, id: SeqId) -> Vec<(usize, Vec<u32>)> {
    let layout = StateLayout::new(cache.heads(), cache.dtype());
    let mut planes = vec![4 * layout.state_words; cache.heads().groups()];
    planes.extend([4 * layout.rope_words, 4 * layout.scale_words]);
    let (batch, size, len) = (cache.batch(&[id]).unwrap(), cache.pages().size, cache.len(id).unwrap());
    let (first, last) = (batch.sequences[0].gap_first as usize, batch.sequences[0].gap_last as usize);
    let rows = len - (last - first);
    let words = reference::pages_rows(&planes, size, &batch.page_table, rows, &pool(gpu, cache, 0)).unwrap();
    let tokens = (0..len).filter(|t| !(first..last).contains(t));
    tokens.zip(words.chunks_exact(words.len() / rows.max(1)).map(<[u32]>::to_vec)).collect()
}

/// Gives a sequence tokens, all rows of which are zero.
fn feed(cache: &mut PagedKvCache, id: SeqId, tokens: &[u32]) {
    cache.reserve(&[id], tokens.len()).unwrap();
    cache.commit_tokens(&[(id, tokens)]).unwrap();
}

/// Tokens that the cache knows are saved without being given, whole pages and the rest, of forks too; given ones must be
/// theirs, and may go on.
#[test]
fn known_tokens_are_saved_by_themselves() {
    let mut source = cache(gpu(), small(), DType::F16, Pages { count: 40, size: 4, layers: 1 });
    let prompt: Vec<u32> = (50..61).collect();
    let known = source.match_prefix(&prompt, 3);
    feed(&mut source, known, &prompt);
    let fork = source.fork(known).unwrap();
    feed(&mut source, fork, &[7]);
    let unknown = source.insert();
    feed(&mut source, unknown, &[1, 2]);
    let empty = source.match_prefix(&[], 3);
    // Known in part is not known.
    let mixed = source.match_prefix(&prompt, 3);
    assert_eq!(source.len(mixed).unwrap(), 8);
    source.reserve(&[mixed], 2).unwrap();
    source.commit(&[mixed], 2).unwrap();
    let all = [known, fork, unknown, empty, mixed];
    let bytes = saved(&source, &all).unwrap();
    let forked = [&prompt[..], &[7]].concat();
    let want = [&prompt[..], &forked, &[], &[], &[]];
    let info = saved_info(&bytes[..]).unwrap();
    assert_eq!(info.sequences.iter().map(|s| s.len).collect::<Vec<_>>(), [11, 12, 2, 0, 10]);
    let mut other = cache(gpu(), small(), DType::F16, Pages { count: 60, size: 1, layers: 1 });
    let loaded = load(&mut other, &bytes).unwrap();
    assert_eq!(loaded.iter().map(|l| l.tokens.as_slice()).collect::<Vec<_>>(), want);
    assert!(all_rows(gpu(), &other, &ids(&loaded)) == all_rows(gpu(), &source, &all));

    let given = |id, tokens: &[u32]| {
        let mut bytes = Vec::new();
        let what = Save { sequences: &[SaveSequence { id, tokens }], fingerprint: MODEL };
        wait(source.save(what, &mut bytes, |_| {})).map(|()| saved_info(&bytes[..]).unwrap().sequences.remove(0).tokens)
    };
    let next = [&prompt[..], &[9, 8]].concat();
    assert_eq!(given(known, &next).unwrap(), next);
    // In a full page, in the last one, and where nothing is known.
    for at in [2, 10] {
        let mut wrong = next.clone();
        wrong[at] = 4;
        let error = given(known, &wrong).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "tokens", .. }), "{error}");
        let right = prompt[at];
        let text = format!("tokens: 4 at {at}, where sequence {known} has {right} in the cache");
        assert_eq!(error.to_string(), text);
    }
    let text = given(known, &prompt[..10]).unwrap_err().to_string();
    assert_eq!(text, format!("tokens: 10 of sequence {known}, which has 11 in the cache"));
    assert_eq!(given(unknown, &[5, 5]).unwrap(), [5, 5]);
}
