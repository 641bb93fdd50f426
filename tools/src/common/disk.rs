//! A plain file to compare with, and the memory of this process.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

/// As plain files are written and read; the best of 1, 4 and 8 MiB here.
pub const PLAIN_BYTES: usize = 4 << 20;

pub fn read_plain(path: &Path, chunk: &mut [u8]) -> std::io::Result<u64> {
    let (mut file, mut bytes) = (File::open(path)?, 0);
    loop {
        match file.read(chunk)? {
            0 => return Ok(bytes),
            n => bytes += n as u64,
        }
    }
}

/// Asks the system to forget what it holds of a file in memory, so that reading it is reading the disk. Linux, by way of GNU
/// dd, which has a flag for that; false where it cannot be had.
pub fn forget(path: &Path) -> bool {
    let file = format!("if={}", path.display());
    let dd = Command::new("dd").args([&file, "iflag=nocache", "count=0", "status=none"]).status();
    dd.is_ok_and(|status| status.success())
}

/// Resident memory of this process now (bytes); on Linux.
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with("VmRSS:"))?;
    Some(1024 * line.split_whitespace().nth(1)?.parse::<u64>().ok()?)
}
