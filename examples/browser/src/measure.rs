//! `Device.measure`: a line of a kernel table, checked and timed.

use crate::device::Device;
use crate::error::{argument, Result};
use crate::layout::{dtype, layout};
use crate::options::{object, Options};
use js_sys::{Date, Promise};
use latten::reference;
use latten::reference::DecodeInputs;
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, DecodeOutput, Gpu, HeadLayout, PagedKvCache, Pages, SeqId, Tensor,
};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

const PAGE_SIZE: usize = 64;
/// Tokens that one append writes.
const TOKENS_AT_ONCE: usize = 1024;

/// Numbers that every float dtype holds: multiples of 1/64 from -1 to 1, not alike for any two tokens near each other.
fn value(i: usize) -> f32 {
    let mixed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (mixed % 129) as f32 / 64.0 - 1.0
}

struct Case {
    heads: HeadLayout,
    tokens: usize,
    sequences: usize,
    scale: f32,
}

impl Case {
    /// A full cache: each sequence has its last token reserved.
    fn cache(&self, gpu: &Gpu, dtype: DType) -> Result<(PagedKvCache, Vec<SeqId>)> {
        let (width, count) = (self.heads.kv_dim(), self.sequences * self.tokens.div_ceil(PAGE_SIZE));
        let mut cache =
            PagedKvCache::new(gpu, self.heads, CacheOptions::new(dtype, Pages { count, size: PAGE_SIZE, layers: 1 }))?;
        let ids: Vec<SeqId> = (0..self.sequences).map(|_| cache.insert()).collect();
        for (sequence, id) in ids.iter().enumerate() {
            let mut first = 0;
            while first < self.tokens {
                let last = first + 1 == self.tokens;
                let now = if last { 1 } else { TOKENS_AT_ONCE.min(self.tokens - 1 - first) };
                cache.reserve(&[*id], now)?;
                let start = (sequence * self.tokens + first) * width;
                let rows: Vec<f32> = (start..start + now * width).map(value).collect();
                cache.append(0, &[*id], &Tensor::from_slice(gpu, &[now, width], &rows, DType::F32)?)?;
                if !last {
                    cache.commit(&[*id], now)?;
                }
                first += now;
            }
        }
        Ok((cache, ids))
    }

    /// Element of the queries, which are no multiples of those in the cache.
    fn query(&self, i: usize) -> f32 {
        value(i + 7_777_777)
    }

    /// Largest error of the first and the last head of the last sequence.
    async fn check(&self, gpu: &Gpu, output: &DecodeOutput) -> Result<f64> {
        let (h, out) = (&self.heads, gpu.download::<f32>(&output.out).await?);
        let (states_dim, sequence) = (h.groups() * h.state_dim(), self.sequences - 1);
        let (mut states, mut rope_keys) = (Vec::new(), Vec::new());
        for t in 0..self.tokens {
            let row = (sequence * self.tokens + t) * h.kv_dim();
            states.extend((row..row + states_dim).map(|i| f64::from(value(i))));
            rope_keys.extend((row + states_dim..row + h.kv_dim()).map(|i| f64::from(value(i))));
        }
        let first = sequence * h.q_heads() * h.q_dim();
        let q: Vec<f64> = (first..first + h.q_heads() * h.q_dim()).map(|i| f64::from(self.query(i))).collect();
        let softmax_scale = f64::from(self.scale);
        let inputs = DecodeInputs { q: &q, states: &states, rope_keys: &rope_keys, softmax_scale, causal: true };
        let want = reference::decode(h, &inputs)?.out;
        let got = &out[sequence * h.q_heads() * h.v_dim()..];
        let errors = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs());
        Ok(errors.fold(0.0, |worst: f64, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) }))
    }

    /// Bytes that one decode must move.
    fn bytes(&self, token_bytes: usize) -> f64 {
        let h = &self.heads;
        let io = 4 * self.sequences * h.q_heads() * (h.q_dim() + h.v_dim() + 1);
        (self.sequences * self.tokens * token_bytes + io) as f64
    }
}

async fn measure(gpu: &Gpu, case: Case, dtype: DType, milliseconds: f64) -> Result<JsValue> {
    let (cache, ids) = case.cache(gpu, dtype)?;
    let h = &case.heads;
    let decode = Decode::new(gpu, *h, dtype)?;
    let q: Vec<f32> = (0..case.sequences * h.q_heads() * h.q_dim()).map(|i| case.query(i)).collect();
    let q = Tensor::from_slice(gpu, &[case.sequences, h.q_heads(), h.q_dim()], &q, DType::F32)?;
    let plan = decode.plan(&cache, &ids)?;
    let layer = cache.layer(0)?;
    let output = decode.run(DecodeArgs::new(&plan, &layer, &q, case.scale))?;
    let error = case.check(gpu, &output).await?;
    // Wall clock over as many decodes as fill the time: browsers round timestamps. One result read at the end is the wait.
    let (mut count, mut elapsed) = (1, 0.0);
    while elapsed < milliseconds && count < 1 << 16 {
        count = (count as f64 * (1.5 * milliseconds / f64::max(elapsed, 1.0)).clamp(2.0, 16.0)) as usize;
        let start = Date::now();
        for _ in 0..count {
            drop(decode.run(DecodeArgs::new(&plan, &layer, &q, case.scale))?);
        }
        gpu.download::<f32>(&output.lse).await?;
        elapsed = Date::now() - start;
    }
    let (us, token_bytes) = (1e3 * elapsed / count as f64, cache.token_bytes());
    Ok(object([
        ("microseconds", us.into()),
        ("gbPerSecond", (case.bytes(token_bytes) / us / 1e3).into()),
        ("bytesPerToken", (token_bytes as f64).into()),
        ("maxError", error.into()),
    ]))
}

#[wasm_bindgen]
impl Device {
    /// Times the decode kernels of a layout over a full cache, after their result was compared with the f64 reference.
    #[wasm_bindgen(unchecked_return_type = "Promise<Measured>")]
    pub fn measure(
        &self,
        #[wasm_bindgen(unchecked_param_type = "Heads")] heads: JsValue,
        #[wasm_bindgen(unchecked_param_type = "CacheDType | undefined")] elements: JsValue,
        #[wasm_bindgen(unchecked_param_type = "MeasureOptions")] options: JsValue,
    ) -> Promise {
        let gpu = self.gpu.clone();
        future_to_promise(async move {
            let o = Options::new("options", &options, &["tokens", "sequences", "milliseconds"])?;
            let (heads, dtype) = (layout(&heads)?, dtype(&elements)?);
            if matches!(dtype, DType::I8 | DType::I4) {
                return Err(argument("dtype", format!("{dtype}: there is no reference of rounded rows here")).into());
            }
            let case = Case {
                tokens: o.size("tokens", 1..=1 << 20)?.ok_or_else(|| o.bad("tokens", "is missing"))?,
                sequences: o.size("sequences", 1..=1 << 12)?.unwrap_or(1),
                scale: (heads.q_dim() as f32).powf(-0.5),
                heads,
            };
            let milliseconds = o.number("milliseconds", 1.0..=60_000.0)?.unwrap_or(300.0);
            Ok(measure(&gpu, case, dtype, milliseconds).await?)
        })
    }

    /// Gigabytes per second of a streaming read, the most that a decode could reach. Rejects with kind `Unsupported` where the
    /// browser has no timestamps.
    #[wasm_bindgen(js_name = streamingRead, unchecked_return_type = "Promise<number>")]
    pub fn streaming_read(&self) -> Promise {
        let gpu = self.gpu.clone();
        future_to_promise(async move {
            let found = gpu.measure_parallelism().await.map_err(crate::error::Thrown::from)?;
            Ok(found.samples.iter().map(|(_, gbps)| *gbps).fold(0.0, f64::max).into())
        })
    }
}
