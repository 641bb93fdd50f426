//! A file read by one thread while another works on what was read.

use crate::error::Result;
use std::fs::File;
use std::io::{Error, Read};
use std::sync::mpsc::sync_channel;
use std::thread::Builder;

/// Parts in memory at most: one that is read, one that waits, one that is worked on.
const PARTS: usize = 3;
/// From so many parts on a thread is worth its start.
const LEAST_PARTS: usize = 4;

/// Reads the next `bytes` of a file and gives them to `each`, `part_bytes` at a time, in order. What the disk takes is hidden
/// behind what `each` takes, or the other way round; memory is that of three parts.
///
/// Errors: those of `each`, which is told if a read fails.
pub(crate) fn read_ahead(
    file: &mut File,
    bytes: usize,
    part_bytes: usize,
    mut each: impl FnMut(Result<&[u8], Error>) -> Result<()>,
) -> Result<()> {
    let sizes = move || (0..bytes).step_by(part_bytes).map(move |at| part_bytes.min(bytes - at));
    if bytes < LEAST_PARTS * part_bytes {
        let mut part = vec![0; part_bytes.min(bytes)];
        return sizes().try_for_each(|size| {
            let read = file.read_exact(&mut part[..size]);
            each(read.map(|()| &part[..size]))
        });
    }
    std::thread::scope(|scope| {
        let (to_fill, empty) = sync_channel::<Vec<u8>>(PARTS);
        let (to_use, full) = sync_channel(PARTS);
        for _ in 0..PARTS {
            // There is room for all of them.
            let _ = to_fill.send(vec![0; part_bytes]);
        }
        let reader = move || {
            for size in sizes() {
                // Without a part, or someone to take it, the other side has given up.
                let Ok(mut part) = empty.recv() else { return };
                part.truncate(size);
                let read = file.read_exact(&mut part).map(|()| part);
                let failed = read.is_err();
                if to_use.send(read).is_err() || failed {
                    return;
                }
            }
        };
        if let Err(e) = Builder::new().spawn_scoped(scope, reader) {
            return each(Err(e));
        }
        for part in full {
            match part {
                Ok(part) => {
                    each(Ok(&part))?;
                    // At the end nobody wants it back.
                    let _ = to_fill.send(part);
                }
                Err(e) => return each(Err(e)),
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::io::{Seek, SeekFrom};

    const PART: usize = 1000;

    fn file(bytes: usize) -> (File, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("latten-read-ahead-{bytes}-{}", std::process::id()));
        let content: Vec<u8> = (0..bytes).map(|i| (i * 7 / 3) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = File::open(&path).unwrap();
        // It is there as long as it is open.
        let _ = std::fs::remove_file(&path);
        (file, content)
    }

    #[test]
    fn parts_come_in_order() {
        // Without a thread and with one; whole parts and a rest.
        for bytes in [0, 1, PART, 2 * PART + 1, 4 * PART, 9 * PART, 23 * PART + 999] {
            let (mut file, content) = file(bytes + 10);
            file.seek(SeekFrom::Start(5)).unwrap();
            let mut parts = Vec::new();
            read_ahead(&mut file, bytes, PART, |part| {
                parts.push(part.unwrap().to_vec());
                Ok(())
            })
            .unwrap();
            assert_eq!(parts.concat(), content[5..bytes + 5], "{bytes}");
            assert!(parts.iter().rev().skip(1).all(|part| part.len() == PART), "{bytes}");
        }
    }

    #[test]
    fn whoever_fails_ends_it() {
        for bytes in [3 * PART, 30 * PART] {
            let (mut file, _) = file(bytes);
            let mut parts = 0;
            // A file that is shorter than was said: its last part cannot be read.
            let ended = read_ahead(&mut file, bytes + 1, PART, |part| {
                parts += 1;
                part.map(|_| ()).map_err(|e| ErrorKind::argument("part", e.to_string()))
            });
            assert!(ended.is_err() && parts == bytes / PART + 1, "{parts} of {bytes}");
            file.seek(SeekFrom::Start(0)).unwrap();
            parts = 0;
            let ended = read_ahead(&mut file, bytes, PART, |_| {
                parts += 1;
                if parts == 2 {
                    return Err(ErrorKind::argument("part", "enough"));
                }
                Ok(())
            });
            assert!(ended.is_err() && parts == 2, "{parts}");
        }
    }
}
