//! The models of the repository, one per variant of attention.

use std::path::{Path, PathBuf};

pub(crate) const VARIANTS: [&str; 4] = ["gqa", "gta", "gla", "mla"];

/// Those that are in this folder.
pub(crate) fn found(folder: &Path) -> Vec<(&'static str, PathBuf)> {
    let all = VARIANTS.into_iter().map(|name| (name, folder.join(name)));
    all.filter(|(_, path)| path.join("config.json").is_file()).collect()
}
