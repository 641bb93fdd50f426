//! Files that appear whole or not at all: written under a name of their own beside the place, then renamed over it.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};

/// Tries until a name is free: of 2^64 there is hardly ever a second.
const TRIES: usize = 16;

/// A new file in the folder of `path`, and where it is. Its name cannot be foreseen, and it is made only if there is nothing
/// of that name, not even a link: so nobody else who may write there can choose what is written to.
pub(crate) fn create_beside(path: &Path) -> Result<(File, PathBuf)> {
    let mut last = ErrorKind::AlreadyExists.into();
    for _ in 0..TRIES {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        // The standard library's only source of random numbers.
        name.push(format!(".{:016x}.part", RandomState::new().build_hasher().finish()));
        let temporary = path.with_file_name(name);
        match File::options().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_lie_beside_the_place() {
        let place = std::env::temp_dir().join(format!("latten-beside-{}", std::process::id()));
        let made: Vec<_> = (0..8).map(|_| create_beside(&place).unwrap().1).collect();
        for (i, path) in made.iter().enumerate() {
            assert!(!made[..i].contains(path) && path.parent() == place.parent());
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(
                name.starts_with(place.file_name().unwrap().to_str().unwrap()) && name.ends_with(".part"),
                "{name}"
            );
            assert!(!name.contains(&format!(".{}-", std::process::id())), "{name}");
            std::fs::remove_file(path).unwrap();
        }
        assert!(create_beside(&place.join("no such folder/x")).is_err());
    }
}
