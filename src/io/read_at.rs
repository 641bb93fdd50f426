//! Reading a file by place, so that several threads may read the same one.

use std::fs::File;
use std::io::Result;

/// Fills `buffer` from a file's byte `offset` on.
///
/// Errors: the system's, and that the file ends before.
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset);
    #[cfg(windows)]
    return exactly(buffer, offset, |part, at| std::os::windows::fs::FileExt::seek_read(file, part, at));
    #[cfg(not(any(unix, windows)))]
    {
        use std::io::{Read, Seek, SeekFrom};
        // One thread alone reads here (`in_order`).
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}

/// Reads parts until a buffer is full.
#[cfg(any(windows, test))]
fn exactly(mut buffer: &mut [u8], mut offset: u64, read: impl Fn(&mut [u8], u64) -> Result<usize>) -> Result<()> {
    use std::io::ErrorKind;
    while !buffer.is_empty() {
        match read(buffer, offset) {
            Ok(0) => return Err(std::io::Error::new(ErrorKind::UnexpectedEof, "failed to fill whole buffer")),
            Ok(part) => {
                buffer = &mut std::mem::take(&mut buffer)[part..];
                offset += part as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_a_whole_and_an_end_is_an_error() {
        let content: Vec<u8> = (0..100).collect();
        let read = |part: &mut [u8], at: u64| {
            let from = &content[(at as usize).min(100)..];
            let count = part.len().min(from.len()).min(7);
            part[..count].copy_from_slice(&from[..count]);
            Ok(count)
        };
        let mut buffer = [0; 40];
        exactly(&mut buffer, 60, read).unwrap();
        assert_eq!(buffer[..], content[60..]);
        let error = exactly(&mut buffer, 61, read).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_is_read_by_place() {
        let path = std::env::temp_dir().join(format!("latten-read-at-{}", std::process::id()));
        std::fs::write(&path, (0..100).collect::<Vec<u8>>()).unwrap();
        let file = File::open(&path).unwrap();
        // It is there as long as it is open.
        let _ = std::fs::remove_file(&path);
        let mut buffer = [0; 30];
        for offset in [70, 0, 33] {
            read_exact_at(&file, &mut buffer, offset as u64).unwrap();
            assert!(buffer.iter().enumerate().all(|(i, byte)| usize::from(*byte) == offset + i));
        }
        let error = read_exact_at(&file, &mut buffer, 71).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}
