//! Biases that are too large for the integers of a cache: Qwen2's keys. What is done about them is
//! `HeadLayout::gqa_wide`; here is the rule by which they are found, and what becomes of those that find no room.
//!
//! A layer's input is behind a norm, so its elements have mean square 1, times the norm's gain. Taken for independent, a channel
//! of a key or value is its bias and a rest of the size |gain * row of the matrix|; the `size` of a head is the root mean square of
//! that over its channels. The largest of 128 normal rests is about 2.8 sizes, and that is what the scale of integers is for:
//! a bias of 4 sizes makes the error of the attention output up to 2 times as large, one of 10 seven times (i8;
//! `docs/quantised-cache.md`).

use crate::error::{ErrorKind, Result};
use crate::gpu::DType;
use crate::kv::{Gqa, HeadLayout, WideChannels};
use crate::model::config::{AttentionConfig, Config};
use crate::model::weights::matrix::Matrix;
use crate::model::weights::reader::WeightReader;

/// A pair of channels whose bias is more sizes than this is large.
const LARGE: f32 = 4.0;
/// What cannot be kept apart is refused from so many sizes on: there the output's error is about 1e-2 in i8, and in i4 as good
/// as noise.
const REFUSED_I8: f32 = 32.0;
const REFUSED_I4: f32 = 16.0;
/// Channels of a KV head that are kept apart, at most, and those of all KV heads, which each of them reads: 256 bytes.
const MOST_WIDE: usize = 32;
const MOST_WIDE_OF_ALL: usize = 128;

/// The large biases of a layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct LargeBiases {
    /// Of each KV head of GQA: large pairs of channels of the key, and how many sizes they have, the largest first.
    keys: Vec<Vec<(f32, [u32; 2])>>,
    /// Of what has no channels apart, values and tied states: the most sizes that a bias has.
    others: f32,
}

impl LargeBiases {
    /// Of GQA's `k_proj` and `v_proj`. `gain`: of the norm before them, if it is part of the layer.
    pub(crate) fn of_gqa(
        source: &WeightReader<'_>,
        config: &Config,
        (k, v): (&Matrix, &Matrix),
        gain: Option<&[f32]>,
    ) -> Result<Self> {
        let (dim, half) = (config.head_dim, config.head_dim / 2);
        let partners = |i: usize| match config.rope_interleaved {
            true => [2 * i, 2 * i + 1],
            false => [i, i + half],
        };
        let mut keys = Vec::new();
        for (bias, size) in heads(source, k, dim, gain)? {
            let pair = |i: usize| {
                let [a, b] = partners(i);
                (bias[a].hypot(bias[b]) / size, [a as u32, b as u32])
            };
            let mut pairs: Vec<_> = (0..half).map(pair).filter(|(sizes, _)| *sizes > LARGE).collect();
            pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
            keys.push(pairs);
        }
        Ok(LargeBiases { keys, others: Self::of_tied(source, config, v, gain)?.others })
    }

    /// Of GTA's `kv_proj`, whose states are keys and values at once.
    pub(crate) fn of_tied(
        source: &WeightReader<'_>,
        config: &Config,
        kv: &Matrix,
        gain: Option<&[f32]>,
    ) -> Result<Self> {
        let sizes = |(bias, size): (Vec<f32>, f32)| bias.iter().fold(0.0f32, |most, b| most.max(b.abs())) / size;
        let heads = heads(source, kv, config.head_dim, gain)?;
        Ok(LargeBiases { keys: Vec::new(), others: heads.into_iter().map(sizes).fold(0.0, f32::max) })
    }

    /// The channels of each KV head that are too large to be integers with the others.
    pub(crate) fn channels(&self) -> Vec<Vec<u32>> {
        self.keys.iter().map(|pairs| pairs.iter().flat_map(|(_, pair)| *pair).collect()).collect()
    }
}

/// Bias and size of each head of `dim` rows; none where there is no bias.
fn heads(source: &WeightReader<'_>, matrix: &Matrix, dim: usize, gain: Option<&[f32]>) -> Result<Vec<(Vec<f32>, f32)>> {
    let Some(bias) = matrix.bias() else { return Ok(Vec::new()) };
    let mut squares = Vec::new();
    source.rows_of(matrix, &mut |row| {
        let scaled = |(i, w): (usize, &f32)| f64::from(w * gain.map_or(1.0, |gain| gain[i])).powi(2);
        squares.push(row.iter().enumerate().map(scaled).sum::<f64>());
    })?;
    let size = |squares: &[f64]| ((squares.iter().sum::<f64>() / dim as f64).sqrt() as f32).max(f32::MIN_POSITIVE);
    Ok(bias.chunks(dim).zip(squares.chunks(dim)).map(|(bias, squares)| (bias.to_vec(), size(squares))).collect())
}

/// What a model's caches of integers keep apart.
#[derive(Debug, Clone)]
pub(crate) struct LargeKeys {
    channels: Option<WideChannels>,
    /// The most sizes of a bias that stays with the integers, if it is large, and whose.
    rest: Option<(f32, String)>,
}

impl LargeKeys {
    /// Errors: none of a [`Config`] that was parsed.
    pub(crate) fn of(config: &Config, layers: &[LargeBiases]) -> Result<Self> {
        let mut rest: Option<(f32, String)> = None;
        let mut stays = |sizes: f32, whose: String| {
            if sizes > rest.as_ref().map_or(LARGE, |(most, _)| *most) {
                rest = Some((sizes, whose));
            }
        };
        for (l, layer) in layers.iter().enumerate() {
            stays(layer.others, format!("the values of layer {l}"));
        }
        let pairs = layers.iter().flat_map(|layer| &layer.keys).map(Vec::len).max().unwrap_or(0);
        let (AttentionConfig::Gqa { kv_heads }, true) = (config.attention, pairs > 0) else {
            return Ok(LargeKeys { channels: None, rest });
        };
        // Fours are what kernels read fastest.
        let most = MOST_WIDE.min(config.head_dim / 4).min(MOST_WIDE_OF_ALL / kv_heads) / 4 * 4;
        let wide = (2 * pairs).next_multiple_of(4).min(most.max(2));
        for (l, layer) in layers.iter().enumerate() {
            for (g, pairs) in layer.keys.iter().enumerate() {
                let (found, sizes) = (2 * pairs.len(), pairs.get(wide / 2).map_or(0.0, |(sizes, _)| *sizes));
                stays(
                    sizes,
                    format!("the keys of layer {l}, KV head {g} ({found} large channels, of which {wide} find room)"),
                );
            }
        }
        let kept = |layer: &LargeBiases| {
            let channels = layer.channels().into_iter();
            channels.map(|c| c.into_iter().take(wide).collect::<Vec<u32>>()).collect::<Vec<_>>()
        };
        let heads = Gqa { q_heads: config.q_heads, kv_heads, head_dim: config.head_dim };
        let heads = HeadLayout::gqa_wide(heads, wide)?;
        let channels = WideChannels::new(&heads, &layers.iter().map(kept).collect::<Vec<_>>())?;
        Ok(LargeKeys { channels: Some(channels), rest })
    }

    /// What a cache of this dtype keeps apart, if anything. What it would have to and cannot is told in the log.
    ///
    /// Errors: [`ErrorKind::Unsupported`] where that would leave noise.
    pub(crate) fn in_cache(&self, dtype: DType) -> Result<Option<&WideChannels>> {
        let refused = match dtype {
            DType::I8 => REFUSED_I8,
            DType::I4 => REFUSED_I4,
            _ => return Ok(None),
        };
        if let Some((sizes, whose)) = &self.rest {
            let what = format!(
                "a cache in {dtype}: the biases of {whose} are up to {sizes:.0} times the size of the rest, which takes the \
                 integers' bits; take f16 or bf16"
            );
            if *sizes > refused {
                return Err(ErrorKind::Unsupported { what }.into());
            }
            log::warn!("{what}");
        }
        Ok(self.channels.as_ref())
    }
}
