//! What the cache of a text takes in each variant of attention.

use latten::{Gla, Gqa, Gta, HeadLayout, Mla};

/// A line of the plot: a variant, and the bytes of one token over all layers in f16.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) token_bytes: usize,
}

/// The four variants for a model of so many query heads of this width: GQA and GTA with a quarter as many KV heads, latents of four heads'
/// width, a rope key of half a head, as in the paper's models.
pub(crate) fn variants(q_heads: usize, head_dim: usize, layers: usize) -> Vec<Variant> {
    let kv_heads = (1..=q_heads / 4).rev().find(|kv_heads| q_heads.is_multiple_of(*kv_heads)).unwrap_or(1);
    let latent_heads = if q_heads.is_multiple_of(2) { 2 } else { 1 };
    let (latent_dim, rope_dim) = (4 * head_dim / latent_heads, head_dim / 4 * 2);
    let all = [
        ("GQA", HeadLayout::gqa(Gqa { q_heads, kv_heads, head_dim })),
        ("GTA", HeadLayout::gta(Gta { q_heads, kv_heads, head_dim, rope_dim })),
        ("GLA", HeadLayout::gla(Gla { q_heads, latent_heads, latent_dim, rope_dim })),
        ("MLA", HeadLayout::mla(Mla { q_heads, latent_dim: 4 * head_dim, rope_dim })),
    ];
    let bytes = |heads: HeadLayout| 2 * heads.kv_dim() * layers;
    all.into_iter().filter_map(|(name, heads)| Some(Variant { name, token_bytes: bytes(heads.ok()?) })).collect()
}

#[cfg(test)]
mod tests {
    use super::variants;

    /// The README's table for the paper's XL shape.
    #[test]
    fn bytes_are_those_of_the_paper() {
        let bytes: Vec<usize> = variants(16, 128, 1).iter().map(|variant| variant.token_bytes).collect();
        assert_eq!(bytes, [2048, 1152, 1152, 1152]);
    }

    #[test]
    fn odd_shapes_have_four_lines_too() {
        // SmolLM2-135M has 9 heads, of which 4 do not divide them.
        for (heads, width) in [(9, 64), (1, 32), (3, 8), (14, 64)] {
            assert_eq!(variants(heads, width, 30).len(), 4, "{heads} heads of {width}");
        }
    }
}
