//! Compiled pipelines in a file, where the backend can (Vulkan): what the driver compiled once it need not again.
//!
//! The file is `latten` and a version, a checksum of the rest, and the rest, which is wgpu's: it names the adapter and the
//! driver. A file that does not hold together, or is of another device, is passed over with a line in the log.

use crate::error::{ErrorKind, Result};
use crate::io::temporary::create_beside;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const MAGIC: &[u8; 8] = b"latten\0\x01";
const HEAD: usize = 16;

/// The cache of a device, and where it is kept.
pub(super) struct PipelineCacheFile {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    /// Whether pipelines were made since it was written.
    changed: AtomicBool,
}

impl PipelineCacheFile {
    /// The cache of `path`, empty if there is no usable file; None where the device has no such caches.
    pub(super) fn open(device: &wgpu::Device, path: PathBuf) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            log::info!("latten: this device has no pipeline cache, {} is not used", path.display());
            return None;
        }
        let data = match std::fs::read(&path) {
            Ok(bytes) => payload(&bytes).map(<[u8]>::to_vec).or_else(|| {
                log::warn!("latten: {} is not a pipeline cache, or damaged; passed over", path.display());
                None
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => {
                log::warn!("latten: {}: {e}; passed over", path.display());
                None
            }
        };
        let cache = data.and_then(|data| {
            let made = create(device, Some(&data));
            if let Err(e) = &made {
                log::warn!("latten: the pipeline cache {} is of another device: {e}; passed over", path.display());
            }
            made.ok()
        });
        let cache = match cache {
            Some(cache) => cache,
            None => create(device, None).map_err(|e| log::warn!("latten: no pipeline cache: {e}")).ok()?,
        };
        Some(PipelineCacheFile { cache, path, changed: AtomicBool::new(false) })
    }

    pub(super) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    pub(super) fn note_pipeline(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Writes the file if pipelines were made since the last time. What fails is logged: nothing depends on it.
    pub(super) fn save(&self) {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = self.cache.get_data() else { return };
        if let Err(e) = write(&self.path, &data) {
            log::warn!("latten: the pipeline cache {} could not be written: {e}", self.path.display());
        }
    }
}

impl Drop for PipelineCacheFile {
    fn drop(&mut self) {
        self.save();
    }
}

/// wgpu's part of a file, if the file is whole.
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let whole = head.starts_with(MAGIC) && head.ends_with(&checksum(rest).to_le_bytes());
    whole.then_some(rest)
}

/// FNV-1a. Against damage, not against malice.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Under another name first, so that no reader finds half a file.
fn write(path: &Path, data: &[u8]) -> std::io::Result<()> {
    let (mut file, temporary) = create_beside(path)?;
    let bytes = [&MAGIC[..], &checksum(data).to_le_bytes(), data].concat();
    let written = file.write_all(&bytes);
    drop(file); // an open file cannot be renamed everywhere
    let written = written.and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn create(device: &wgpu::Device, data: Option<&[u8]>) -> Result<wgpu::PipelineCache> {
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let desc = wgpu::PipelineCacheDescriptor { label: Some("latten"), data, fallback: false };
    #[allow(unsafe_code)]
    // SAFETY: the data must come from `PipelineCache::get_data`. Only `write` makes files with our head, from just that;
    // the checksum rules out damage, and wgpu refuses data of another adapter or driver.
    let cache = unsafe { device.create_pipeline_cache(&desc) };
    match super::ready(scope.pop()).flatten() {
        None => Ok(cache),
        Some(e) => Err(ErrorKind::Gpu { context: "pipeline cache".into(), message: e.to_string() }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gpu, GpuOptions};

    fn temporary(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("latten-{name}-{}", std::process::id()))
    }

    #[test]
    fn only_whole_files_of_ours_are_read() {
        let path = temporary("whole");
        write(&path, b"some data").unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(payload(&bytes).unwrap(), b"some data");
        assert_eq!(payload(&bytes[..bytes.len() - 1]), None);
        assert_eq!(payload(&bytes[..7]), None);
        for i in 0..bytes.len() {
            bytes[i] ^= 4;
            assert_eq!(payload(&bytes), None, "byte {i}");
            bytes[i] ^= 4;
        }
        std::fs::remove_file(&path).unwrap();
        assert!(write(&path.join("no such folder"), b"").is_err());
    }

    /// Someone who may write to the folder, but not to a file elsewhere, cannot make us write there: the names that could be
    /// foreseen (of this process) are links to that file.
    #[cfg(unix)]
    #[test]
    fn links_under_foreseeable_names_are_not_followed() {
        let folder = temporary("links");
        std::fs::create_dir(&folder).unwrap();
        let (path, other) = (folder.join("cache"), folder.join("other"));
        std::fs::write(&other, b"another's").unwrap();
        let planted = folder.join(format!("cache.{}", std::process::id()));
        std::os::unix::fs::symlink(&other, &planted).unwrap();
        write(&path, b"some data").unwrap();
        assert_eq!(payload(&std::fs::read(&path).unwrap()).unwrap(), b"some data");
        assert_eq!(std::fs::read(&other).unwrap(), b"another's");
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "no other file is left behind");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// The file after a Gpu with this option has compiled a kernel, if the device has caches.
    fn after_one(path: &Path) -> Option<Vec<u8>> {
        let options = GpuOptions { pipeline_cache: Some(path.into()), ..Default::default() };
        let gpu = pollster::block_on(Gpu::with_options(options)).expect("a GPU adapter");
        let has_caches = gpu.device().features().contains(wgpu::Features::PIPELINE_CACHE);
        crate::nn::SwiGlu::new(&gpu).unwrap();
        drop(gpu);
        if !has_caches {
            println!("skipped: no pipeline caches on this adapter");
            return None;
        }
        Some(std::fs::read(path).unwrap())
    }

    #[test]
    fn a_cache_is_written_read_again_and_replaced_if_it_is_bad() {
        let path = temporary("cache");
        let Some(first) = after_one(&path) else { return };
        assert!(payload(&first).is_some());
        assert!(payload(&after_one(&path).unwrap()).is_some(), "read and written again");
        // Ours, but of no device; not ours; empty.
        let foreign = [&MAGIC[..], &checksum(&[7; 100]).to_le_bytes(), &[7; 100]].concat();
        for bad in [&foreign[..], b"something else, longer than the head", b""] {
            std::fs::write(&path, bad).unwrap();
            assert!(payload(&after_one(&path).unwrap()).is_some_and(|data| data != [7; 100]));
        }
        std::fs::remove_file(&path).unwrap();
    }
}
