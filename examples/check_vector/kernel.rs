//! A kernel vector: rows into a paged cache, then one decode.

use super::report::{Bound, Report};
use super::vector::KernelVector;
use latten::reference::{decode, Attended, DecodeInputs};
use latten::{CacheOptions, DType, Decode, DecodeArgs, Gpu, PagedKvCache, Pages, Result, SeqId, SplitPolicy, Tensor};

/// Policy and tokens per page. `FixedTokens(1)` is as many parts as there are token tiles, so that the merge runs.
const RUNS: [(SplitPolicy, usize); 2] = [(SplitPolicy::Auto, 16), (SplitPolicy::FixedTokens(1), 4)];
/// What the neighbours' rows hold: seen by mistake, it would not go unnoticed.
const STRANGE: f32 = 6e4;

/// A vector as a cache of some dtype holds it.
struct Case<'a> {
    vector: &'a KernelVector,
    dtype: DType,
    /// Query tokens that see a token: the last ones. The cache's query tokens are always cached themselves, so a row
    /// without a visible token cannot be asked of the device; its result is zeros and -inf by contract.
    seeing: usize,
    /// (q_len, q_heads, q_dim)
    q: Vec<f32>,
    /// (kv_len, kv_dim), as given to the cache
    rows: Vec<f32>,
}

pub fn check(gpu: &Gpu, file: &str, vector: &KernelVector, report: &mut Report<'_>) -> Result<()> {
    let (layout, KernelVector { q_len, kv_len, .. }) = (&vector.layout, vector);
    report.say(&format!(
        "{file}: {:?} kernel, {} query heads, {} groups of {}, rope {}, {q_len} query tokens, {kv_len} cached",
        vector.variant,
        layout.q_heads(),
        layout.groups(),
        layout.state_dim(),
        layout.rope_dim()
    ));
    let reference = decode(layout, &vector.inputs())?;
    let run = "reference, f64";
    report.compare("out", run, "the vector", (&reference.out, &vector.out), Bound::out(DType::F32));
    report.compare("lse", run, "the vector", (&reference.lse, &vector.lse), Bound::lse());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let case = Case::new(vector, dtype);
        if case.seeing < *q_len {
            report.say(&format!(
                "  {dtype}: query tokens 0..{} see no token and are not run: zeros and -inf by contract",
                q_len - case.seeing
            ));
        }
        if !case.q.iter().copied().chain(case.rows.iter().map(|&v| rounded(v, dtype))).all(f32::is_finite) {
            report.not_run(dtype, "an input")?;
            continue;
        }
        let (want, against) = case.expectation()?;
        for (policy, page_size) in RUNS {
            let (got, parts) = case.run(gpu, policy, page_size)?;
            let run = format!("{dtype}, page {page_size}, {policy:?}, {parts}");
            report.compare("out", &run, against, (&got.out, &want.out), Bound::out(dtype).relative_to(&want.out));
            report.compare("lse", &run, against, (&got.lse, &want.lse), Bound::lse());
        }
    }
    Ok(())
}

/// As a cache of this dtype holds a value.
pub fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => half::f16::from_f32(value).to_f32(),
        DType::BF16 => half::bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

pub fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

impl<'a> Case<'a> {
    fn new(vector: &'a KernelVector, dtype: DType) -> Self {
        let layout = &vector.layout;
        let mut rows = Vec::new();
        let states_dim = layout.groups() * layout.state_dim();
        for t in 0..vector.kv_len {
            rows.extend(narrow(&vector.states[t * states_dim..][..states_dim]));
            rows.extend(narrow(&vector.rope_keys[t * layout.rope_dim()..][..layout.rope_dim()]));
        }
        Case { vector, dtype, seeing: vector.q_len.min(vector.kv_len), q: narrow(&vector.q), rows }
    }

    /// The vector's outputs where f32 queries and a cache of this dtype hold its inputs exactly, else the reference's for
    /// the inputs as they are held; and which of the two it is.
    fn expectation(&self) -> Result<(Attended, &'static str)> {
        let KernelVector { layout, out, lse, .. } = self.vector;
        let (mut states, mut rope_keys) = (Vec::new(), Vec::new());
        for row in self.rows.chunks_exact(layout.kv_dim()) {
            let held: Vec<f64> = row.iter().map(|&v| rounded(v, self.dtype).into()).collect();
            let (state, rope_key) = held.split_at(layout.groups() * layout.state_dim());
            states.extend_from_slice(state);
            rope_keys.extend_from_slice(rope_key);
        }
        let q = wide(&self.q);
        if q == self.vector.q && states == self.vector.states && rope_keys == self.vector.rope_keys {
            return Ok((Attended { out: out.clone(), lse: lse.clone() }, "the vector"));
        }
        let softmax_scale = f64::from(self.vector.softmax_scale as f32);
        let inputs = DecodeInputs { q: &q, states: &states, rope_keys: &rope_keys, softmax_scale, causal: true };
        Ok((decode(layout, &inputs)?, "the reference on rounded inputs"))
    }

    /// The device's results, and in how many parts the tokens were read.
    fn run(&self, gpu: &Gpu, policy: SplitPolicy, page_size: usize) -> Result<(Attended, String)> {
        let KernelVector { layout, q_len, .. } = self.vector;
        let blind = (q_len - self.seeing) * layout.q_heads();
        let mut got = Attended { out: vec![0.0; blind * layout.v_dim()], lse: vec![f64::NEG_INFINITY; blind] };
        if self.seeing == 0 {
            return Ok((got, "no part".into()));
        }
        let (mut cache, seq) = self.cached_past(gpu, page_size)?;
        cache.reserve(&[seq], self.seeing)?;
        let decode = Decode::new(gpu, *layout, self.dtype)?.with_policy(policy);
        let plan = decode.plan(&cache, &[seq])?;
        let newest = &self.rows[self.rows.len() - self.seeing * layout.kv_dim()..];
        cache.append(0, &[seq], &Tensor::from_slice(gpu, &[self.seeing, layout.kv_dim()], newest, DType::F32)?)?;
        let shape = [self.seeing, layout.q_heads(), layout.q_dim()];
        let q = Tensor::from_slice(gpu, &shape, &self.q[blind * layout.q_dim()..], DType::F32)?;
        let result = decode.run(DecodeArgs::new(&plan, &cache.layer(0)?, &q, self.vector.softmax_scale as f32))?;
        got.out.extend(wide(&pollster::block_on(gpu.download(&result.out))?));
        got.lse.extend(wide(&pollster::block_on(gpu.download(&result.lse))?));
        let merged = if plan.is_split() { ", merged" } else { "" };
        Ok((got, format!("items {}{merged}", plan.items())))
    }

    /// A cache that holds all tokens but the seeing ones, on scattered pages: between them lie those of a neighbour that
    /// grows with the sequence, and those that another one left behind.
    fn cached_past(&self, gpu: &Gpu, page_size: usize) -> Result<(PagedKvCache, SeqId)> {
        let KernelVector { layout, kv_len, .. } = self.vector;
        let (past, width) = (kv_len - self.seeing, layout.kv_dim());
        let pages = Pages { count: 2 * kv_len.div_ceil(page_size) + 4, size: page_size, layers: 1 };
        let mut cache = PagedKvCache::new(gpu, *layout, CacheOptions::new(self.dtype, pages))?;
        let append = |cache: &mut PagedKvCache, ids: &[SeqId], rows: &[f32]| {
            let tokens = rows.len() / width;
            cache.reserve(ids, tokens / ids.len())?;
            cache.append(0, ids, &Tensor::from_slice(gpu, &[tokens, width], rows, DType::F32)?)?;
            cache.commit(ids, tokens / ids.len())
        };
        let (gone, neighbour, seq) = (cache.insert(), cache.insert(), cache.insert());
        append(&mut cache, &[gone], &vec![STRANGE; 3 * page_size * width])?;
        let (mut first, mut sizes) = (0, [1, page_size + 1, 3 * page_size, 64].into_iter().cycle());
        while first < past {
            let count = sizes.next().unwrap_or(1).min(past - first);
            let rows = &self.rows[first * width..(first + count) * width];
            append(&mut cache, &[neighbour, seq], &[&vec![STRANGE; rows.len()], rows].concat())?;
            if first == 0 {
                cache.remove(gone)?;
            }
            first += count;
        }
        Ok((cache, seq))
    }
}
