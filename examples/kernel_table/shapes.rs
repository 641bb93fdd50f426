//! The rows of the table.

use latten::{Gla, Gqa, Gta, HeadLayout, Mla, Result};

/// What the six numbers come from.
#[derive(Debug, Clone, Copy)]
enum Variant {
    Gqa(Gqa),
    Gta(Gta),
    Gla(Gla),
    Mla(Mla),
}

/// One row: a variant, a batch and a page size.
#[derive(Debug, Clone)]
pub struct Shape {
    pub name: String,
    variant: Variant,
    pub lengths: Vec<usize>,
    pub q_len: usize,
    pub page_size: usize,
}

impl Shape {
    pub fn heads(&self) -> Result<HeadLayout> {
        match self.variant {
            Variant::Gqa(v) => HeadLayout::gqa(v),
            Variant::Gta(v) => HeadLayout::gta(v),
            Variant::Gla(v) => HeadLayout::gla(v),
            Variant::Mla(v) => HeadLayout::mla(v),
        }
    }

    /// Bytes that must move and arithmetic that must be done: each cached f16 element once, f32 queries and outputs;
    /// two FLOP per query row, token, and element of key and value.
    pub fn bytes_and_flops(&self) -> (f64, f64) {
        let Ok(h) = self.heads() else { return (0.0, 0.0) };
        let (tokens, rows): (usize, usize) = (self.lengths.iter().sum(), self.q_len * h.q_heads());
        let io = self.lengths.len() * rows * (h.q_dim() + h.v_dim() + 1) * 4;
        let bytes = (tokens * h.kv_dim() * 2 + io) as f64;
        (bytes, 2.0 * (rows * tokens * (h.q_dim() + h.v_dim())) as f64)
    }
}

fn shape(name: &str, variant: Variant, lengths: Vec<usize>) -> Shape {
    Shape { name: name.into(), variant, lengths, q_len: 1, page_size: 64 }
}

pub fn all(software: bool) -> Vec<Shape> {
    let gqa = Variant::Gqa(Gqa { q_heads: 32, kv_heads: 8, head_dim: 128 });
    let gta = Variant::Gta(Gta { q_heads: 32, kv_heads: 8, head_dim: 128, rope_dim: 64 });
    let gla16 = Variant::Gla(Gla { q_heads: 16, latent_heads: 2, latent_dim: 256, rope_dim: 64 });
    let gla128 = Variant::Gla(Gla { q_heads: 128, latent_heads: 2, latent_dim: 256, rope_dim: 64 });
    let mla16 = Variant::Mla(Mla { q_heads: 16, latent_dim: 512, rope_dim: 64 });
    let mla128 = Variant::Mla(Mla { q_heads: 128, latent_dim: 512, rope_dim: 64 });
    let mha = Variant::Gqa(Gqa { q_heads: 8, kv_heads: 8, head_dim: 128 });
    let mqa = Variant::Gqa(Gqa { q_heads: 16, kv_heads: 1, head_dim: 128 });
    if software {
        let l = vec![4096];
        return vec![
            shape("gqa 32/8 d128 B1 L4096", gqa, l.clone()),
            shape("gta 32/8 d128+64 B1 L4096", gta, l.clone()),
            shape("gla-2 h16 256+64 B1 L4096", gla16, l.clone()),
            shape("mla h16 512+64 B1 L4096", mla16, l.clone()),
            shape("mha 8 d128 B1 L4096", mha, l.clone()),
            shape("mqa 16 d128 B1 L4096", mqa, l),
        ];
    }
    let (even, long) = (vec![8192; 32], vec![131_072]);
    let ragged = vec![4641, 45118, 1730, 1696];
    let mut straggler = vec![1024; 15];
    straggler.push(131_072);
    let mut rows = vec![
        shape("gqa 32/8 d128 B32 L8192", gqa, even.clone()),
        shape("gta 32/8 d128+64 B32 L8192", gta, even.clone()),
        shape("gta 32/8 d128+64 B64 L8192", gta, vec![8192; 64]),
        shape("mha 8 d128 B32 L8192", mha, even.clone()),
        shape("mqa 16 d128 B128 L8192", mqa, vec![8192; 128]),
        shape("gla-2 h16 256+64 B64 L8192", gla16, vec![8192; 64]),
        shape("gla-2 h128 256+64 B64 L8192", gla128, vec![8192; 64]),
        shape("mla h16 512+64 B64 L8192", mla16, vec![8192; 64]),
        shape("mla h128 512+64 B64 L8192", mla128, vec![8192; 64]),
        shape("gqa 32/8 d128 B1 L131072", gqa, long.clone()),
        shape("gta 32/8 d128+64 B1 L131072", gta, long.clone()),
        shape("gla-2 h16 256+64 B1 L131072", gla16, long),
        shape("gqa 32/8 d128 ragged 4", gqa, ragged.clone()),
        shape("gla-2 h16 256+64 ragged 4", gla16, ragged),
        shape("gqa 32/8 d128 15x1024+131072", gqa, straggler),
    ];
    for q_len in [2, 4, 8] {
        let name = format!("gqa 32/8 d128 B32 L8192 q{q_len}");
        rows.push(Shape { q_len, ..shape(&name, gqa, even.clone()) });
        let name = format!("gla-2 h16 256+64 B64 L8192 q{q_len}");
        rows.push(Shape { q_len, ..shape(&name, gla16, vec![8192; 64]) });
    }
    for page_size in [1, 16, 256] {
        let name = format!("gqa 32/8 d128 B32 L8192 page {page_size}");
        rows.push(Shape { page_size, ..shape(&name, gqa, even.clone()) });
    }
    rows
}
