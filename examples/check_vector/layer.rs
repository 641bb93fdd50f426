//! A layer vector: the whole attention layer over all its tokens, and the output of the last.

use super::kernel::{narrow, rounded, wide};
use super::report::{Bound, Report};
use super::vector::{LayerVector, LayerWeights, Variant};
use latten::kv::StateLayout;
use latten::model::{Attention, AttentionArgs, AttentionConfig, Config, WeightBytes};
use latten::reference;
use latten::reference::{DecodeInputs, GlaWeights, GtaWeights, LayerConfig, Projected, RopePairs};
use latten::{
    CacheOptions, DType, Decode, ErrorKind, Gla, Gpu, Gta, HeadLayout, KvSource, PagedKvCache, Pages, Result, SeqId,
    SplitPolicy, Tensor,
};
use safetensors::tensor::{Dtype, TensorView};

/// As for kernels.
const RUNS: [(SplitPolicy, usize); 2] = [(SplitPolicy::Auto, 16), (SplitPolicy::FixedTokens(1), 4)];
/// Tokens before the last go into the cache this many at a time.
const CHUNK: usize = 48;

pub fn check(gpu: &Gpu, file: &str, vector: &LayerVector, report: &mut Report<'_>) -> Result<()> {
    let LayerConfig { model_dim, q_heads, groups, head_dim, rope_dim, state_dim, .. } = vector.config;
    let len = vector.x.len() / model_dim;
    report.say(&format!(
        "{file}: {:?} layer, model {model_dim}, {q_heads} query heads of {head_dim}, {groups} groups of {state_dim}, \
         rope {rope_dim}, {len} tokens",
        vector.variant
    ));
    if vector.variant == Variant::Gta && head_dim % 2 != 0 {
        let why = format!("{head_dim} is odd: a gta layer's rope key is half of a head");
        return Err(ErrorKind::Argument { name: "head_dim", why }.into());
    }
    let exact = LayerConfig { rotation: vector.config.rotation.clone().exact(), ..vector.config.clone() };
    let case = Reference { config: &exact, weights: &vector.weights };
    let y = case.output(&case.project(&vector.x)?)?;
    report.compare("y", "reference, f64", "the vector", (&y, &vector.y), Bound::out(DType::F32));
    for dtype in [DType::F32, DType::F16] {
        check_dtype(gpu, vector, dtype, report)?;
    }
    Ok(())
}

/// What the device is held to differs from the vector's `y` in that it has the device's inputs: weights and `x` as they
/// are stored, angles in f32 as the models were trained (the oracle's are in f64: at position 300 that alone moves `y`
/// by more than the device's arithmetic).
///
/// In f32 that is the reference from one end to the other. In f16 the cached rows are a rounding in the middle, and a
/// value near the border between two halves may go either way by the last bit of f32 arithmetic: no f64 computation can
/// foresee it. So rows are read back from the cache and compared by themselves, within one unit of an f16's last place
/// (2^-10 of the value, NMSE 1e-6); and `y` is held to the reference's attention over those very rows, which are then
/// "the same rounded inputs" of the kernel's bound.
fn check_dtype(gpu: &Gpu, vector: &LayerVector, dtype: DType, report: &mut Report<'_>) -> Result<()> {
    let weights = stored(&vector.weights, dtype);
    let x = narrow(&vector.x);
    let case = Reference { config: &vector.config, weights: &weights };
    let projected = case.project(&wide(&x))?;
    let want_rows = case.rows(&projected, dtype);
    if !case.all_values().chain(&want_rows).chain(&wide(&x)).all(|v| v.is_finite()) {
        return report.not_run(dtype, "a weight, an input or a cached row");
    }
    let config = model_config(vector);
    let attention =
        Attention::from_bytes(gpu, &config, WeightBytes { name: "vector", bytes: &case.safetensors()? }, dtype)?;
    for (policy, page_size) in RUNS {
        let device = Device { gpu, attention: &attention, config: &config, dtype };
        let run = format!("{dtype}, page {page_size}, {policy:?}");
        let (y, rows) = device.run(&x, policy, page_size)?;
        let rows_bound = Bound { nmse: if dtype == DType::F32 { 1e-10 } else { 1e-6 }, absolute: f64::INFINITY };
        report.compare("rows", &run, "the reference", (&rows, &want_rows), rows_bound);
        let (held, against) = match dtype {
            DType::F32 => (projected.clone(), "the reference"),
            _ => (case.with_rows(&projected, &rows), "the reference on the rows as cached"),
        };
        let want = case.output(&held)?;
        report.compare("y", &run, against, (&y, &want), Bound::out(dtype).relative_to(&want));
    }
    Ok(())
}

/// Weights as the device stores them: matrices in `dtype`, biases and gains in f32.
fn stored(weights: &LayerWeights, dtype: DType) -> LayerWeights {
    let matrix = |values: &[f64]| -> Vec<f64> { values.iter().map(|&v| rounded(v as f32, dtype).into()).collect() };
    let vector = |values: &[f64]| wide(&narrow(values));
    match weights {
        LayerWeights::Gta(w) => LayerWeights::Gta(GtaWeights {
            w_q: matrix(&w.w_q),
            w_kv: matrix(&w.w_kv),
            w_rope_k: matrix(&w.w_rope_k),
            b_rope_k: vector(&w.b_rope_k),
            w_o: matrix(&w.w_o),
        }),
        LayerWeights::Gla(w) => LayerWeights::Gla(GlaWeights {
            w_dq: matrix(&w.w_dq),
            b_dq: vector(&w.b_dq),
            q_gain: vector(&w.q_gain),
            w_uq: matrix(&w.w_uq),
            b_uq: vector(&w.b_uq),
            w_dkv: matrix(&w.w_dkv),
            b_dkv: vector(&w.b_dkv),
            c_gain: vector(&w.c_gain),
            w_ukv: matrix(&w.w_ukv),
            b_ukv: vector(&w.b_ukv),
            w_o: matrix(&w.w_o),
        }),
    }
}

/// The f64 reference of a layer.
struct Reference<'a> {
    config: &'a LayerConfig,
    weights: &'a LayerWeights,
}

/// A tensor of a model file: name, shape, values.
type Named<'a> = (&'static str, Vec<usize>, &'a [f64]);

impl Reference<'_> {
    fn project(&self, x: &[f64]) -> Result<Projected> {
        match self.weights {
            LayerWeights::Gta(weights) => reference::gta_project(self.config, weights, x),
            LayerWeights::Gla(weights) => reference::gla_project(self.config, weights, x),
        }
    }

    /// `y` of the last token.
    fn output(&self, projected: &Projected) -> Result<Vec<f64>> {
        let LayerConfig { q_heads, groups, head_dim, rope_dim, state_dim, .. } = *self.config;
        let Projected { q, states, rope_keys } = projected;
        let width = q_heads * head_dim;
        let step = |q, softmax_scale| DecodeInputs { q, states, rope_keys, softmax_scale, causal: true };
        match self.weights {
            LayerWeights::Gta(weights) => {
                let layout = HeadLayout::gta(Gta { q_heads, kv_heads: groups, head_dim, rope_dim })?;
                let attended = reference::decode(&layout, &step(q, (head_dim as f64).powf(-0.5)))?;
                reference::linear(&attended.out, &weights.w_o, None, width)
            }
            LayerWeights::Gla(weights) => {
                let layout = HeadLayout::gla(Gla { q_heads, latent_heads: groups, latent_dim: state_dim, rope_dim })?;
                let q = reference::absorb_query(self.config, weights, q)?;
                let attended = reference::decode(&layout, &step(&q, ((head_dim + rope_dim) as f64).powf(-0.5)))?;
                let values = reference::unabsorb_values(self.config, weights, &attended.out)?;
                reference::linear(&values, &weights.w_o, None, width)
            }
        }
    }

    /// The cached rows (len, kv_dim), rounded to `dtype`.
    fn rows(&self, projected: &Projected, dtype: DType) -> Vec<f64> {
        let LayerConfig { groups, state_dim, rope_dim, .. } = *self.config;
        let mut rows = Vec::new();
        for (t, states) in projected.states.chunks_exact(groups * state_dim).enumerate() {
            let rope_key = &projected.rope_keys[t * rope_dim..][..rope_dim];
            rows.extend(states.iter().chain(rope_key).map(|&v| f64::from(rounded(v as f32, dtype))));
        }
        rows
    }

    /// The same query over other rows.
    fn with_rows(&self, projected: &Projected, rows: &[f64]) -> Projected {
        let LayerConfig { groups, state_dim, rope_dim, .. } = *self.config;
        let mut held = Projected { q: projected.q.clone(), states: Vec::new(), rope_keys: Vec::new() };
        for row in rows.chunks_exact(groups * state_dim + rope_dim) {
            let (states, rope_key) = row.split_at(groups * state_dim);
            held.states.extend_from_slice(states);
            held.rope_keys.extend_from_slice(rope_key);
        }
        held
    }

    /// The weights under the names of a model file.
    fn named(&self) -> Vec<Named<'_>> {
        let LayerConfig { model_dim, q_heads, groups, head_dim, rope_dim, state_dim, q_latent_dim, .. } = *self.config;
        let (q_width, kv_width) = (q_heads * (head_dim + rope_dim), groups * state_dim + rope_dim);
        let up = q_heads * 2 * head_dim;
        match self.weights {
            LayerWeights::Gta(w) => vec![
                ("q_proj.weight", vec![q_heads * head_dim, model_dim], &w.w_q),
                ("kv_proj.weight", vec![groups * head_dim, model_dim], &w.w_kv),
                ("k_rope_proj.weight", vec![rope_dim, model_dim], &w.w_rope_k),
                ("k_rope_proj.bias", vec![rope_dim], &w.b_rope_k),
                ("o_proj.weight", vec![model_dim, q_heads * head_dim], &w.w_o),
            ],
            LayerWeights::Gla(w) => vec![
                ("q_a_proj.weight", vec![q_latent_dim, model_dim], &w.w_dq),
                ("q_a_proj.bias", vec![q_latent_dim], &w.b_dq),
                ("q_a_layernorm.weight", vec![q_latent_dim], &w.q_gain),
                ("q_b_proj.weight", vec![q_width, q_latent_dim], &w.w_uq),
                ("q_b_proj.bias", vec![q_width], &w.b_uq),
                ("kv_a_proj_with_mqa.weight", vec![kv_width, model_dim], &w.w_dkv),
                ("kv_a_proj_with_mqa.bias", vec![kv_width], &w.b_dkv),
                ("kv_a_layernorm.weight", vec![groups, state_dim], &w.c_gain),
                ("kv_b_proj.weight", vec![up, state_dim], &w.w_ukv),
                ("kv_b_proj.bias", vec![up], &w.b_ukv),
                ("o_proj.weight", vec![model_dim, q_heads * head_dim], &w.w_o),
            ],
        }
    }

    fn all_values(&self) -> impl Iterator<Item = &f64> {
        self.named().into_iter().flat_map(|(_, _, values)| values)
    }

    fn safetensors(&self) -> Result<Vec<u8>> {
        let bytes = |v: &f64| (*v as f32).to_le_bytes();
        let tensors =
            self.named().into_iter().map(|(name, shape, v)| (name, shape, v.iter().flat_map(bytes).collect()));
        let tensors: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors.collect();
        let views =
            tensors.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
        let file = views.collect::<Result<Vec<_>, _>>().and_then(|views| safetensors::serialize(views, None));
        file.map_err(|e| ErrorKind::Argument { name: "weights", why: e.to_string() }.into())
    }
}

/// The vector's numbers as a model has them. What is not about attention does not matter.
fn model_config(vector: &LayerVector) -> Config {
    let LayerConfig { model_dim, q_heads, groups, head_dim, rope_dim, state_dim, q_latent_dim, .. } = vector.config;
    let attention = match vector.variant {
        Variant::Gta => AttentionConfig::Gta { kv_heads: groups, rope_dim },
        _ => {
            let q_latent_dim = Some(q_latent_dim);
            AttentionConfig::Latent { latent_heads: groups, latent_dim: state_dim, q_latent_dim, rope_dim }
        }
    };
    let mut config = Config::new(attention, model_dim, q_heads, head_dim);
    (config.rms_norm_eps, config.latent_norm_eps) = (vector.config.eps as f32, vector.config.eps as f32);
    config.rope_theta = vector.theta;
    config.rope_interleaved = vector.config.rotation.pairs == RopePairs::Interleaved;
    config.max_positions = vector.x.len() / model_dim;
    config
}

/// The layer on the GPU.
struct Device<'a> {
    gpu: &'a Gpu,
    attention: &'a Attention,
    config: &'a Config,
    dtype: DType,
}

impl Device<'_> {
    /// `y` of the last token, and the cached rows of all (len, kv_dim). `x` is (len, model_dim).
    fn run(&self, x: &[f32], policy: SplitPolicy, page_size: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let (heads, model_dim) = (self.config.layout()?, self.config.hidden_size);
        let len = x.len() / model_dim;
        let pages = Pages { count: 2 * len.div_ceil(page_size), size: page_size, layers: 1 };
        let rope = Some(self.config.rope()?);
        let mut cache =
            PagedKvCache::new(self.gpu, heads, CacheOptions { rope, ..CacheOptions::new(self.dtype, pages) })?;
        let decode = Decode::new(self.gpu, heads, self.dtype)?.with_policy(policy);
        // A neighbour that takes every other page, so that the sequence's are not in one run.
        let (seq, neighbour) = (cache.insert(), cache.insert());
        let mut first = 0;
        loop {
            let count = if first + 1 < len { CHUNK.min(len - 1 - first) } else { 1 };
            cache.reserve(&[seq, neighbour], count)?;
            let rows = &x[first * model_dim..(first + count) * model_dim];
            let rows = Tensor::from_slice(self.gpu, &[count, model_dim], rows, DType::F32)?;
            let (x, decode) = (&rows, &decode);
            let args = AttentionArgs { x, cache: &mut cache, layer: 0, decode, sequences: &[seq], prefill: None };
            let y = self.attention.forward(args)?;
            cache.commit(&[seq, neighbour], count)?;
            first += count;
            if first == len {
                let y = wide(&pollster::block_on(self.gpu.download(&y))?);
                return Ok((y, self.cached_rows(&cache, seq, len)?));
            }
        }
    }

    /// A sequence's rows (len, kv_dim), read back from the cache.
    fn cached_rows(&self, cache: &PagedKvCache, seq: SeqId, len: usize) -> Result<Vec<f64>> {
        let (heads, view) = (cache.heads(), cache.layer(0)?);
        let (layout, page_size) = (StateLayout::new(heads, self.dtype), view.page_size());
        let pool = view.wgpu_buffers()[0].clone();
        let u32s = (pool.size() / 4) as usize;
        let pool = Tensor::from_wgpu(self.gpu, pool, &[u32s], DType::U32)?;
        let pool = pollster::block_on(self.gpu.download::<u32>(&pool))?;
        let pages = cache.batch(&[seq])?.page_table;
        let element = |word: usize, i: usize| match self.dtype {
            DType::F16 => half::f16::from_bits((pool[4 * word + i / 2] >> (16 * (i % 2))) as u16).to_f64(),
            _ => f64::from(f32::from_bits(pool[4 * word + i])),
        };
        let mut rows = Vec::new();
        for t in 0..len {
            let page = pages[t / page_size] as usize * page_size * layout.row_words(heads.groups());
            // A page is a plane of states per group, then one of rope keys; a tied state is its elements in order.
            for group in 0..heads.groups() {
                let word = page + (group * page_size + t % page_size) * layout.state_words;
                rows.extend((0..heads.state_dim()).map(|i| element(word, i)));
            }
            let word = page + heads.groups() * page_size * layout.state_words + t % page_size * layout.rope_words;
            rows.extend((0..heads.rope_dim()).map(|i| element(word, i)));
        }
        Ok(rows)
    }
}
