//! What the tensors of a layer are called. Pure.

/// What the tensors of a layer are called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum TensorNames {
    /// As in the table of the [module](crate::model), which has the names of published models.
    #[default]
    Published,
    /// The same, but those of the experts, which have Mistral's names.
    Mixtral,
    /// The same, but those of norms behind attention and feed-forward, which have OLMo 2's names.
    Olmo2,
    /// The same, with norms around attention and feed-forward part by Gemma's names.
    Gemma,
    /// The same, but the router, which has gpt-oss's name.
    GptOss,
    /// As in the code that the authors of GTA and GLA published, github.com/Dao-AILab/grouped-latent-attention: in the
    /// [module](crate::model)'s documentation, too.
    Authors,
}

/// Published name and the authors'.
const ONE: [(&str, &str); 5] = [
    ("k_rope_proj", "W_rope_k"),
    ("q_a_proj", "W_dQ"),
    ("q_a_layernorm", "q_norm"),
    ("q_b_proj", "W_uQ_rope"),
    ("kv_a_proj_with_mqa", "W_dKV"),
];
/// Published name and Mixtral's, of the feed-forward part.
const EXPERTS: [(&str, &str); 4] =
    [("mlp", "block_sparse_moe"), ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")];
/// Published name of a norm behind a part of a block (GLM-4's) and OLMo 2's.
const OLMO2: [(&str, &str); 2] =
    [("post_self_attn_layernorm", "post_attention_layernorm"), ("post_mlp_layernorm", "post_feedforward_layernorm")];
/// Published name and Gemma's.
const GEMMA: [(&str, &str); 3] = [
    ("post_self_attn_layernorm", "post_attention_layernorm"),
    ("post_attention_layernorm", "pre_feedforward_layernorm"),
    ("post_mlp_layernorm", "post_feedforward_layernorm"),
];
/// Published name of what chooses experts and gpt-oss's.
const GPT_OSS: [(&str, &str); 1] = [("gate", "router")];
/// Of these the authors have one per latent head, numbered from 1.
const PER_LATENT_HEAD: [(&str, &str); 2] = [("kv_a_layernorm", "kv_norm_"), ("kv_b_proj", "W_ukv_")];

impl TensorNames {
    /// Of what has the published name `part`.
    pub(crate) fn of(self, part: &'static str) -> &'static str {
        let others: &[(&str, &'static str)] = match self {
            TensorNames::Published => &[],
            TensorNames::Mixtral => &EXPERTS,
            TensorNames::Olmo2 => &OLMO2,
            TensorNames::Gemma => &GEMMA,
            TensorNames::GptOss => &GPT_OSS,
            TensorNames::Authors => &ONE,
        };
        others.iter().find(|(published, _)| *published == part).map_or(part, |(_, own)| *own)
    }

    /// Of what has the published name `part`, in the order of its rows: one tensor, or one per latent head.
    pub(crate) fn of_latents(self, part: &'static str, latent_heads: usize) -> Vec<String> {
        match PER_LATENT_HEAD.iter().find(|(published, _)| self == TensorNames::Authors && *published == part) {
            Some((_, authors)) => (1..=latent_heads.max(1)).map(|head| format!("{authors}{head}")).collect(),
            None => vec![part.into()],
        }
    }
}
