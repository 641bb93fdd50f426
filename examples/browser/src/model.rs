//! `Model`: weights, a cache and text.

use crate::cache;
use crate::device::{device_of, Device};
use crate::error::{argument, busy, Result, Thrown};
use crate::layout::CACHE_DTYPES;
use crate::options::{object, Options};
use fetch::Weights;
use generate::{generate, Generate};
use js_sys::{Float32Array, Function, Promise, Uint32Array, Uint8Array};
use latten::cache::Progress;
use latten::model::{Config, LoadOptions, Session, SessionOptions};
use latten::{CacheStats, DType, ErrorKind, GpuOptions};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

#[path = "fetch.rs"]
mod fetch;
#[path = "generate.rs"]
mod generate;

/// A model with a KV cache, on a device.
#[wasm_bindgen]
pub struct Model {
    inner: Rc<Inner>,
}

struct Inner {
    device: Device,
    /// Made for this model, so that it goes with it.
    owns_device: bool,
    /// Away while a call uses it.
    session: RefCell<Option<Session>>,
    /// As of the last token.
    stats: Cell<CacheStats>,
    info: JsValue,
    /// What `stats` needs besides.
    stats_object: Box<dyn Fn(&CacheStats) -> JsValue>,
    config: Config,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.session.take();
        if self.owns_device {
            self.device.destroy();
        }
    }
}

/// The session, until it is dropped.
struct Taken {
    inner: Rc<Inner>,
    session: Option<Session>,
}

impl Taken {
    fn from(inner: &Rc<Inner>) -> Result<Self> {
        let session = inner.session.take();
        match session.is_some() {
            true => Ok(Taken { inner: inner.clone(), session }),
            false => Err(busy("the model")),
        }
    }

    fn session(&mut self) -> Result<&mut Session> {
        self.session.as_mut().ok_or_else(|| busy("the model"))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            self.inner.stats.set(session.stats());
        }
        self.inner.session.replace(self.session.take());
    }
}

/// Of `Model.load`.
struct Load {
    device: Option<Device>,
    weights: DType,
    session: SessionOptions,
    cache_tokens: Option<usize>,
    warm_up: bool,
    on_progress: Option<Function>,
}

const LOAD: [&str; 8] = ["device", "weights", "kvDType", "cacheTokens", "pageSize", "chunk", "warmUp", "onProgress"];
const WEIGHTS: [(&str, DType); 3] = [("f32", DType::F32), ("f16", DType::F16), ("i8", DType::I8)];
/// Tokens of a cache that nobody gave a size.
const CACHE_TOKENS: usize = 4096;

impl Load {
    fn new(value: &JsValue) -> Result<Self> {
        let o = Options::new("options", value, &LOAD)?;
        let default = SessionOptions::default();
        let size = |key, default| Ok::<_, Thrown>(o.size(key, 1..=1 << 30)?.unwrap_or(default));
        Ok(Load {
            device: match o.get("device") {
                Some(value) => Some(device_of(&value).ok_or_else(|| o.bad("device", "is no Device"))?),
                None => None,
            },
            weights: o.word("weights", &WEIGHTS)?.unwrap_or(DType::F16),
            session: SessionOptions {
                kv_dtype: o.word("kvDType", &CACHE_DTYPES)?.unwrap_or(DType::F16),
                page_size: size("pageSize", default.page_size)?,
                chunk: size("chunk", default.chunk)?,
                ..default
            },
            cache_tokens: o.size("cacheTokens", 1..=1 << 30)?,
            warm_up: o.flag("warmUp")?.unwrap_or(false),
            on_progress: match o.get("onProgress") {
                Some(value) => Some(value.dyn_into().map_err(|_| o.bad("onProgress", "is no function"))?),
                None => None,
            },
        })
    }

    fn session_on(&self, device: &Device, config: Config, name: &str, weights: &Weights) -> Result<Session> {
        let cache_tokens = self.cache_tokens.unwrap_or(config.max_positions.min(CACHE_TOKENS));
        let thrown = RefCell::new(None);
        let progress = |progress| {
            if let Some(Err(error)) =
                self.on_progress.as_ref().map(|told| told.call1(&JsValue::UNDEFINED, &step(progress)))
            {
                thrown.borrow_mut().get_or_insert(error);
            }
        };
        let options = LoadOptions { progress: Some(&progress), ..LoadOptions::of(self.weights) };
        let decoder = weights.decoder(&device.gpu, config, name, options)?;
        match thrown.take() {
            Some(error) => Err(error.into()),
            None => Ok(Session::new(&decoder, SessionOptions { cache_tokens, ..self.session })?),
        }
    }
}

/// `LoadProgress`
fn step(progress: Progress) -> JsValue {
    object([("bytes", (progress.bytes as f64).into()), ("totalBytes", (progress.total_bytes as f64).into())])
}

impl Model {
    async fn open(source: JsValue, options: JsValue) -> Result<Model> {
        let load = Load::new(&options)?;
        let (name, config, weights) = fetch::model(&source).await?;
        let config = Config::parse(&format!("{name}config.json"), &config)?;
        let (device, owns_device) = match &load.device {
            Some(device) => (device.clone(), false),
            None => (Device::open(GpuOptions::default()).await?, true),
        };
        let made = load.session_on(&device, config, &format!("{name}model.safetensors"), &weights);
        let mut session = match made {
            Ok(session) => session,
            Err(error) => {
                if owns_device {
                    device.destroy();
                }
                return Err(error);
            }
        };
        if load.warm_up {
            session.warm_up().await?;
        }
        let config = session.decoder().config().clone();
        let cache = session.cache();
        let stats = session.stats();
        let (pages, token_bytes, pool_bytes) = (cache.pages(), cache.token_bytes(), cache.pool_bytes());
        let inner = Inner {
            device,
            owns_device,
            info: info(&config, cache.heads().kv_dim() * config.layers, token_bytes),
            stats: Cell::new(stats),
            stats_object: Box::new(move |stats| cache::stats(stats, pages.size, token_bytes, pool_bytes)),
            session: RefCell::new(Some(session)),
            config,
        };
        Ok(Model { inner: Rc::new(inner) })
    }

    /// Token ids of a prompt.
    fn tokens(&self, prompt: &JsValue) -> Result<Vec<u32>> {
        if let Some(text) = prompt.as_string() {
            if self.inner.config.vocab_size != 256 {
                let vocab = self.inner.config.vocab_size;
                return Err(argument(
                    "prompt",
                    format!("is text, but tokens of a model with {vocab} are no bytes: give ids"),
                ));
            }
            return Ok(text.bytes().map(u32::from).collect());
        }
        match prompt.dyn_ref::<Uint32Array>() {
            Some(ids) => Ok(ids.to_vec()),
            None => Err(argument("prompt", "is neither text nor an Uint32Array")),
        }
    }
}

fn info(config: &Config, kv_elements: usize, kv_bytes: usize) -> JsValue {
    let size = |n: usize| JsValue::from_f64(n as f64);
    object([
        ("variant", config.variant().into()),
        ("layers", size(config.layers)),
        ("hiddenSize", size(config.hidden_size)),
        ("qHeads", size(config.q_heads)),
        ("vocabSize", size(config.vocab_size)),
        ("maxPositions", size(config.max_positions)),
        ("kvElementsPerToken", size(kv_elements)),
        ("kvBytesPerToken", size(kv_bytes)),
    ])
}

async fn logits(inner: Rc<Inner>, tokens: Vec<u32>) -> Result<JsValue> {
    let mut taken = Taken::from(&inner)?;
    let session = taken.session()?;
    let sequence = session.insert();
    let logits = session.all_logits(&[(sequence, &tokens)]).await;
    session.remove(sequence)?;
    let logits = logits?.pop().unwrap_or_default();
    Ok(Float32Array::from(&logits[..]).into())
}

#[wasm_bindgen]
impl Model {
    /// Loads a model: `source` is the address of a folder with `config.json` and `model.safetensors`, or their bytes.
    #[wasm_bindgen(unchecked_return_type = "Promise<Model>")]
    pub fn load(
        #[wasm_bindgen(unchecked_param_type = "string | URL | ModelBytes")] source: JsValue,
        #[wasm_bindgen(unchecked_optional_param_type = "LoadOptions")] options: JsValue,
    ) -> Promise {
        future_to_promise(async move { Ok(Model::open(source, options).await?.into()) })
    }

    /// Continues a prompt, text or token ids, in a sequence of its own, which is gone at the end. Rejects with kind `Busy`
    /// while another call is under way, `Argument`, `CacheFull`, `DeviceLost`.
    #[wasm_bindgen(unchecked_return_type = "Promise<Generated>")]
    pub fn generate(
        &self,
        #[wasm_bindgen(unchecked_param_type = "string | Uint32Array")] prompt: JsValue,
        #[wasm_bindgen(unchecked_optional_param_type = "GenerateOptions")] options: JsValue,
        #[wasm_bindgen(unchecked_optional_param_type = "OnToken", js_name = onToken)] on_token: Option<Function>,
    ) -> Promise {
        let (inner, tokens, options) = (self.inner.clone(), self.tokens(&prompt), Generate::new(&options));
        future_to_promise(async move { Ok(generate(inner, tokens?, options?, on_token).await?) })
    }

    /// The logits after each token, (tokens, vocabSize), in a sequence of its own.
    #[wasm_bindgen(unchecked_return_type = "Promise<Float32Array>")]
    pub fn logits(&self, #[wasm_bindgen(unchecked_param_type = "ArrayLike<number>")] tokens: &[u32]) -> Promise {
        let (inner, tokens) = (self.inner.clone(), tokens.to_vec());
        future_to_promise(async move { Ok(logits(inner, tokens).await?) })
    }

    /// How full the cache is; while a text is made, as of its last token.
    #[wasm_bindgen(unchecked_return_type = "KvCacheStats")]
    pub fn stats(&self) -> JsValue {
        (self.inner.stats_object)(&self.inner.stats.get())
    }

    /// The model's numbers.
    #[wasm_bindgen(getter, unchecked_return_type = "ModelInfo")]
    pub fn info(&self) -> JsValue {
        self.inner.info.clone()
    }

    /// Its device.
    #[wasm_bindgen(getter)]
    pub fn device(&self) -> Device {
        self.inner.device.clone()
    }
}
