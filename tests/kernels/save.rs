//! Saved caches: every bit of every committed row, through pages of other sizes; and files that are refused.

use crate::append::pool;
use crate::support::{bits, gpu, gpu_with, layouts, small, wait, Rng};
use latten::attention::{KvSource, StateLayout};
use latten::cache::{saved_info, LoadedSequence, Progress, Save, SaveSequence};
use latten::{
    reference, DType, Decode, Error, ErrorKind, Gla, Gpu, GpuOptions, HeadLayout, PagedKvCache, Pages, Rotation,
    SavedFault, SeqId, SplitPolicy, Tensor,
};
use std::io::{Error as IoError, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};

const MODEL: &[u8] = b"some model";

fn cache(gpu: &Gpu, heads: HeadLayout, dtype: DType, pages: Pages) -> PagedKvCache {
    PagedKvCache::new(gpu, heads, dtype, pages).unwrap()
}

/// Puts random bits everywhere, so that every word counts, NaN among them, and nothing is where it should not be.
fn scramble(gpu: &Gpu, cache: &PagedKvCache, rng: &mut Rng) {
    for layer in 0..cache.pages().layers {
        for slab in cache.layer(layer).unwrap().wgpu_buffers() {
            let words: Vec<u8> = (0..slab.size() / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
            gpu.queue().write_buffer(&slab, 0, &words);
        }
    }
}

/// Sequences of these lengths, their pages in turn and so scattered; each has two more tokens reserved.
fn grow(cache: &mut PagedKvCache, lengths: &[usize]) -> Vec<SeqId> {
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
fn all_rows(gpu: &Gpu, cache: &PagedKvCache, ids: &[SeqId]) -> Vec<u32> {
    let layers = 0..cache.pages().layers;
    ids.iter().flat_map(|id| layers.clone().flat_map(move |layer| rows(gpu, cache, *id, layer))).collect()
}

fn saved(cache: &PagedKvCache, ids: &[SeqId]) -> Result<Vec<u8>, Error> {
    let sequences: Vec<_> = ids.iter().map(|id| SaveSequence { id: *id, tokens: &[] }).collect();
    let mut bytes = Vec::new();
    wait(cache.save(Save { sequences: &sequences, fingerprint: MODEL }, &mut bytes, |_| {}))?;
    Ok(bytes)
}

fn load(cache: &mut PagedKvCache, bytes: &[u8]) -> Result<Vec<LoadedSequence>, Error> {
    wait(cache.load(MODEL, bytes, |_| {}))
}

fn ids(loaded: &[LoadedSequence]) -> Vec<SeqId> {
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
    assert_eq!(after.buffers - before.buffers, 2, "block and page table; host memory is that of the last save");
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
        let kv = Tensor::from_f32(gpu, &[n, heads.kv_dim()], &rng.values(n * heads.kv_dim()), DType::F32).unwrap();
        stayed.append(0, &[*id], &kv).unwrap();
        stayed.commit(&[*id], n).unwrap();
    }
    let bytes = saved(&stayed, &kept).unwrap();
    let q = rng.values(2 * heads.q_heads() * heads.q_dim());
    let q = Tensor::from_f32(gpu, &[2, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
    let kv = Tensor::from_f32(gpu, &[2, heads.kv_dim()], &rng.values(2 * heads.kv_dim()), DType::F32).unwrap();
    let step = |cache: &mut PagedKvCache, ids: &[SeqId]| {
        cache.reserve(ids, 1).unwrap();
        let plan = decode.plan(cache, ids).unwrap();
        assert!(plan.is_split());
        cache.append(0, ids, &kv).unwrap();
        let got = decode.run(&plan, &cache.layer(0).unwrap(), &q, 0.3).unwrap();
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
    let inv_freq: Vec<f32> = reference::inv_freq(100.0, heads.rope_dim()).iter().map(|v| *v as f32).collect();
    let turning = || cache(gpu, heads, DType::F16, pages).with_rotation(Rotation::Half, &inv_freq).unwrap();
    let mut source = turning();
    let id = source.insert();
    source.reserve(&[id], 9).unwrap();
    let kv = Tensor::from_f32(gpu, &[9, heads.kv_dim()], &rng.values(9 * heads.kv_dim()), DType::F32).unwrap();
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

/// Whatever is wrong with a file, the cache is as it was: sequences, pages, every bit that somebody owns.
#[test]
fn refused_files_change_nothing() {
    let (gpu, heads, mut rng) = (gpu(), small(), Rng(21));
    let pages = Pages { count: 40, size: 4, layers: 2 };
    let mut source = cache(gpu, heads, DType::F16, pages);
    scramble(gpu, &source, &mut rng);
    let kept = grow(&mut source, &[30, 17]);
    let bytes = saved(&source, &kept).unwrap();

    let mut other = cache(gpu, heads, DType::F16, Pages { count: 16, ..pages });
    scramble(gpu, &other, &mut rng);
    let owner = grow(&mut other, &[5])[0];
    let image = (other.stats(), other.len(owner).unwrap(), all_rows(gpu, &other, &[owner]));
    let refused = |other: &mut PagedKvCache, bytes: &[u8]| {
        let e = load(other, bytes).unwrap_err();
        assert!((other.stats(), other.len(owner).unwrap()) == (image.0, image.1), "{e}");
        e
    };
    let fault = |e: Error| match e.kind() {
        ErrorKind::Saved { fault, .. } => fault.clone(),
        _ => panic!("{e}"),
    };
    for len in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let fault = fault(refused(&mut other, &bytes[..len]));
        assert!(matches!(fault, SavedFault::Truncated { end, .. } if end == len as u64), "{len}: {fault}");
    }
    for at in (0..bytes.len()).step_by(61).chain([bytes.len() - 1]) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        refused(&mut other, &damaged);
    }
    let long = [&bytes[..], b"x"].concat();
    assert_eq!(fault(refused(&mut other, &long)), SavedFault::TooLong { size: bytes.len() as u64 });
    assert!(matches!(fault(refused(&mut other, b"GGUF....1234")), SavedFault::Foreign { .. }));
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert_eq!(fault(refused(&mut other, &newer)), SavedFault::Newer { version: 2, known: 1 });
    let name = |e: Error| match e.kind() {
        ErrorKind::Saved { fault: SavedFault::Other { name, .. }, .. } => *name,
        _ => panic!("{e}"),
    };
    let foreign = |cache: PagedKvCache| saved(&cache, &[]).unwrap();
    let gla = HeadLayout::gla(Gla { q_heads: 4, latent_heads: 2, latent_dim: 16, rope_dim: 8 }).unwrap();
    assert_eq!(name(refused(&mut other, &foreign(cache(gpu, gla, DType::F16, pages)))), "layout");
    assert_eq!(name(refused(&mut other, &foreign(cache(gpu, heads, DType::BF16, pages)))), "dtype");
    let three = foreign(cache(gpu, heads, DType::F16, Pages { layers: 3, ..pages }));
    assert_eq!(refused(&mut other, &three).to_string(), "saved cache -: its layer count is 3, here it is 2");
    let turning = |base: f64| {
        let table: Vec<f32> = reference::inv_freq(base, heads.rope_dim()).iter().map(|v| *v as f32).collect();
        cache(gpu, heads, DType::F16, pages).with_rotation(Rotation::Half, &table).unwrap()
    };
    assert_eq!(name(refused(&mut other, &foreign(turning(1e4)))), "rotation");
    let text = load(&mut turning(1e4), &foreign(turning(1e6))).unwrap_err().to_string();
    assert!(
        text.starts_with("saved cache -: its frequency is 0.0") && text.contains(" at 1, here it is 0.1 at 1"),
        "{text}"
    );
    let e = wait(other.load(b"another", &bytes[..], |_| {})).unwrap_err();
    assert_eq!(e.to_string(), "saved cache -: its fingerprint is 736f6d65206d6f64656c, here it is 616e6f74686572");
    // 30 and 17 tokens are 13 pages of four; 14 are free, and then 12.
    assert_eq!(other.stats().free, 14);
    other.reserve(&[owner], 8).unwrap();
    let e = load(&mut other, &bytes).unwrap_err();
    assert_eq!(*e.kind(), ErrorKind::CacheFull { needed: 13, free: 12 });
    assert_eq!(other.stats().free, 12);
    other.commit(&[owner], 0).unwrap();
    assert!(all_rows(gpu, &other, &[owner]) == image.2, "what the sequence held has changed");
    assert_eq!(load(&mut other, &bytes).unwrap().len(), 2);
}

#[test]
fn bad_calls_are_typed_errors() {
    let (gpu, heads) = (gpu(), small());
    let mut cache = cache(gpu, heads, DType::F16, Pages { count: 8, size: 4, layers: 1 });
    let ids = grow(&mut cache, &[5, 3]);
    cache.remove(ids[1]).unwrap();
    assert!(matches!(saved(&cache, &ids).unwrap_err().kind(), ErrorKind::UnknownSequence { .. }));
    let save = |tokens: &[u32], fingerprint: &[u8]| {
        let sequences = [SaveSequence { id: ids[0], tokens }];
        let e = wait(cache.save(Save { sequences: &sequences, fingerprint }, &mut Vec::new(), |_| {}));
        e.map_err(|e| e.to_string())
    };
    assert_eq!(save(&[1; 4], b""), Err(format!("tokens: 4 of sequence {}, which has 5 in the cache", ids[0])));
    assert_eq!(save(&[], &[0; 65_537]), Err("fingerprint: 65537 bytes, at most 65536".into()));
    assert_eq!(save(&[1; 5], &[0; 65_536]), Ok(()));
}

struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("latten-save-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file is there whole or not at all, and nothing else is left behind.
#[test]
fn files_appear_whole_or_not_at_all() {
    let (gpu, heads, mut rng) = (gpu(), small(), Rng(2));
    let mut source = cache(gpu, heads, DType::I8, Pages { count: 30, size: 8, layers: 2 });
    scramble(gpu, &source, &mut rng);
    let kept = grow(&mut source, &[100]);
    let folder = Folder::new("files");
    let path = folder.0.join("a.cache");
    let sequences = [SaveSequence { id: kept[0], tokens: &[] }];
    let what = Save { sequences: &sequences, fingerprint: MODEL };
    let save = |path: &Path, progress: &mut dyn FnMut(Progress)| wait(source.save_file(what, path, progress));
    save(&path, &mut |_| {}).unwrap();
    assert_eq!(folder.names(), ["a.cache"]);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes == saved(&source, &kept).unwrap());
    let mut other = cache(gpu, heads, DType::I8, Pages { count: 300, size: 1, layers: 2 });
    let loaded = ids(&wait(other.load_file(MODEL, &path, |_| {})).unwrap());
    assert!(all_rows(gpu, &other, &loaded) == all_rows(gpu, &source, &kept));

    // Something old is there until the new file is whole, and stays if it never is.
    std::fs::write(&path, b"old").unwrap();
    let stopped = catch_unwind(AssertUnwindSafe(|| {
        save(&path, &mut |p| {
            assert_eq!((std::fs::read(&path).unwrap(), folder.names().len()), (b"old".to_vec(), 2));
            assert!(p.bytes < 5000, "stop here");
        })
    }));
    assert!(stopped.is_err());
    assert_eq!((std::fs::read(&path).unwrap(), folder.names()), (b"old".to_vec(), vec!["a.cache".to_string()]));
    save(&path, &mut |_| {}).unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);

    for bad in [folder.0.join("no such folder/a"), folder.0.clone(), PathBuf::new(), folder.0.join("..")] {
        let e = save(&bad, &mut |_| {}).unwrap_err();
        assert!(matches!(e.kind(), ErrorKind::Io { path, .. } if *path == bad.display().to_string()), "{e}");
    }
    assert_eq!(folder.names(), ["a.cache"]);
    let e = wait(other.load_file(MODEL, folder.0.join("none"), |_| {})).unwrap_err();
    assert!(matches!(e.kind(), ErrorKind::Io { .. }));
    std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    let text = wait(other.load_file(MODEL, &path, |_| {})).unwrap_err().to_string();
    assert!(text.starts_with(&format!("saved cache {}: ends at byte", path.display())), "{text}");
}

/// A load that is dropped on the way (here by a panic of the caller's own) gives its pages back; so does one of a writer
/// that fails, and the cache goes on.
#[test]
fn what_is_stopped_leaves_nothing() {
    let (gpu, heads) = (gpu(), small());
    let pages = Pages { count: 30, size: 8, layers: 2 };
    let mut source = cache(gpu, heads, DType::F32, pages);
    let kept = grow(&mut source, &[40, 40]);
    let bytes = saved(&source, &kept).unwrap();
    let mut other = cache(gpu, heads, DType::F32, pages);
    let before = other.stats();
    for stop in 0..4 {
        let mut reports = 0;
        let stopped = catch_unwind(AssertUnwindSafe(|| {
            wait(other.load(MODEL, &bytes[..], |_| {
                reports += 1;
                assert!(reports <= stop, "stop here");
            }))
        }));
        assert!(stopped.is_err());
        assert_eq!(other.stats(), before, "stopped at report {stop}");
    }

    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> Result<usize, IoError> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(IoError::other("the disk is full"))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> Result<(), IoError> {
            Ok(())
        }
    }
    let sequences = [SaveSequence { id: kept[0], tokens: &[] }];
    let what = Save { sequences: &sequences, fingerprint: MODEL };
    for room in [0, 100, 300, 3000, 9000] {
        let e = wait(source.save(what, Full(room), |_| {})).unwrap_err();
        assert_eq!(*e.kind(), ErrorKind::Io { path: "-".into(), message: "the disk is full".into() }, "{room} bytes");
    }
    assert!(saved(&source, &kept).unwrap() == bytes);
    assert_eq!(load(&mut other, &bytes).unwrap().len(), 2);
}

#[test]
fn a_lost_device_is_an_error_and_leaves_no_sequence() {
    let heads = small();
    let gpu = gpu_with(GpuOptions::default());
    let mut cache = cache(&gpu, heads, DType::F16, Pages { count: 30, size: 8, layers: 1 });
    let kept = grow(&mut cache, &[40]);
    let bytes = saved(&cache, &kept).unwrap();
    let before = cache.stats();
    gpu.device().destroy();
    for _ in 0..2 {
        assert!(matches!(saved(&cache, &kept).unwrap_err().kind(), ErrorKind::DeviceLost { .. }));
        assert!(matches!(load(&mut cache, &bytes).unwrap_err().kind(), ErrorKind::DeviceLost { .. }));
        assert_eq!((cache.stats(), cache.len(kept[0]).unwrap()), (before, 40));
    }
}

/// What a window has freed is not there to be saved, and nothing is written.
#[test]
fn a_sequence_that_its_window_has_cut_is_refused() {
    let mut cache = cache(gpu(), small(), DType::F16, Pages { count: 20, size: 4, layers: 1 });
    let id = cache.insert_windowed(8).unwrap();
    for _ in 0..10 {
        cache.reserve(&[id], 4).unwrap();
        cache.commit(&[id], 4).unwrap();
    }
    let mut bytes = Vec::new();
    let what = Save { sequences: &[SaveSequence { id, tokens: &[] }], fingerprint: MODEL };
    let error = wait(cache.save(what, &mut bytes, |_| {})).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Argument { name: "sequences", .. }), "{error}");
    assert!(bytes.is_empty() && cache.len(id).unwrap() == 40);
}
