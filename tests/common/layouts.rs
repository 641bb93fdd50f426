//! Layouts of attention that several tests go through.

use latten::{Gla, Gqa, Gta, HeadLayout, Mla};

/// One small layout of each kind: between them every slot, tiles of one to 64 rows, odd row counts.
pub fn layouts() -> Vec<HeadLayout> {
    vec![
        HeadLayout::mha(3, 32).unwrap(),
        HeadLayout::gqa(Gqa { q_heads: 8, kv_heads: 2, head_dim: 32 }).unwrap(),
        HeadLayout::mqa(9, 48).unwrap(),
        HeadLayout::gta(Gta { q_heads: 8, kv_heads: 4, head_dim: 64, rope_dim: 32 }).unwrap(),
        HeadLayout::gla(Gla { q_heads: 6, latent_heads: 2, latent_dim: 128, rope_dim: 32 }).unwrap(),
        HeadLayout::mla(Mla { q_heads: 8, latent_dim: 128, rope_dim: 64 }).unwrap(),
    ]
}

/// The same with narrower latents, for what does not depend on their width: a software GPU compiles the kernels of many rows
/// in a fraction of the time.
pub fn narrow_layouts() -> Vec<HeadLayout> {
    let mut all = layouts();
    all[4] = HeadLayout::gla(Gla { q_heads: 6, latent_heads: 2, latent_dim: 32, rope_dim: 8 }).unwrap();
    all[5] = HeadLayout::mla(Mla { q_heads: 8, latent_dim: 32, rope_dim: 16 }).unwrap();
    all
}

/// The layout whose kernels compile fastest, for what does not depend on one.
pub fn small() -> HeadLayout {
    HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 16, rope_dim: 8 }).unwrap()
}
