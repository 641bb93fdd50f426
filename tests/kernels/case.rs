//! A decode over a ragged batch through cache, plan, append and kernels, and its comparison with the f64 reference.

use crate::append::pool;
use crate::common::{compare, gpu, tiers, wait, Bound, Rng};
use crate::integers::{held, INTEGERS};
use latten::attention::AttentionOptions;
use latten::kv::KvSource;
use latten::reference;
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, Gla, Gpu, Gta, HeadLayout, PagedKvCache, Pages, SeqId, SplitPolicy,
    Tensor, Tier,
};

/// One decode to check: a ragged batch of `(cached tokens with the new ones, new tokens)`.
#[derive(Debug, Clone)]
pub struct Case {
    pub heads: HeadLayout,
    pub dtype: DType,
    pub page_size: usize,
    pub lengths: Vec<(usize, usize)>,
    pub policy: SplitPolicy,
    pub seed: u64,
}

/// What a decode does beyond its case's definition.
#[derive(Debug, Clone, Default)]
pub struct Extra {
    pub options: AttentionOptions,
    /// (q_heads), where the options have sinks
    pub sinks: Vec<f32>,
    /// A mask per query token of each sequence, where they are not chains
    pub trees: Vec<Vec<u64>>,
}

/// Inputs of one sequence, and what the device made of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sequence {
    /// (kv_len, kv_dim)
    pub rows: Vec<f32>,
    /// (q_len, q_heads, q_dim)
    pub q: Vec<f32>,
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    /// Whether factors of products may have been rounded to f16, as matrix kernels do.
    pub halves: bool,
}

/// Whether a decode on this device may use the matrix kernels.
pub fn halves(gpu: &Gpu, dtype: DType) -> bool {
    gpu.capabilities().tier >= Tier::Matrix && dtype == DType::F16
}

pub fn scale(heads: &HeadLayout) -> f32 {
    (heads.q_dim() as f32).powf(-0.5)
}

/// Compares a case with the reference on a device of each tier.
pub fn check(case: &Case, extra: &Extra) {
    check_on(&tiers(), case, extra);
}

/// The same on these devices.
pub fn check_on(gpus: &[&Gpu], case: &Case, extra: &Extra) {
    for gpu in gpus {
        let decode = Decode::with_options(gpu, case.heads, case.dtype, extra.options).unwrap().with_policy(case.policy);
        let results = case.run_with(gpu, &decode, case.draw(), 0xff, extra);
        case.compare_all_with(&results, extra);
    }
}

impl Case {
    /// Random inputs, one sequence after the other.
    pub fn draw(&self) -> Vec<Sequence> {
        let draw = |(i, &(kv_len, q_len)): (usize, &(usize, usize))| {
            let mut rng = Rng(self.seed + 1000 * i as u64);
            let rows = rng.values(kv_len * self.heads.kv_dim()).into_iter().map(|v| rounded(v, self.dtype)).collect();
            let q = rng.values(q_len * self.heads.q_heads() * self.heads.q_dim());
            Sequence { rows, q, ..Default::default() }
        };
        self.lengths.iter().enumerate().map(draw).collect()
    }

    /// A cache whose memory holds `poison` (repeated) before the sequences are appended, their pages interleaved.
    pub fn fill(&self, gpu: &Gpu, sequences: &[Sequence], poison: u8) -> (PagedKvCache, Vec<SeqId>) {
        let pages: usize = self.lengths.iter().map(|l| l.0.div_ceil(self.page_size)).sum::<usize>() + 3;
        let pages = Pages { count: pages, size: self.page_size, layers: 1 };
        let mut cache = PagedKvCache::new(gpu, self.heads, CacheOptions::new(self.dtype, pages)).unwrap();
        for slab in cache.layer(0).unwrap().wgpu_buffers() {
            gpu.queue().write_buffer(&slab, 0, &vec![poison; slab.size() as usize]);
        }
        // A page held and freed, so that the sequences' pages do not start at 0 and lie scattered.
        let blocker = cache.insert();
        cache.reserve(&[blocker], 2 * self.page_size).unwrap();
        let ids: Vec<SeqId> = sequences.iter().map(|_| cache.insert()).collect();
        let old: Vec<usize> = self.lengths.iter().map(|(kv, q)| kv - q).collect();
        let mut done = vec![0; old.len()];
        let mut rng = Rng(self.seed ^ 0xabcd);
        let kv_dim = self.heads.kv_dim();
        while (0..old.len()).any(|i| done[i] < old[i]) {
            // Rounds of uneven steps: several sequences in one append, pages taken in turn.
            let active: Vec<usize> = (0..old.len()).filter(|&i| done[i] < old[i]).collect();
            let mut kv = Vec::new();
            let mut step = Vec::new();
            for &i in &active {
                let n = (1 + rng.below(3 * self.page_size + 70)).min(old[i] - done[i]);
                cache.reserve(&[ids[i]], n).unwrap();
                kv.extend_from_slice(&sequences[i].rows[done[i] * kv_dim..(done[i] + n) * kv_dim]);
                step.push(n);
                done[i] += n;
            }
            let tokens = kv.len() / kv_dim;
            let kv = Tensor::from_slice(gpu, &[tokens, kv_dim], &kv, DType::F32).unwrap();
            let names: Vec<SeqId> = active.iter().map(|&i| ids[i]).collect();
            cache.append(0, &names, &kv).unwrap();
            for (&i, n) in active.iter().zip(step) {
                cache.commit(&[ids[i]], n).unwrap();
            }
        }
        cache.remove(blocker).unwrap();
        (cache, ids)
    }

    /// Runs the case on the device with memory nobody owns filled with `poison`; fills in `out` and `lse`.
    pub fn run_poisoned(&self, gpu: &Gpu, poison: u8) -> Vec<Sequence> {
        let decode = Decode::new(gpu, self.heads, self.dtype).unwrap().with_policy(self.policy);
        self.run(gpu, &decode, self.draw(), poison)
    }

    /// The same with inputs of the caller's and a `Decode` that may have served before.
    pub fn run(&self, gpu: &Gpu, decode: &Decode, sequences: Vec<Sequence>, poison: u8) -> Vec<Sequence> {
        self.run_with(gpu, decode, sequences, poison, &Extra::default())
    }

    /// The same with options: those of `decode`.
    pub fn run_with(
        &self,
        gpu: &Gpu,
        decode: &Decode,
        sequences: Vec<Sequence>,
        poison: u8,
        extra: &Extra,
    ) -> Vec<Sequence> {
        let (cache, ids) = self.fill(gpu, &sequences, poison);
        self.step(gpu, decode, sequences, (cache, ids), extra)
    }

    /// The same with the cached tokens of all sequences appended in one go.
    pub fn run_at_once(&self, gpu: &Gpu, decode: &Decode, sequences: Vec<Sequence>) -> Vec<Sequence> {
        let count = self.lengths.iter().map(|l| l.0.div_ceil(self.page_size)).sum();
        let pages = Pages { count, size: self.page_size, layers: 1 };
        let mut cache = PagedKvCache::new(gpu, self.heads, CacheOptions::new(self.dtype, pages)).unwrap();
        let ids: Vec<SeqId> = sequences.iter().map(|_| cache.insert()).collect();
        let mut rows = Vec::new();
        for ((id, s), (kv_len, q_len)) in ids.iter().zip(&sequences).zip(&self.lengths) {
            cache.reserve(&[*id], kv_len - q_len).unwrap();
            rows.extend_from_slice(&s.rows[..(kv_len - q_len) * self.heads.kv_dim()]);
        }
        let tokens = rows.len() / self.heads.kv_dim();
        let kv = Tensor::from_slice(gpu, &[tokens, self.heads.kv_dim()], &rows, DType::F32).unwrap();
        cache.append(0, &ids, &kv).unwrap();
        for (id, (kv_len, q_len)) in ids.iter().zip(&self.lengths) {
            cache.commit(&[*id], kv_len - q_len).unwrap();
        }
        self.step(gpu, decode, sequences, (cache, ids), &Extra::default())
    }

    /// The step itself: the new tokens appended, then attention from them.
    fn step(
        &self,
        gpu: &Gpu,
        decode: &Decode,
        mut sequences: Vec<Sequence>,
        (mut cache, ids): (PagedKvCache, Vec<SeqId>),
        extra: &Extra,
    ) -> Vec<Sequence> {
        let heads = &self.heads;
        let (mut q, mut kv) = (Vec::new(), Vec::new());
        for ((s, id), (kv_len, q_len)) in sequences.iter().zip(&ids).zip(&self.lengths) {
            if *q_len > 0 {
                cache.reserve(&[*id], *q_len).unwrap();
            }
            q.extend_from_slice(&s.q);
            kv.extend_from_slice(&s.rows[(kv_len - q_len) * heads.kv_dim()..]);
        }
        let tokens = kv.len() / heads.kv_dim();
        let q = Tensor::from_slice(gpu, &[tokens, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
        let kv = Tensor::from_slice(gpu, &[tokens, heads.kv_dim()], &kv, DType::F32).unwrap();
        let plan = match extra.trees.concat() {
            masks if masks.is_empty() => decode.plan(&cache, &ids).unwrap(),
            masks => decode.plan_tree(&cache, &ids, &masks).unwrap(),
        };
        cache.append(0, &ids, &kv).unwrap();
        let output = decode.output(tokens).unwrap();
        // Unwritten results would show as NaN.
        gpu.upload(&output.out, &vec![f32::NAN; output.out.len()]).unwrap();
        gpu.upload(&output.lse, &vec![f32::NAN; output.lse.len()]).unwrap();
        drop(output);
        let layer = cache.layer(0).unwrap();
        let sinks =
            extra.options.sinks.then(|| Tensor::from_slice(gpu, &[heads.q_heads()], &extra.sinks, DType::F32).unwrap());
        let args = DecodeArgs::new(&plan, &layer, &q, scale(heads));
        let result = decode.run(DecodeArgs { sinks: sinks.as_ref(), ..args }).unwrap();
        let out = wait(gpu.download(&result.out)).unwrap();
        let lse = wait(gpu.download(&result.lse)).unwrap();
        let batch = cache.batch(&ids).unwrap();
        if INTEGERS.contains(&self.dtype) {
            // Results are to be what the integers say that are in the cache; how good those are, tests of append say.
            let memory = pool(gpu, &cache, 0);
            for (s, seen) in sequences.iter_mut().zip(&batch.sequences) {
                let slot = |t: usize| {
                    let page = batch.page_table[seen.page_table_first as usize + t / self.page_size] as usize;
                    page * self.page_size + t % self.page_size
                };
                let row = |t: usize| held(*heads, self.dtype, self.page_size, &memory, slot(t));
                s.rows = (0..seen.kv_len as usize).flat_map(row).collect();
            }
        }
        for (s, seen) in sequences.iter_mut().zip(&batch.sequences) {
            let first = seen.q_token_first as usize;
            let rows = |width: usize| first * width..(first + seen.q_len as usize) * width;
            s.out = out[rows(heads.q_heads() * heads.v_dim())].to_vec();
            s.lse = lse[rows(heads.q_heads())].to_vec();
            s.halves = halves(gpu, self.dtype);
        }
        sequences
    }

    /// Runs the case in NaN-filled memory and compares with the reference within the bounds of the dtype.
    pub fn check(&self, gpu: &Gpu) -> Errors {
        self.compare_all(&self.run_poisoned(gpu, 0xff))
    }

    pub fn compare_all(&self, results: &[Sequence]) -> Errors {
        self.compare_all_with(results, &Extra::default())
    }

    pub fn compare_all_with(&self, results: &[Sequence], extra: &Extra) -> Errors {
        let each = results.iter().enumerate().map(|(i, s)| self.compare_with(i, s, Size::default(), extra));
        each.fold(Errors::default(), Errors::worst)
    }

    /// What a failure names: lengths only where they are not thousands.
    fn text(&self) -> String {
        match self.lengths.len() {
            0..100 => format!("{self:?}"),
            n => format!("{n} sequences, seed {}, {:?} {} {:?}", self.seed, self.heads, self.dtype, self.policy),
        }
    }

    /// Compares one sequence with the reference: every result must be a number, and of long or tall ones a sample of
    /// rows (the first, the last and some between) is recomputed.
    pub fn compare(&self, index: usize, s: &Sequence, size: Size) -> Errors {
        self.compare_with(index, s, size, &Extra::default())
    }

    /// The same for a decode with options.
    pub fn compare_with(&self, index: usize, s: &Sequence, size: Size, extra: &Extra) -> Errors {
        let what = format!("{} {:?} sequence {index}", self.text(), extra.options);
        assert!(s.out.iter().chain(&s.lse).all(|v| v.is_finite()), "{what}: a result is no number");
        let Sample { out, lse, want_out, want_lse, products } = self.sample(index, s, extra);
        let Size { mut score, mut cancelled, .. } = size;
        let (mut value, mut weight) = (size.value.max(1.0), 0.0);
        let mut nmse = if self.dtype == DType::F32 { 1e-10 } else { 1e-9 };
        if s.halves {
            // Rounding to f16 moves a query's element, and so its products, and a weight, by up to 2^-11 of each.
            score += products * 2f64.powi(-11);
            cancelled += if cancelled > 0.0 { products * 2f64.powi(-11) } else { 0.0 };
            weight = 2f64.powi(-11);
            nmse = 1e-6;
            // The largest of Rng::value.
            value = value.max(4.0);
        }
        nmse += cancelled * cancelled;
        let bound = Bound { absolute: (2e-5 + 2.0 * (score + weight)) * value, nmse, scale: size.value };
        let (nmse, out) = compare(&format!("{what} out"), &out, &want_out, bound);
        let bound = Bound { absolute: 1e-5 + score + weight, nmse: f64::INFINITY, scale: 0.0 };
        let (_, lse) = compare(&format!("{what} lse"), &lse, &want_lse, bound);
        Errors { nmse, out, lse }
    }

    /// NMSE of one sequence's output against the reference, whatever it is.
    pub fn nmse(&self, index: usize, s: &Sequence) -> f64 {
        let sample = self.sample(index, s, &Extra::default());
        let bound = Bound { absolute: f64::INFINITY, nmse: f64::INFINITY, scale: 0.0 };
        compare("out", &sample.out, &sample.want_out, bound).0
    }

    /// Results of a sample of rows, and what the reference has for them.
    fn sample(&self, index: usize, s: &Sequence, extra: &Extra) -> Sample {
        let (heads, (kv_len, q_len)) = (&self.heads, self.lengths[index]);
        let rows = q_len * heads.q_heads();
        let most = (4_000_000 / (kv_len * (heads.q_dim() + heads.v_dim())).max(1)).max(6);
        let mut rng = Rng(self.seed ^ 0x5a5a);
        let sample: Vec<usize> = match rows {
            0 => vec![],
            n if n <= most => (0..n).collect(),
            n => [0, n - 1].into_iter().chain((2..most).map(|_| rng.below(n))).collect(),
        };
        let groups: Vec<(Vec<f64>, Vec<f64>)> = (0..heads.groups()).map(|g| group_rows(heads, g, &s.rows)).collect();
        let (mut out, mut lse, mut want_out, mut want_lse) = (vec![], vec![], vec![], vec![]);
        let mut products = 0.0f64;
        for &row in &sample {
            let (m, h) = (row / heads.q_heads(), row % heads.q_heads());
            let (states, keys) = &groups[h / heads.heads_per_group()];
            let visible = kv_len - q_len + m + 1;
            // The tokens a mask lets through, one after the other, are what a causal row would see of a shorter cache.
            let mask = extra.trees.get(index).map_or(u64::MAX, |masks| masks[m]);
            let seen = |t: usize| t < kv_len - q_len || mask >> (t - (kv_len - q_len)) & 1 == 1;
            let end = if extra.trees.is_empty() { visible } else { kv_len };
            let tokens: Vec<usize> = (0..end).filter(|t| extra.trees.is_empty() || seen(*t)).collect();
            let q = wide(&s.q[row * heads.q_dim()..][..heads.q_dim()]);
            if s.halves {
                for &t in &tokens {
                    let key = states[t * heads.state_dim()..][..heads.nope_dim()].iter();
                    let key = key.chain(&keys[t * heads.rope_dim()..][..heads.rope_dim()]);
                    let sum: f64 = q.iter().zip(key).map(|(q, k)| (q * k).abs()).sum();
                    products = products.max(sum * f64::from(scale(heads)));
                }
            }
            let inputs = reference::DecodeInputs {
                q: &q,
                states: &gather(states, heads.state_dim(), &tokens),
                rope_keys: &gather(keys, heads.rope_dim(), &tokens),
                softmax_scale: f64::from(scale(heads)),
                causal: true,
            };
            let sinks: Vec<f64> = extra.sinks.get(h).map(|sink| f64::from(*sink)).into_iter().collect();
            let AttentionOptions { softcap, window, keep_first, .. } = extra.options;
            let softcap = softcap.map(f64::from);
            let options = reference::DecodeOptions { softcap, window, keep_first, sinks: &sinks };
            let want = reference::decode_with(&one_head(heads), &inputs, &options).unwrap();
            want_out.extend(want.out);
            want_lse.extend(want.lse);
            out.extend_from_slice(&s.out[row * heads.v_dim()..][..heads.v_dim()]);
            lse.push(s.lse[row]);
        }
        Sample { out, lse, want_out, want_lse, products }
    }
}

struct Sample {
    out: Vec<f32>,
    lse: Vec<f32>,
    want_out: Vec<f64>,
    want_lse: Vec<f64>,
    /// Largest sum |q k| that enters a score, scaled; only where factors are halves.
    products: f64,
}

/// How large a case's numbers are, where they are not of order 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Size {
    /// Error that rounding alone may bring into a score.
    pub score: f64,
    /// Root mean square error, relative to the values, that scores bring in which are rests of sums that cancel. 0 for
    /// scores without cancellation: their rounding is far below the stated NMSE.
    pub cancelled: f64,
    /// Largest value; errors of the output are relative to it. 0: to the output itself.
    pub value: f64,
}

/// As a cache of this dtype holds a value of [`Rng::value`]'s grid, which f16 and f32 hold exactly.
pub fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => half::bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

fn gather(rows: &[f64], width: usize, tokens: &[usize]) -> Vec<f64> {
    tokens.iter().flat_map(|t| &rows[t * width..(t + 1) * width]).copied().collect()
}

/// States of one group (kv_len, state_dim) and the rope keys (kv_len, rope_dim).
fn group_rows(heads: &HeadLayout, group: usize, rows: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (mut states, mut keys) = (Vec::new(), Vec::new());
    for row in rows.chunks_exact(heads.kv_dim()) {
        let (state, key) = row.split_at(heads.groups() * heads.state_dim());
        states.extend(wide(&state[group * heads.state_dim()..][..heads.state_dim()]));
        keys.extend(wide(key));
    }
    (states, keys)
}

/// The layout with one query head.
fn one_head(heads: &HeadLayout) -> HeadLayout {
    let (dim, rope_dim) = (heads.state_dim(), heads.rope_dim());
    if heads.v_offset() > 0 {
        HeadLayout::mha(1, heads.nope_dim()).unwrap()
    } else if heads.nope_dim() < dim {
        HeadLayout::gta(Gta { q_heads: 1, kv_heads: 1, head_dim: dim, rope_dim }).unwrap()
    } else {
        HeadLayout::gla(Gla { q_heads: 1, latent_heads: 1, latent_dim: dim, rope_dim }).unwrap()
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Errors {
    pub nmse: f64,
    pub out: f64,
    pub lse: f64,
}

impl Errors {
    pub fn worst(self, e: Errors) -> Errors {
        Errors { nmse: self.nmse.max(e.nmse), out: self.out.max(e.out), lse: self.lse.max(e.lse) }
    }
}

/// The comparison finds a wrong row: a test of the tests.
#[test]
fn a_wrong_result_is_found() {
    let heads = crate::common::small();
    let lengths = vec![(9, 2)];
    let case = Case { heads, dtype: DType::F32, page_size: 4, lengths, policy: SplitPolicy::Off, seed: 3 };
    let mut result = case.run_poisoned(gpu(), 0).remove(0);
    case.compare(0, &result, Size::default());
    for break_it in [
        |s: &mut Sequence| s.out[17] += 3e-5,
        |s: &mut Sequence| s.lse[1] += 2e-5,
        |s: &mut Sequence| s.out[0] = f32::NAN,
        |s: &mut Sequence| s.lse[0] = f32::NEG_INFINITY,
    ] {
        let kept = result.clone();
        break_it(&mut result);
        let found = std::panic::catch_unwind(|| case.compare(0, &result, Size::default()));
        assert!(found.is_err(), "not found");
        result = kept;
    }
}
