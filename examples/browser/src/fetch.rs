//! A model's two files, from an address, from memory, or read by ranges.

use super::*;
use js_sys::{ArrayBuffer, Reflect};
use latten::model::{Decoder, ReadAt, WeightBytes};
use latten::Gpu;
use wasm_bindgen_futures::JsFuture;

thread_local! {
    /// The `ByteSource` of the load under way: a load waits for nothing, so there is one at a time.
    static SOURCE: RefCell<Option<JsValue>> = const { RefCell::new(None) };
}

/// model.safetensors
pub(super) enum Weights {
    Bytes(Vec<u8>),
    /// A `ByteSource`, and its bytes in all.
    Source(JsValue, u64),
}

impl Weights {
    pub(super) fn decoder(&self, gpu: &Gpu, config: Config, name: &str, options: LoadOptions<'_>) -> Result<Decoder> {
        match self {
            Weights::Bytes(bytes) => Ok(Decoder::from_bytes_with(gpu, config, WeightBytes { name, bytes }, options)?),
            Weights::Source(source, bytes) => {
                SOURCE.set(Some(source.clone()));
                let made = Decoder::from_source_with(gpu, config, (name, &Ranges(*bytes)), options);
                SOURCE.take();
                Ok(made?)
            }
        }
    }
}

/// What [`SOURCE`] reads, which is of this thread as all values of JavaScript are.
struct Ranges(u64);

impl ReadAt for Ranges {
    fn total_bytes(&self) -> u64 {
        self.0
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let source = SOURCE.with_borrow(Clone::clone).unwrap_or_default();
        let read = || -> std::result::Result<Uint8Array, JsValue> {
            let read: Function = Reflect::get(&source, &"read".into())?.dyn_into()?;
            read.call2(&source, &(offset as f64).into(), &(buffer.len() as f64).into())?.dyn_into()
        };
        let part = read().map_err(|error| std::io::Error::other(words(&error)))?;
        if part.length() as usize != buffer.len() {
            let (got, wanted) = (part.length(), buffer.len());
            return Err(std::io::Error::other(format!("{got} bytes were read at {offset}, {wanted} are wanted")));
        }
        part.copy_to(buffer);
        Ok(())
    }
}

/// What was thrown, in words.
fn words(value: &JsValue) -> String {
    match value.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => format!("{value:?}"),
    }
}

/// model.safetensors of `{config, weights}`.
fn given(o: &Options) -> Result<Weights> {
    let wrong = || o.bad("weights", "is neither an Uint8Array nor {size, read}");
    let value = o.get("weights").ok_or_else(wrong)?;
    if let Some(bytes) = value.dyn_ref::<Uint8Array>() {
        return Ok(Weights::Bytes(bytes.to_vec()));
    }
    let size = Reflect::get(&value, &"size".into()).ok().and_then(|size| size.as_f64());
    let size = size.filter(|size| size.fract() == 0.0 && (0.0..=9_007_199_254_740_991.0).contains(size));
    match (size, Reflect::get(&value, &"read".into()).is_ok_and(|read| read.is_function())) {
        (Some(size), true) => Ok(Weights::Source(value, size as u64)),
        _ => Err(wrong()),
    }
}

/// Where from, config.json, and model.safetensors.
pub(super) async fn model(source: &JsValue) -> Result<(String, String, Weights)> {
    if let Some(bytes) = source.dyn_ref::<js_sys::Object>().filter(|_| has(source, "weights")) {
        let o = Options::new("source", bytes, &["config", "weights"])?;
        let config = o.get("config").ok_or_else(|| o.bad("config", "is missing"))?;
        let config = match config.dyn_ref::<Uint8Array>() {
            Some(bytes) => text("config.json", &bytes.to_vec())?,
            None => config.as_string().ok_or_else(|| o.bad("config", "is neither text nor an Uint8Array"))?,
        };
        return Ok((String::new(), config, given(&o)?));
    }
    // A URL has its text in `href`.
    let href = Reflect::get(source, &"href".into()).ok().and_then(|href| href.as_string());
    let folder = source.as_string().or(href);
    let folder = folder.ok_or_else(|| argument("source", "is neither an address nor {config, weights}"))?;
    let folder = if folder.ends_with('/') { folder } else { folder + "/" };
    let config = get(&format!("{folder}config.json")).await?;
    let weights = get(&format!("{folder}model.safetensors")).await?;
    Ok((folder, text("config.json", &config)?, Weights::Bytes(weights)))
}

fn has(value: &JsValue, key: &str) -> bool {
    Reflect::has(value, &key.into()).unwrap_or(false)
}

fn text(name: &str, bytes: &[u8]) -> Result<String> {
    let message = |e: std::str::Utf8Error| ErrorKind::Config { path: name.into(), message: e.to_string() };
    Ok(std::str::from_utf8(bytes).map_err(message)?.to_string())
}

/// The bytes behind an address, in windows and workers.
async fn get(address: &str) -> Result<Vec<u8>> {
    let failed = |message: String| Thrown::from(ErrorKind::Io { path: address.into(), message });
    let words = |value: JsValue| failed(format!("{value:?}"));
    let fetch: Function = Reflect::get(&js_sys::global(), &"fetch".into())?.dyn_into()?;
    let answer: Promise = fetch.call1(&JsValue::UNDEFINED, &address.into())?.dyn_into()?;
    let answer = JsFuture::from(answer).await.map_err(words)?;
    let status = Reflect::get(&answer, &"status".into())?.as_f64().unwrap_or(0.0);
    if status != 200.0 {
        return Err(failed(format!("the server answers with status {status}")));
    }
    let read: Function = Reflect::get(&answer, &"arrayBuffer".into())?.dyn_into()?;
    let bytes: Promise = read.call0(&answer)?.dyn_into()?;
    let bytes: ArrayBuffer = JsFuture::from(bytes).await.map_err(words)?.dyn_into()?;
    Ok(Uint8Array::new(&bytes).to_vec())
}
