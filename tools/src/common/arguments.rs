//! What several tools read from their command lines.

#[path = "../../../examples/shared/arguments.rs"]
mod shared;

use latten::Tier;
pub(crate) use shared::{count, dtypes, forms, weight_types, CACHE_DTYPES, FORMS, VARIANTS, WEIGHT_TYPES};

/// Arguments of which some may not go together, in ways that clap does not know.
pub(crate) trait Checked: clap::Args {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// The kernels of [`latten::GpuOptions::tier`], by name.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum TierName {
    Portable,
    Subgroup,
    Matrix,
}

impl From<TierName> for Tier {
    fn from(name: TierName) -> Tier {
        match name {
            TierName::Portable => Tier::Portable,
            TierName::Subgroup => Tier::Subgroup,
            TierName::Matrix => Tier::Matrix,
        }
    }
}

/// The arguments of a tool as [`Checked::check`] passes them, or why not.
#[cfg(test)]
pub(crate) fn parsed<A: Checked>(args: &str) -> Result<A, String> {
    let command = A::augment_args(clap::Command::new("tool").no_binary_name(true));
    let matches = command.try_get_matches_from(args.split_whitespace()).map_err(|e| e.to_string())?;
    let args = A::from_arg_matches(&matches).map_err(|e| e.to_string())?;
    args.check().map(|()| args)
}
