//! What is in latten's repository and not in the package of the crate: models, and vectors of the tests.

use std::path::Path;

/// Where the example models are, seen from the repository's root.
#[allow(dead_code)] // not all who include this have it as a default
pub const MODELS: &str = "examples/models";

/// The folders that examples and tests read and that Cargo.toml excludes.
const REPOSITORY_ALONE: [&str; 2] = ["examples/models", "tests/vectors"];

/// Says where to get a file or folder that is missing, if it is one of the repository's: in a package of the crate it is not
/// there. Whatever else is missing is left to those who read it.
pub fn here(path: impl AsRef<Path>) -> Result<(), String> {
    let path = path.as_ref();
    let text = path.to_string_lossy().replace('\\', "/");
    match REPOSITORY_ALONE.iter().find(|folder| text.contains(*folder)) {
        Some(folder) if !path.exists() => Err(format!(
            "{} is missing: {folder} is in latten's repository alone, not in the package of the crate; run this in a \
             checkout of the repository, or give a path of your own",
            path.display()
        )),
        _ => Ok(()),
    }
}
