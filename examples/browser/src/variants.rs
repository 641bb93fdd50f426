//! The assembled kernels, for the tests that give all of them to the browser's compiler.

use crate::error::Thrown;
use crate::options::object;
use js_sys::Array;
use latten::{inspect, Tier};
use wasm_bindgen::prelude::*;

/// Every assembled kernel that a browser may be given, `{name, label, wgsl, workgroupBytes}`; with `subgroups` those that
/// use them, which browsers are not given so far.
#[wasm_bindgen(js_name = kernelVariants, unchecked_return_type = "{name: string, label: string, wgsl: string}[]")]
pub fn kernel_variants(subgroups: bool) -> Result<Array, JsValue> {
    let wanted = if subgroups { Tier::Subgroup } else { Tier::Portable };
    let all = inspect::variants().map_err(Thrown::from)?;
    let entry = |v: &inspect::Variant| {
        object([("name", v.name.into()), ("label", v.label.as_str().into()), ("wgsl", v.wgsl.as_str().into())])
    };
    Ok(all.iter().filter(|v| v.tier == wanted).map(entry).collect())
}
