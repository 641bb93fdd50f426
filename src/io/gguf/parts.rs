//! Models that lie in several files: `name-00002-of-00005.gguf`. Pure.

use std::path::{Path, PathBuf};

/// Parts of a model at most.
const MOST: usize = 9999;
const DIGITS: usize = 5;

/// All files of the model that this one is a part of, in order; none where its name tells of no others.
pub(crate) fn parts(path: &Path) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| {
        let plain = digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<usize>().ok()).flatten()
    };
    let (number, count) = (parse(number)?, parse(count)?);
    if !(1..=count).contains(&number) || count > MOST {
        return None;
    }
    Some((1..=count).map(|part| path.with_file_name(format!("{stem}-{part:05}-of-{count:05}.gguf"))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_of_the_other_parts() {
        let found = parts(Path::new("a/b-Q4_K-00002-of-00003.gguf")).unwrap();
        let want = ["a/b-Q4_K-00001-of-00003.gguf", "a/b-Q4_K-00002-of-00003.gguf", "a/b-Q4_K-00003-of-00003.gguf"];
        assert_eq!(found, want.map(PathBuf::from));
        for other in [
            "b.gguf",
            "b-00004-of-00003.gguf",
            "b-00000-of-00003.gguf",
            "b-1-of-3.gguf",
            "b-00001-of-+0003.gguf",
            "b-00001-of-00003.bin",
            "b-00001-of-99999.gguf",
            "..",
        ] {
            assert_eq!(parts(Path::new(other)), None, "{other}");
        }
    }
}
