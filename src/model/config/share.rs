//! The part of a model that one rank computes. Pure.

use super::{AttentionConfig, Config, ExpertsConfig, QkNorm};
use crate::error::{ErrorKind, Result};
use crate::parallel::Shard;
use std::ops::Range;

/// A rank's part of each layer, by its numbers in the whole model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelShare {
    pub(crate) shard: Shard,
    /// The numbers of what the rank computes: as if its heads and widths were all that the model has.
    pub(crate) config: Config,
    /// Query heads.
    pub(crate) q_heads: Range<usize>,
    /// KV heads, tied heads or latent heads.
    pub(crate) groups: Range<usize>,
    /// Elements of the SwiGLU.
    pub(crate) ffn: Range<usize>,
    /// Of each expert's.
    pub(crate) expert: Range<usize>,
    /// Of that which every token goes through beside the experts.
    pub(crate) shared: Range<usize>,
}

impl ModelShare {
    /// The same of a model whose layers are all like this one.
    pub(crate) fn of_layer(&self, layer: usize) -> ModelShare {
        ModelShare { config: self.config.of_layer(layer), ..self.clone() }
    }
}

impl Config {
    /// What a rank computes of each layer: its heads, and its part of every SwiGLU's width, those of experts too. Embedding, norms, the
    /// head, the query latent, the rope key and an expert's choice are whole on every rank.
    ///
    /// Errors: [`ErrorKind::Argument`](crate::ErrorKind::Argument), named by the number that cannot be divided;
    /// [`ErrorKind::Unsupported`] for norms of what all ranks make together.
    pub(crate) fn share(&self, shard: Shard) -> Result<ModelShare> {
        if shard.size() > 1 && (self.norms.after() || self.qk_norm == QkNorm::Whole) {
            let what = "ranks of a model with norms behind its parts, or over all of its heads: they want sums of all ranks first";
            return Err(ErrorKind::Unsupported { what: what.into() }.into());
        }
        if shard.is_by_context() && self.layer_kinds.iter().any(|kind| kind.window.is_some()) {
            let what = "ranks that divide sequences by context, of a model with a window in some layers";
            return Err(ErrorKind::Unsupported { what: what.into() }.into());
        }
        if shard.is_by_context() && self.sinks {
            let what = "ranks that divide sequences by context, of a model with sinks: each rank would count them";
            return Err(ErrorKind::Unsupported { what: what.into() }.into());
        }
        let heads = self.layout()?.shard(shard)?;
        let ffn = shard.part("intermediate_size", self.intermediate_size)?;
        let (expert, shared) = match self.experts {
            Some(experts) => {
                (shard.part("experts.width", experts.width)?, shard.part("experts.shared_width", experts.shared_width)?)
            }
            None => (0..0, 0..0),
        };
        let experts = self.experts.map(|all| ExpertsConfig { width: expert.len(), shared_width: shared.len(), ..all });
        let groups = heads.groups.len();
        let attention = match self.attention {
            AttentionConfig::Gqa { .. } => AttentionConfig::Gqa { kv_heads: groups },
            AttentionConfig::Gta { rope_dim, .. } => AttentionConfig::Gta { kv_heads: groups, rope_dim },
            AttentionConfig::Latent { latent_dim, q_latent_dim, rope_dim, .. } => {
                AttentionConfig::Latent { latent_heads: groups, latent_dim, q_latent_dim, rope_dim }
            }
        };
        let q_heads = heads.q_heads.len();
        let config = Config { attention, q_heads, intermediate_size: ffn.len(), experts, ..self.clone() };
        Ok(ModelShare { shard, config, q_heads: heads.q_heads, groups: heads.groups, ffn, expert, shared })
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_model_of_its_own() {
        let latent = AttentionConfig::Latent { latent_heads: 4, latent_dim: 32, q_latent_dim: Some(48), rope_dim: 8 };
        for attention in
            [AttentionConfig::Gqa { kv_heads: 4 }, AttentionConfig::Gta { kv_heads: 4, rope_dim: 8 }, latent]
        {
            let config = Config::new(attention, 64, 8, 16);
            assert_eq!(config.share(Shard::whole()).unwrap().config, config);
            for rank in 0..2 {
                let share = config.share(Shard::new(rank, 2).unwrap()).unwrap();
                assert_eq!((share.q_heads, share.groups), (4 * rank..4 * rank + 4, 2 * rank..2 * rank + 2));
                assert_eq!((share.ffn, share.config.intermediate_size), (128 * rank..128 * rank + 128, 128));
                let layout = config.layout().unwrap().shard(share.shard).unwrap().layout;
                assert_eq!(share.config.layout().unwrap(), layout);
                assert_eq!(share.config.softmax_scale(), config.softmax_scale());
            }
        }
    }

    #[test]
    fn norms_of_what_all_ranks_make_are_refused() {
        let config = Config::new(AttentionConfig::Gqa { kv_heads: 4 }, 64, 8, 16);
        let after = Config { norms: crate::model::config::BlockNorms::Around, ..config.clone() };
        for config in [after, Config { qk_norm: QkNorm::Whole, ..config }] {
            assert!(config.share(Shard::whole()).is_ok());
            let error = config.share(Shard::new(1, 2).unwrap()).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_divided_is_named() {
        let mut config = Config::new(AttentionConfig::Gqa { kv_heads: 4 }, 64, 8, 16);
        config.intermediate_size = 130;
        let why = |config: &Config, size| config.share(Shard::new(0, size).unwrap()).unwrap_err().to_string();
        assert_eq!(why(&config, 4), "intermediate_size: 130 cannot be divided among 4 ranks");
        assert_eq!(why(&config, 3), "q_heads: 8 cannot be divided among 3 ranks");
    }
}
