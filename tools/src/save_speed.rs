//! How fast a KV cache is saved and loaded, against a plain file of the same size in the same run, and the memory that it
//! takes beside the cache.
//!
//! `cargo run --release -p latten-tools -- save_speed --mib 256`

use crate::common::arguments::{count, Checked};
use crate::common::disk;
use latten::cache::{Save, SaveSequence};
use latten::{CacheOptions, DType, Error, Gla, Gpu, HeadLayout, PagedKvCache, Pages, SeqId};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use disk::{forget, read_plain, resident_bytes, PLAIN_BYTES};

const LAYERS: usize = 8;

/// How fast a KV cache is saved and loaded, against a plain file of the same size
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bytes of the cache (MiB)
    #[arg(long, value_name = "N", default_value = "256", value_parser = count)]
    mib: usize,
    /// Tokens per page
    #[arg(long, value_name = "N", default_value = "64", value_parser = count)]
    page_size: usize,
    /// Sequences that share the cache, their pages in turn
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    sequences: usize,
    /// Where the files go
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// How often; the fastest counts
    #[arg(long, value_name = "N", default_value = "3", value_parser = count)]
    repeats: usize,
}

impl Checked for Args {}

/// The most resident memory at any report, over that at the start.
struct Peak(Option<u64>, u64);

impl Peak {
    fn start() -> Peak {
        Peak(resident_bytes(), 0)
    }

    fn note(&mut self) {
        if let (Some(start), Some(now)) = (self.0, resident_bytes()) {
            self.1 = self.1.max(now.saturating_sub(start));
        }
    }

    fn mib(&self) -> String {
        self.0.map_or("-".into(), |_| format!("{:.1}", self.1 as f64 / f64::from(1 << 20)))
    }
}

/// What does as much as must be done: the file written under its name, all of it on the disk.
fn write_plain(path: &Path, chunk: &[u8], bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let now = chunk.len().min(left as usize);
        file.write_all(&chunk[..now])?;
        left -= now as u64;
    }
    file.sync_all()
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// A cache full of numbers that no file system compresses.
fn full(gpu: &Gpu, args: &Args) -> Result<(PagedKvCache, Vec<SeqId>), Error> {
    let heads = HeadLayout::gla(Gla { q_heads: 16, latent_heads: 2, latent_dim: 256, rope_dim: 64 })?;
    let token_bytes = 1152 * LAYERS;
    let count = (args.mib << 20) / (token_bytes * args.page_size);
    let pages = Pages { count: count.max(1), size: args.page_size, layers: LAYERS };
    let mut cache = PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F16, pages))?;
    let mut random = fastrand::Rng::with_seed(1);
    for layer in 0..LAYERS {
        for slab in cache.layer(layer)?.wgpu_buffers() {
            for first in (0..slab.size()).step_by(PLAIN_BYTES) {
                let bytes = (PLAIN_BYTES as u64).min(slab.size() - first) as usize;
                let words = (0..bytes / 8).flat_map(|_| random.u64(..).to_le_bytes());
                gpu.queue().write_buffer(&slab, first, &words.collect::<Vec<u8>>());
                gpu.queue().submit([]);
            }
        }
    }
    let ids: Vec<SeqId> = (0..args.sequences).map(|_| cache.insert()).collect();
    // A page each in turn; one sequence takes all at once.
    let turn = if ids.len() == 1 { pages.count } else { 1 };
    for _ in 0..pages.count / turn / ids.len() {
        for id in &ids {
            cache.reserve(&[*id], turn * pages.size)?;
            cache.commit(&[*id], turn * pages.size)?;
        }
    }
    Ok((cache, ids))
}

pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<(), String> {
    let gpu = Gpu::new().await.map_err(text)?;
    let (mut cache, ids) = full(&gpu, args).map_err(text)?;
    let files = [
        args.folder.join(format!("latten-plain-{}", std::process::id())),
        args.folder.join(format!("latten-cache-{}", std::process::id())),
    ];
    let result = measure(args, &mut cache, ids, &files, out).await;
    files.iter().for_each(|file| drop(std::fs::remove_file(file)));
    result
}

async fn measure(
    args: &Args,
    cache: &mut PagedKvCache,
    mut ids: Vec<SeqId>,
    [plain, saved]: &[PathBuf; 2],
    out: &mut impl Write,
) -> Result<(), String> {
    let mut chunk: Vec<u8> = (0..PLAIN_BYTES).map(|i| ((i * 0x9e37_79b1) >> 7) as u8).collect();
    let mut best = [f64::INFINITY; 4];
    let mut cold = true;
    let mut peaks = [Peak::start(), Peak::start()];
    let mut size = 0;
    for _ in 0..args.repeats {
        let mut clock = |what: usize, start: Instant| best[what] = best[what].min(start.elapsed().as_secs_f64());
        let sequences: Vec<_> = ids.iter().map(|id| SaveSequence { id: *id, tokens: &[] }).collect();
        peaks[0] = Peak(resident_bytes(), peaks[0].1);
        let start = Instant::now();
        cache
            .save_file(Save { sequences: &sequences, fingerprint: b"speed" }, saved, |p| {
                size = p.total_bytes;
                if p.bytes % (16 << 20) < 1 << 20 {
                    peaks[0].note();
                }
            })
            .await
            .map_err(text)?;
        clock(1, start);
        let start = Instant::now();
        write_plain(plain, &chunk, size).map_err(text)?;
        clock(0, start);
        ids.iter().try_for_each(|id| cache.remove(*id)).map_err(text)?;
        cold &= forget(saved) && forget(plain);
        peaks[1] = Peak(resident_bytes(), peaks[1].1);
        let start = Instant::now();
        let loaded = cache
            .load_file(b"speed", saved, |p| {
                if p.bytes % (16 << 20) < 1 << 20 {
                    peaks[1].note();
                }
            })
            .await
            .map_err(text)?;
        clock(3, start);
        ids = loaded.iter().map(|l| l.id).collect();
        let start = Instant::now();
        read_plain(plain, &mut chunk).map_err(text)?;
        clock(2, start);
    }
    let rate = |seconds: f64| size as f64 / seconds / 1e6;
    let mib = size as f64 / f64::from(1 << 20);
    let Args { page_size, sequences, repeats, .. } = args;
    writeln!(out, "{mib:.0} MiB, {sequences} sequences, pages of {page_size} tokens, the best of {repeats}")
        .map_err(text)?;
    writeln!(out, "        plain MB/s   cache MB/s   of plain   peak extra MiB").map_err(text)?;
    for (name, i) in [("save", 0), ("load", 2)] {
        let (plain, cache) = (rate(best[i]), rate(best[i + 1]));
        let share = 100.0 * cache / plain;
        writeln!(out, "{name}    {plain:>10.0}   {cache:>10.0}   {share:>7.0}%   {:>14}", peaks[i / 2].mib())
            .map_err(text)?;
    }
    let read = if cold { "read from the disk" } else { "read from the system's memory" };
    writeln!(out, "Both kinds of file are synchronised to the disk when written, and {read}.").map_err(text)
}

pub(crate) fn main(args: &Args) -> Result<(), String> {
    pollster::block_on(run(args, &mut std::io::stdout().lock()))
}
