//! Files that are files: no folder, pipe, device or socket, which have no length and may never end.

use std::fs::FileType;

/// A file and its length. What is no regular file has none, and might never end, or begin.
///
/// Errors: the system's, or that it is something else.
#[cfg(feature = "model")]
pub(crate) fn regular(path: &std::path::Path) -> std::io::Result<(std::fs::File, u64)> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(std::io::Error::other(not_regular(&metadata.file_type())));
    }
    let file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

/// What is not a regular file, in words.
pub(crate) fn not_regular(kind: &FileType) -> String {
    let what = if kind.is_dir() { "a folder" } else { special(kind) };
    format!("is {what}, not a regular file")
}

#[cfg(unix)]
fn special(kind: &FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(not(unix))]
fn special(_: &FileType) -> &'static str {
    "a device"
}
