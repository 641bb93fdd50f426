//! latten for JavaScript: models, and the attention and cache under them, through a browser's WebGPU.
//!
//! One class per Rust type, with the same checks: whatever the crate refuses is thrown, an `Error` whose `name` is
//! `"LattenError"`, whose `kind` is the name of the [`latten::ErrorKind`] and which has its numbers as properties. Nothing
//! blocks: what waits for the device is a promise. `types.d.ts` is the declaration of all objects that go in and out.

mod cache;
mod decode;
mod device;
mod error;
mod layout;
mod logger;
mod measure;
mod model;
mod options;
mod variants;

use wasm_bindgen::prelude::*;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = include_str!("types.d.ts");

/// Runs when the module is loaded: warnings go to the console.
#[wasm_bindgen(start)]
fn start() {
    logger::install();
}
