//! A model's two files, from an address or from memory.

use super::*;
use js_sys::{ArrayBuffer, Reflect};
use wasm_bindgen_futures::JsFuture;

/// Where from, config.json, and the bytes of model.safetensors.
pub(super) async fn model(source: &JsValue) -> Result<(String, String, Vec<u8>)> {
    if let Some(bytes) = source.dyn_ref::<js_sys::Object>().filter(|_| has(source, "weights")) {
        let o = Options::new("source", bytes, &["config", "weights"])?;
        let config = o.get("config").ok_or_else(|| o.bad("config", "is missing"))?;
        let config = match config.dyn_ref::<Uint8Array>() {
            Some(bytes) => text("config.json", &bytes.to_vec())?,
            None => config.as_string().ok_or_else(|| o.bad("config", "is neither text nor an Uint8Array"))?,
        };
        let weights = o.get("weights").and_then(|value| value.dyn_into::<Uint8Array>().ok());
        let weights = weights.ok_or_else(|| o.bad("weights", "is no Uint8Array"))?;
        return Ok((String::new(), config, weights.to_vec()));
    }
    // A URL has its text in `href`.
    let href = Reflect::get(source, &"href".into()).ok().and_then(|href| href.as_string());
    let folder = source.as_string().or(href);
    let folder = folder.ok_or_else(|| argument("source", "is neither an address nor {config, weights}"))?;
    let folder = if folder.ends_with('/') { folder } else { folder + "/" };
    let config = get(&format!("{folder}config.json")).await?;
    let weights = get(&format!("{folder}model.safetensors")).await?;
    Ok((folder, text("config.json", &config)?, weights))
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
