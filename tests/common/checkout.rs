//! Files that tests read and that only a checkout of the repository has.

#[path = "../../examples/shared/repository.rs"]
pub mod repository;

/// A path in the repository, as `examples/models/gla`. The test fails, and says what is missing and where it is to be had,
/// where this is the package of the crate.
pub fn checkout(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    repository::here(&path).unwrap();
    path
}
