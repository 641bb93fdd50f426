//! What several tools use.

pub(crate) mod arguments;
pub(crate) mod ceilings;
pub(crate) mod disk;
pub(crate) mod facts;
pub(crate) mod matmul;
pub(crate) mod timing;

#[path = "../../../examples/shared/breakdown.rs"]
pub(crate) mod breakdown;
#[path = "../../../examples/shared/cold_start.rs"]
pub(crate) mod cold_start;
#[path = "../../../examples/generate/loading.rs"]
pub(crate) mod loading;
#[path = "../../../examples/shared/repository.rs"]
pub(crate) mod repository;
#[path = "../../../examples/shared/warnings.rs"]
pub(crate) mod warnings;
