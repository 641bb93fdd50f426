//! The rows of the table.

use latten::kv::StateLayout;
use latten::{DType, Gla, Gqa, Gta, HeadLayout, Mla, Result};

/// Caches of a cold row together hold at least this much: more than any last-level cache (bytes).
const COLD_BYTES: usize = 256 << 20;

/// One row: a variant, a batch and a page size.
#[derive(Debug, Clone)]
pub struct Shape {
    pub name: String,
    pub heads: HeadLayout,
    /// Cached tokens per sequence.
    pub lengths: Vec<usize>,
    pub q_len: usize,
    pub page_size: usize,
    /// The same pool every time, small enough for a last-level cache.
    pub warm: bool,
}

impl Shape {
    /// Bytes that must move and arithmetic that must be done: each cached element and scale once, f32 queries
    /// and outputs;
    /// two FLOP per query row, token, and element of key and value.
    pub fn bytes_and_flops(&self, dtype: DType) -> (f64, f64) {
        let h = &self.heads;
        let (tokens, rows): (usize, usize) = (self.lengths.iter().sum(), self.q_len * h.q_heads());
        let io = self.lengths.len() * rows * (h.q_dim() + h.v_dim() + 1) * 4;
        let token_bytes = match dtype {
            // Halves for the rope key, and f32 scales.
            DType::I8 | DType::I4 => {
                let spans = StateLayout::new(h, dtype).spans;
                h.groups() * (h.state_dim() * dtype.size_bits() / 8 + 4 * spans) + 2 * h.rope_dim()
            }
            _ => h.kv_dim() * dtype.size_bits() / 8,
        };
        let bytes = (tokens * token_bytes + io) as f64;
        (bytes, 2.0 * (rows * tokens * (h.q_dim() + h.v_dim())) as f64)
    }

    /// Pages of one pool.
    pub fn pages(&self) -> usize {
        self.lengths.iter().map(|length| length.div_ceil(self.page_size)).sum()
    }

    /// Pools to take in turn, so that no run finds its cache where the last one left it.
    pub fn pools(&self, dtype: DType) -> usize {
        let pool_bytes = self.pages() * self.page_size * token_bytes(&self.heads, dtype);
        if self.warm {
            1
        } else {
            COLD_BYTES.div_ceil(pool_bytes).max(1)
        }
    }
}

fn token_bytes(heads: &HeadLayout, dtype: DType) -> usize {
    16 * StateLayout::new(heads, dtype).row_words(heads.groups())
}

/// What a row's batch is limited by.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub dtype: DType,
    /// Largest storage binding: a layer's pool has to fit (bytes).
    pub binding_bytes: u64,
    pub software: bool,
}

impl Limits {
    /// `batch` sequences of `length` tokens, or as many as one binding holds, which the name then says.
    fn even(&self, name: &str, heads: HeadLayout, batch: usize, length: usize) -> Shape {
        let fits = self.binding_bytes / (length * token_bytes(&heads, self.dtype)) as u64;
        let most = batch.min(fits.max(1) as usize);
        let of = if most < batch { format!("(of {batch})") } else { String::new() };
        let name = format!("{name} B{most}{of} L{length}");
        Shape { name, heads, lengths: vec![length; most], q_len: 1, page_size: 64, warm: false }
    }
}

/// `shape` with so many query tokens per sequence; its name says so where they are more than one.
fn with_q(shape: Shape, q_len: usize) -> Shape {
    let name = if q_len == 1 { shape.name.clone() } else { format!("{} q{q_len}", shape.name) };
    Shape { name, q_len, ..shape }
}

fn with_page(shape: Shape, page_size: usize) -> Shape {
    Shape { name: format!("{} page {page_size}", shape.name), page_size, ..shape }
}

fn ragged(name: &str, heads: HeadLayout, lengths: &[usize]) -> Shape {
    Shape { name: name.into(), heads, lengths: lengths.to_vec(), q_len: 1, page_size: 64, warm: false }
}

fn warm(shape: Shape) -> Shape {
    Shape { name: format!("{} warm", shape.name), warm: true, ..shape }
}

/// All rows, in the order of the table of goals first.
pub fn all(limits: Limits) -> Result<Vec<Shape>> {
    let gqa = HeadLayout::gqa(Gqa { q_heads: 32, kv_heads: 8, head_dim: 128 })?;
    let gta = HeadLayout::gta(Gta { q_heads: 32, kv_heads: 8, head_dim: 128, rope_dim: 64 })?;
    let gla = |q_heads| HeadLayout::gla(Gla { q_heads, latent_heads: 2, latent_dim: 256, rope_dim: 64 });
    let mla = |q_heads| HeadLayout::mla(Mla { q_heads, latent_dim: 512, rope_dim: 64 });
    let (gla16, gla128, mla16, mla128) = (gla(16)?, gla(128)?, mla(16)?, mla(128)?);
    let mha = HeadLayout::mha(8, 128)?;
    let mqa = HeadLayout::gqa(Gqa { q_heads: 16, kv_heads: 1, head_dim: 128 })?;
    let (gqa_name, gta_name) = ("gqa 32/8 d128", "gta 32/8 d128+64");
    let (gla16_name, gla128_name) = ("gla-2 h16 256+64", "gla-2 h128 256+64");
    let (mla16_name, mla128_name) = ("mla h16 512+64", "mla h128 512+64");
    if limits.software {
        let one = |name: &str, heads| limits.even(name, heads, 1, 4096);
        return Ok(vec![
            one(gqa_name, gqa),
            one(gta_name, gta),
            one(gla16_name, gla16),
            one(mla16_name, mla16),
            one("mha 8 d128", mha),
            one("mqa 16 d128", mqa),
            with_q(one(gqa_name, gqa), 4),
            with_page(one(gqa_name, gqa), 1),
            ragged("gqa 32/8 d128 ragged 4", gqa, &[464, 4511, 173, 169]),
        ]);
    }
    let gqa64 = limits.even(gqa_name, gqa, 64, 8192);
    let gla64 = limits.even(gla16_name, gla16, 64, 8192);
    let mut rows = vec![
        gqa64.clone(),
        limits.even(gta_name, gta, 64, 8192),
        limits.even(gqa_name, gqa, 1, 131_072),
        limits.even(gta_name, gta, 1, 131_072),
        gla64.clone(),
    ];
    for (name, heads, batch) in
        [(gla128_name, gla128, 128), (gla128_name, gla128, 64), (mla16_name, mla16, 64), (mla128_name, mla128, 64)]
    {
        let shape = limits.even(name, heads, batch, 8192);
        rows.extend([1, 2].map(|q_len| with_q(shape.clone(), q_len)));
    }
    // As in earlier tables, with which these rows are compared.
    rows.extend([
        limits.even(gqa_name, gqa, 32, 8192),
        limits.even("mha 8 d128", mha, 32, 8192),
        limits.even("mqa 16 d128", mqa, 128, 8192),
        limits.even(gla16_name, gla16, 1, 131_072),
        limits.even(gla128_name, gla128, 1, 65_536),
        limits.even(mla16_name, mla16, 1, 65_536),
    ]);
    for q_len in [2, 3, 4, 5, 6, 7, 8, 12, 16] {
        rows.extend([with_q(gqa64.clone(), q_len), with_q(gla64.clone(), q_len)]);
    }
    for page_size in [1, 16, 256] {
        rows.extend([with_page(gqa64.clone(), page_size), with_page(gla64.clone(), page_size)]);
    }
    let mut straggler = vec![1024; 15];
    straggler.push(131_072);
    for (name, heads) in [(gqa_name, gqa), (gta_name, gta), (gla16_name, gla16)] {
        rows.push(ragged(&format!("{name} ragged 4"), heads, &[4641, 45_118, 1730, 1696]));
        rows.push(ragged(&format!("{name} 15x1024+131072"), heads, &straggler));
    }
    // A cache that stays in the last level, and the same out of it.
    for (name, heads, batch) in [(gqa_name, gqa, 1), (gta_name, gta, 2), (gla16_name, gla16, 4)] {
        let small = limits.even(name, heads, batch, 4096);
        rows.extend([small.clone(), warm(small)]);
    }
    Ok(rows)
}
