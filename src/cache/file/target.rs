//! Where a saved file goes: what is no regular file is never replaced by one.

use crate::error::Result;
use crate::io::regular::not_regular;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// Links of links that are followed, as Linux has it.
const MOST_LINKS: usize = 40;

/// The file that a save to `path` makes or replaces. A link stays, and what it leads to is the file.
///
/// Errors: [`ErrorKind::Io`](crate::ErrorKind::Io) for a folder, a pipe, a device or a socket, and what names no file.
pub(crate) fn target(path: &Path) -> Result<PathBuf> {
    followed(path).map_err(|e| crate::error::ErrorKind::io(path, e))
}

fn followed(path: &Path) -> Result<PathBuf, Error> {
    // Through all links at once: those of /dev/stdout, say, lead nowhere by name.
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(Error::other(not_regular(&found.file_type()))),
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut target = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        match std::fs::read_link(&target) {
            Ok(link) => target = target.parent().unwrap_or(Path::new("")).join(link),
            // It is there and no link, or is not there yet.
            Err(_) if target.file_name().is_some() => return Ok(target),
            Err(_) => return Err(Error::other("names no file")),
        }
    }
    Err(Error::other(format!("more than {MOST_LINKS} links to links")))
}
