//! Saved caches: their bytes, and the way of rows into a file and back.

mod codes;
mod format;
mod input;
mod load;
mod page_rows;
mod save;
mod saved_sequence;
mod target;

pub use format::{saved_info, SavedInfo, SavedSequence};
pub use load::LoadedSequence;
#[cfg(test)]
pub(crate) use page_rows::PageRowsParams;
pub(crate) use page_rows::{pages_rows_spec, Direction};
pub use save::{Save, SaveSequence};
