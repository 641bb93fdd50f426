//! Layers of several kinds in one model: those in which tokens see others have a plan and kernels of their own.

use super::attention::AttentionStep;
use crate::attention::{AttentionOptions, Decode, Plan, SplitPolicy};
use crate::cache::{PagedKvCache, SeqId};
use crate::error::Result;
use crate::gpu::{DType, Gpu};

/// What attends in layers that are not of the first kind.
#[derive(Debug, Default)]
pub(crate) struct LayerDecodes {
    decodes: Vec<Decode>,
    /// Of each layer, 0 for the first kind and from 1 on one of these; empty where there are none.
    of_layers: Vec<usize>,
}

impl LayerDecodes {
    /// Beside `first`, for layers of these options.
    pub(crate) fn new(first: &Decode, (gpu, dtype): (&Gpu, DType), layers: &[AttentionOptions]) -> Result<Self> {
        let (mut made, mut kinds) = (LayerDecodes::default(), vec![*first.options()]);
        for options in layers {
            let known = kinds.iter().position(|kind| kind == options);
            made.of_layers.push(known.unwrap_or(kinds.len()));
            if known.is_none() {
                kinds.push(*options);
                let decode = Decode::with_options(gpu, *first.heads(), dtype, *options)?;
                made.decodes.push(decode.with_policy(first.policy()));
            }
        }
        Ok(made)
    }

    /// The same, which cut long contexts by another policy.
    pub(crate) fn with_policy(self, policy: SplitPolicy) -> Self {
        let decodes = self.decodes.into_iter().map(|decode| decode.with_policy(policy));
        LayerDecodes { decodes: decodes.collect(), ..self }
    }

    /// A plan of each. Errors: as [`Decode::plan`].
    pub(crate) fn plans(&self, cache: &PagedKvCache, sequences: &[SeqId]) -> Result<Vec<Plan>> {
        self.decodes.iter().map(|decode| plan(decode, cache, sequences)).collect()
    }

    /// What commands of a step hang on, beside those of the first kind.
    pub(crate) fn extend_key(&self, plans: &[Plan], key: &mut Vec<u64>) {
        self.decodes.iter().zip(plans).for_each(|(decode, plan)| decode.extend_key(plan, key));
    }
}

/// A plan of what attends in layers of one kind: those with a window may have pools of their own.
///
/// Errors: as [`Decode::plan`].
pub(super) fn plan(decode: &Decode, cache: &PagedKvCache, sequences: &[SeqId]) -> Result<Plan> {
    match cache.window_source().filter(|_| decode.options().window.is_some()) {
        Some(source) => decode.plan(&source, sequences),
        None => decode.plan(cache, sequences),
    }
}

impl<'a> AttentionStep<'a> {
    /// What attends in a layer, and the plan of sequences in the absorbed form.
    pub(super) fn of_layer(&self, layer: usize) -> (&'a Decode, Option<&'a Plan>) {
        let other = || {
            let (kinds, plans) = self.kinds?;
            let number = kinds.of_layers.get(layer)?.checked_sub(1)?;
            Some((kinds.decodes.get(number)?, plans.get(number)))
        };
        other().unwrap_or((self.decode, self.plan))
    }
}
