//! Saved caches that are refused, stopped or unfinished: nothing changes, and no file is left behind.

use crate::common::{gpu, gpu_with, small, wait, Rng};
use crate::save::{all_rows, cache, grow, ids, load, saved, scramble, MODEL};
use latten::cache::{Progress, Save, SaveSequence};
use latten::{
    CacheOptions, DType, Error, ErrorKind, Gla, GpuOptions, HeadLayout, PagedKvCache, Pages, Rope, RopePairs,
    SavedFault,
};
use std::io::{Error as IoError, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};

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
    newer[8] = 4;
    assert_eq!(fault(refused(&mut other, &newer)), SavedFault::Newer { version: 4, known: 3 });
    let name = |e: Error| match e.kind() {
        ErrorKind::Saved { fault: SavedFault::Other { name, .. }, .. } => *name,
        _ => panic!("{e}"),
    };
    let foreign = |cache: PagedKvCache| saved(&cache, &[]).unwrap();
    let gla = HeadLayout::gla(Gla { q_heads: 4, latent_heads: 2, latent_dim: 16, rope_dim: 8 }).unwrap();
    assert_eq!(name(refused(&mut other, &foreign(cache(gpu, gla, DType::F16, pages)))), "layout");
    assert_eq!(name(refused(&mut other, &foreign(cache(gpu, heads, DType::BF16, pages)))), "dtype");
    let three = foreign(cache(gpu, heads, DType::F16, Pages { layers: 3, ..pages }));
    assert_eq!(
        refused(&mut other, &three).to_string(),
        "saved cache from a reader: its layer count is 3, here it is 2"
    );
    let turning = |base: f64| {
        let rope = Some(Rope::new(heads.rope_dim(), base, RopePairs::Half).unwrap());
        PagedKvCache::new(gpu, heads, CacheOptions { rope, ..CacheOptions::new(DType::F16, pages) }).unwrap()
    };
    assert_eq!(name(refused(&mut other, &foreign(turning(1e4)))), "rotation");
    let text = load(&mut turning(1e4), &foreign(turning(1e6))).unwrap_err().to_string();
    assert!(
        text.starts_with("saved cache from a reader: its frequency is 0.0")
            && text.contains(" at 1, here it is 0.1 at 1"),
        "{text}"
    );
    let e = wait(other.load(b"another", &bytes[..], |_| {})).unwrap_err();
    assert_eq!(e.to_string(), "saved cache from a reader: its fingerprint is \"some model\", here it is \"another\"");
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

/// What is no regular file stays what it is, at once; a link stays one, and what it leads to is written.
#[cfg(unix)]
#[test]
fn only_files_are_replaced() {
    use std::os::unix::fs::{symlink, FileTypeExt};
    let (gpu, heads) = (gpu(), small());
    let mut source = cache(gpu, heads, DType::F16, Pages { count: 8, size: 8, layers: 2 });
    let kept = grow(&mut source, &[20]);
    let folder = Folder::new("kinds");
    let at = |name: &str| folder.0.join(name);
    let what = [SaveSequence { id: kept[0], tokens: &[] }];
    let what = Save { sequences: &what, fingerprint: MODEL };
    let save = |path: &Path| wait(source.save_file(what, path, |_| {}));
    let refused = |path: &Path, why: &str| {
        let text = save(path).unwrap_err().to_string();
        assert!(text.starts_with(&path.display().to_string()) && text.contains(why), "{text}");
    };

    assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    refused(&at("pipe"), "is a named pipe, not a regular file");
    assert!(std::fs::symlink_metadata(at("pipe")).unwrap().file_type().is_fifo());
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    refused(&at("socket"), "is a socket");
    std::fs::create_dir(at("folder")).unwrap();
    refused(&at("folder"), "is a folder");
    // Through links, so that a save that did replace it would replace the link.
    symlink("/dev/null", at("null")).unwrap();
    refused(&at("null"), "is a device");
    symlink(at("pipe"), at("to pipe")).unwrap();
    refused(&at("to pipe"), "is a named pipe");
    symlink("loop", at("loop")).unwrap();
    refused(&at("loop"), "");

    // A file, then one that is not there yet, each through two links.
    std::fs::write(at("folder/old"), b"old").unwrap();
    symlink("folder/old", at("one")).unwrap();
    symlink("one", at("two")).unwrap();
    symlink("folder/new", at("three")).unwrap();
    for (link, file) in [("two", "folder/old"), ("three", "folder/new")] {
        save(&at(link)).unwrap();
        assert!(std::fs::symlink_metadata(at(link)).unwrap().is_symlink());
        assert!(std::fs::symlink_metadata(at(file)).unwrap().is_file());
        assert!(std::fs::read(at(file)).unwrap() == saved(&source, &kept).unwrap());
    }
    assert_eq!(std::fs::read_dir(at("folder")).unwrap().count(), 2, "a part is left behind");
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
        assert_eq!(*e.kind(), ErrorKind::Io { path: "".into(), message: "the disk is full".into() }, "{room} bytes");
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

/// Pages that are kept for their content are room for a load, as they are for a reservation; but they stay where they are
/// not enough.
#[test]
fn kept_pages_make_room_for_a_load() {
    let pages = Pages { count: 10, size: 4, layers: 1 };
    let mut source = cache(gpu(), small(), DType::F16, pages);
    scramble(gpu(), &source, &mut Rng(6));
    let kept = grow(&mut source, &[16, 9]);
    let bytes = saved(&source, &kept).unwrap();

    let mut full = cache(gpu(), small(), DType::F16, pages);
    let prompt: Vec<u32> = (0..25).collect();
    let id = full.match_prefix(&prompt, 0);
    full.reserve(&[id], 25).unwrap();
    full.commit_tokens(&[(id, &prompt)]).unwrap();
    full.remove(id).unwrap();
    let owner = full.insert();
    full.reserve(&[owner], 4).unwrap();
    assert_eq!((full.stats().free, full.stats().evictable), (3, 6));
    full.reserve(&[owner], 12).unwrap();
    // 4 + 3 pages are 7: the first sequence alone would find its 4.
    let stats = full.stats();
    assert_eq!((stats.free, stats.evictable), (0, 6));
    assert_eq!(*load(&mut full, &bytes).unwrap_err().kind(), ErrorKind::CacheFull { needed: 7, free: 6 });
    assert_eq!(full.stats(), stats, "evicted for nothing");
    full.commit(&[owner], 1).unwrap();
    let loaded = ids(&load(&mut full, &bytes).unwrap());
    assert_eq!((full.stats().free, full.stats().evictable, full.stats().evictions), (0, 2, 4));
    assert!(all_rows(gpu(), &full, &loaded) == all_rows(gpu(), &source, &kept));
}
