//! Whether a device's kernels agree with the host: a small decode against the f64 reference, and small products, run before
//! the matrix kernels of a device are used, since they rest on what wgpu calls experimental.
//!
//! One batch with a sequence for each height of tiles, whole and split. In one tile, row by row: scores that rise slowly, so
//! that sums are rescaled and what they held still counts; that rise or fall steeply; and that lie 256 above or below zero,
//! where exponentials overflow or vanish unless the maximum is taken off.
//!
//! The bounds are those of rounding to f16. Queries, cache rows and the scale are such that their own rounding is exact, so
//! that a weight w, rounded to w (1 + d) with |d| <= 2^-11, is all that is left, beside the order of f32 sums:
//!
//!   out = sum w v / sum w    is off by at most 2 * 2^-11 * max |v|,    LSE by 2^-11,
//!   a score by q_dim * 2^-23 * sum |q k|    (any order; sums that truncate, as matrix units may)
//!
//! The d of different tokens differ, so the mean square error is near 2^-24, 6e-8 of the output's; 1e-5 is allowed. A fault
//! in addressing, masking or rescaling is off by 1e-3 and more (the tests of this file).
//!
//! The products of linears, one with each tile, are of numbers that f16 holds and whose sums f32 holds: exact but for matrix
//! units that truncate while they add.

use crate::attention::kernels::select::{Device, KernelShape};
use crate::attention::{Decode, DecodeArgs, SplitPolicy};
use crate::cache::{CacheOptions, PagedKvCache, Pages, SeqId};
use crate::error::Result;
use crate::gpu::{DType, Gpu, Tensor, Tier};
use crate::kv::{Gla, HeadLayout, KvSource};
use crate::nn::{Linear, MatrixTile, Weight};
use crate::reference;

/// Query heads of a group: 1, 2 and 4 query tokens are the tiles of 16, 32 and 64 rows.
const PER_GROUP: usize = 16;
/// (cached tokens with the new ones, new tokens)
const LENGTHS: [(usize, usize); 5] = [(1, 1), (17, 1), (100, 1), (100, 2), (37, 4)];
const POLICIES: [SplitPolicy; 2] = [SplitPolicy::Off, SplitPolicy::FixedTokens(32)];
const PAGE_SIZE: usize = 8;
/// Largest mean square error, of the output's mean square.
const NMSE: f64 = 1e-5;
/// Largest value in the cache but for the rope key.
const LARGEST: f64 = 2.0;
/// Scores are in units of ln 2, and a query's element counts a sixteenth: their product with log2(e) is a power of two.
const SCALE: f32 = std::f32::consts::LN_2 / 16.0;

/// The layout of the test.
fn layout() -> Result<HeadLayout> {
    HeadLayout::gla(Gla { q_heads: 2 * PER_GROUP, latent_heads: 2, latent_dim: 128, rope_dim: 64 })
}

/// Runs the test on the kernels of the device's tier. What is wrong, in words with numbers; none if nothing is.
///
/// Errors: those of compiling and of the device.
pub(crate) async fn run(gpu: &Gpu) -> Result<Option<String>> {
    let heads = layout()?;
    let shapes = KernelShape::all(&heads, DType::F16, &Device::of(gpu.capabilities()))?;
    let matrices = shapes.iter().any(|shape| matches!(shape, KernelShape::Matrix(_)));
    if gpu.capabilities().tier >= Tier::Matrix && !matrices {
        let bytes = gpu.capabilities().workgroup_storage_bytes;
        return Ok(Some(format!("none fits {bytes} bytes of workgroup memory")));
    }
    let fits = |tile: &MatrixTile| tile.workgroup_bytes() <= gpu.capabilities().workgroup_storage_bytes as usize;
    let tiles: Vec<Option<MatrixTile>> = match gpu.capabilities().tier {
        Tier::Matrix => MatrixTile::TABLE.into_iter().filter(fits).map(Some).collect(),
        _ => vec![None],
    };
    let products = tiles.iter().map(|tile| product(gpu, *tile)).collect::<Result<Vec<Linear>>>()?;
    // Held, so that whoever makes the same finds it compiled.
    let _decode = gpu.together(|| {
        products.iter().try_for_each(|product| product.prepare(PRODUCT[0]))?;
        Decode::new(gpu, heads, DType::F16)
    })?;
    if let Some(fault) = run_layout(gpu, heads).await? {
        return Ok(Some(fault));
    }
    for (product, tile) in products.iter().zip(tiles) {
        if let Some(fault) = product_fault(&multiply(gpu, product).await?) {
            return Ok(Some(format!("a product of {PRODUCT:?} rows, outputs and inputs by {tile:?}: {fault}")));
        }
    }
    Ok(None)
}

/// Rows, outputs and inputs of the product: no multiples of a tile's.
const PRODUCT: [usize; 3] = [150, 136, 104];
/// Units of 1/16 in the inputs: -32 to 32.
fn input(i: usize) -> f32 {
    (((i as u64).wrapping_mul(2_654_435_761) >> 7) % 65) as f32 / 16.0 - 2.0
}

fn product(gpu: &Gpu, tile: Option<MatrixTile>) -> Result<Linear> {
    let [rows, outs, ins] = PRODUCT;
    let weights: Vec<f32> = (0..outs * ins).map(|i| input(i + rows * ins)).collect();
    let linear = Linear::new(gpu, &Weight::new(gpu, [1, outs, ins], &weights, DType::F16)?, None)?;
    tile.map_or(Ok(linear.clone()), |tile| linear.with_matrix_tile(tile))
}

async fn multiply(gpu: &Gpu, product: &Linear) -> Result<Vec<f32>> {
    let [rows, _, ins] = PRODUCT;
    let x: Vec<f32> = (0..rows * ins).map(input).collect();
    let x = Tensor::from_slice(gpu, &[rows, ins], &x, DType::F32)?;
    gpu.download(&product.forward(&x)?).await
}

/// What is wrong with a product, in words; none if nothing is.
fn product_fault(got: &[f32]) -> Option<String> {
    let [rows, outs, ins] = PRODUCT;
    if got.len() != rows * outs {
        return Some(format!("{} results", got.len()));
    }
    got.iter().enumerate().find_map(|(i, got)| {
        let (row, out) = (i / outs, i % outs);
        let products = (0..ins).map(|k| f64::from(input(row * ins + k) * input((rows + out) * ins + k)));
        let (want, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
        // Truncation of each addition, of up to all inputs one by one.
        let bound = size * ins as f64 * 2f64.powi(-23);
        let right = (f64::from(*got) - want).abs() <= bound; // what is no number is not
        (!right).then(|| format!("row {row}, output {out} is {got}, not {want} within {bound:.1e}"))
    })
}

async fn run_layout(gpu: &Gpu, heads: HeadLayout) -> Result<Option<String>> {
    let sequences: Vec<SequenceInputs> =
        (0..).zip(LENGTHS).map(|(i, (kv_len, q_len))| SequenceInputs::new(&heads, kv_len, q_len, i)).collect();
    let want = sequences.iter().map(|s| s.expected(&heads)).collect::<Result<Vec<_>>>()?.concat();
    for policy in POLICIES {
        let got = decode(gpu, heads, &sequences, policy).await?;
        if let Some(fault) = Errors::of(&got, &want).fault() {
            return Ok(Some(format!("{policy:?}: {fault}")));
        }
    }
    Ok(None)
}

/// Inputs of one sequence.
struct SequenceInputs {
    kv_len: usize,
    q_len: usize,
    /// (kv_len, kv_dim)
    rows: Vec<f32>,
    /// (q_len, q_heads, q_dim)
    q: Vec<f32>,
}

/// A result of one query token and head, and, of an expected one, what a kernel's may be off by.
#[derive(Clone)]
struct Row<T> {
    out: Vec<T>,
    lse: T,
    out_bound: f64,
    lse_bound: f64,
}

impl SequenceInputs {
    fn new(heads: &HeadLayout, kv_len: usize, q_len: usize, seed: u64) -> Self {
        let mut state = seed;
        // Multiples of 1 / steps from -2 to 2.
        let mut draw = move |steps: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) % (4 * steps + 1)) as f32 / steps as f32 - LARGEST as f32
        };
        let mut rows: Vec<f32> = (0..kv_len * heads.kv_dim()).map(|_| draw(64)).collect();
        for (t, row) in rows.chunks_exact_mut(heads.kv_dim()).enumerate() {
            // Two elements of the rope key, which is no value: the token's number, and one.
            let rope = heads.kv_dim() - heads.rope_dim();
            (row[rope], row[rope + 1]) = (t as f32, 1.0);
        }
        let mut q: Vec<f32> = (0..q_len * heads.q_heads() * heads.q_dim()).map(|_| draw(16)).collect();
        for (h, q) in q.chunks_exact_mut(heads.q_dim()).enumerate() {
            // What they add to a score, in units of ln 2: per token, and to all.
            let (slope, offset) = ([0.5, 4.0, 0.0, -0.5][h % 4], [0.0, 256.0, -256.0][h % 3]);
            (q[heads.nope_dim()], q[heads.nope_dim() + 1]) = (16.0 * slope, 16.0 * offset);
        }
        Self { kv_len, q_len, rows, q }
    }

    /// By the reference, row by row.
    fn expected(&self, heads: &HeadLayout) -> Result<Vec<Row<f64>>> {
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let (mut states, mut rope_keys) = (Vec::new(), Vec::new());
        for row in self.rows.chunks_exact(heads.kv_dim()) {
            let (state, key) = row.split_at(heads.groups() * heads.state_dim());
            states.extend(wide(state));
            rope_keys.extend(wide(key));
        }
        let q = wide(&self.q);
        let softmax_scale = f64::from(SCALE);
        let inputs =
            reference::DecodeInputs { q: &q, states: &states, rope_keys: &rope_keys, softmax_scale, causal: true };
        let attended = reference::decode(heads, &inputs)?;
        let outs = attended.out.chunks_exact(heads.v_dim()).zip(&attended.lse);
        let rows = outs.zip(q.chunks_exact(heads.q_dim())).enumerate().map(|(row, ((out, lse), q))| {
            let group = row % heads.q_heads() / heads.heads_per_group();
            let products = (0..self.kv_len).map(|t| {
                let state = &states[(t * heads.groups() + group) * heads.state_dim()..][..heads.nope_dim()];
                let key = state.iter().chain(&rope_keys[t * heads.rope_dim()..][..heads.rope_dim()]);
                q.iter().zip(key).map(|(q, k)| (q * k).abs()).sum::<f64>() * softmax_scale
            });
            let score = heads.q_dim() as f64 * 2f64.powi(-23) * products.fold(0.0, f64::max);
            let weight = 2f64.powi(-11);
            Row { out: out.to_vec(), lse: *lse, out_bound: 2.0 * (weight + score) * LARGEST, lse_bound: weight + score }
        });
        Ok(rows.collect())
    }
}

/// The batch on the device, through cache, append and plan as any other.
async fn decode(
    gpu: &Gpu,
    heads: HeadLayout,
    sequences: &[SequenceInputs],
    policy: SplitPolicy,
) -> Result<Vec<Row<f32>>> {
    let count = sequences.iter().map(|s| s.kv_len.div_ceil(PAGE_SIZE)).sum();
    let mut cache =
        PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F16, Pages { count, size: PAGE_SIZE, layers: 1 }))?;
    let ids: Vec<SeqId> = sequences.iter().map(|_| cache.insert()).collect();
    for (id, s) in ids.iter().zip(sequences) {
        cache.reserve(&[*id], s.kv_len)?;
    }
    let rows: Vec<f32> = sequences.iter().flat_map(|s| &s.rows).copied().collect();
    cache.append(
        0,
        &ids,
        &Tensor::from_slice(gpu, &[rows.len() / heads.kv_dim(), heads.kv_dim()], &rows, DType::F32)?,
    )?;
    for (id, s) in ids.iter().zip(sequences) {
        cache.commit(&[*id], s.kv_len - s.q_len)?;
        cache.reserve(&[*id], s.q_len)?;
    }
    let q: Vec<f32> = sequences.iter().flat_map(|s| &s.q).copied().collect();
    let tokens = cache.batch(&ids)?.tokens();
    let q = Tensor::from_slice(gpu, &[tokens, heads.q_heads(), heads.q_dim()], &q, DType::F32)?;
    let decode = Decode::new(gpu, heads, DType::F16)?.with_policy(policy);
    let plan = decode.plan(&cache, &ids)?;
    let result = decode.run(DecodeArgs::new(&plan, &cache.layer(0)?, &q, SCALE))?;
    let (out, lse) = (gpu.download(&result.out).await?, gpu.download(&result.lse).await?);
    let rows = out.chunks_exact(heads.v_dim()).zip(lse);
    Ok(rows.map(|(out, lse)| Row { out: out.to_vec(), lse, out_bound: 0.0, lse_bound: 0.0 }).collect())
}

/// How far results are from the expected ones.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Errors {
    /// Mean square error of the output, of its mean square; infinite where a result is no number.
    nmse: f64,
    /// The largest errors against what is allowed there: error, allowed.
    out: (f64, f64),
    lse: (f64, f64),
}

impl Errors {
    fn of(got: &[Row<f32>], want: &[Row<f64>]) -> Self {
        let (mut square, mut norm) = (0.0, 0.0);
        let (mut worst_out, mut worst_lse) = ((0.0, 1.0), (0.0, 1.0));
        let worse = |worst: &mut (f64, f64), got: f32, want: f64, bound: f64| {
            // What is no number is infinitely wrong, or it would pass every comparison.
            let error = if got.is_finite() { (f64::from(got) - want).abs() } else { f64::INFINITY };
            if error * worst.1 > worst.0 * bound {
                *worst = (error, bound);
            }
            error
        };
        for (got, want) in got.iter().zip(want) {
            worse(&mut worst_lse, got.lse, want.lse, want.lse_bound);
            for (got, want_out) in got.out.iter().zip(&want.out) {
                square += worse(&mut worst_out, *got, *want_out, want.out_bound).powi(2);
                norm += want_out * want_out;
            }
        }
        let nmse = if got.len() == want.len() { square / norm } else { f64::INFINITY };
        Self { nmse, out: worst_out, lse: worst_lse }
    }

    /// None where they are within the bounds.
    fn fault(&self) -> Option<String> {
        let Self { nmse, out, lse } = *self;
        if nmse <= NMSE && out.0 <= out.1 && lse.0 <= lse.1 {
            return None;
        }
        Some(format!(
            "NMSE {nmse:.1e} (at most {NMSE:.0e}), an output off by {:.1e} (at most {:.1e}), an LSE by {:.1e} (at most {:.1e})",
            out.0, out.1, lse.0, lse.1
        ))
    }
}

#[cfg(test)]
#[path = "self_test_tests.rs"]
mod tests;
