//! `Device`: a GPU of the browser's.

use crate::error::Result;
use crate::options::{object, Options};
use js_sys::{Function, Promise, Reflect};
use latten::{Gpu, GpuOptions, LimitsChoice};
use std::cell::RefCell;
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::{future_to_promise, JsFuture};

/// A WebGPU device of its own. Models, caches and kernels made on one device work together.
#[wasm_bindgen]
#[derive(Clone)]
pub struct Device {
    pub(crate) gpu: Gpu,
    name: Rc<str>,
}

const LIMITS: [(&str, LimitsChoice); 3] =
    [("adapter", LimitsChoice::Adapter), ("default", LimitsChoice::Default), ("downlevel", LimitsChoice::Downlevel)];

thread_local! {
    /// The device that was last asked to be shared.
    static SHARED: RefCell<Option<Device>> = const { RefCell::new(None) };
}

/// The device behind a JavaScript object, in an option. wasm-bindgen hands over objects of its own only as arguments, so the
/// object is asked to lay its device down here.
pub(crate) fn device_of(value: &JsValue) -> Option<Device> {
    SHARED.take();
    let share = Reflect::get(value, &"share".into()).ok()?.dyn_into::<Function>().ok()?;
    share.call0(value).ok()?;
    SHARED.take()
}

impl Device {
    fn adapter_name(&self) -> &str {
        if self.name.is_empty() {
            &self.gpu.capabilities().adapter
        } else {
            &self.name
        }
    }

    pub(crate) async fn open(options: GpuOptions) -> Result<Self> {
        let name = name().await.filter(|name| !name.is_empty());
        let gpu = Gpu::with_options(GpuOptions { unnamed: name.clone(), ..options }).await?;
        Ok(Device { gpu, name: name.unwrap_or_default().into() })
    }
}

/// What the browser tells of its adapter. It often hides the description, which is all that wgpu asks for.
async fn name() -> Option<String> {
    let get = |value: &JsValue, key: &str| Reflect::get(value, &key.into()).ok();
    let gpu = get(&get(&js_sys::global(), "navigator")?, "gpu")?;
    let request: Function = get(&gpu, "requestAdapter")?.dyn_into().ok()?;
    let options = object([("powerPreference", "high-performance".into())]);
    let adapter: Promise = request.call1(&gpu, &options).ok()?.dyn_into().ok()?;
    let info = get(&JsFuture::from(adapter).await.ok()?, "info")?;
    let words = ["description", "vendor", "architecture", "device"].map(|key| get(&info, key)?.as_string());
    let [description, rest @ ..] = words.map(Option::unwrap_or_default);
    match description.is_empty() {
        true => Some(rest.join(" ").trim().to_string()),
        false => Some(description),
    }
}

#[wasm_bindgen]
impl Device {
    /// Asks the browser for its fastest adapter. Rejects with kind `NoAdapter` where there is no WebGPU, `Unsupported` where
    /// its limits do not suffice.
    #[wasm_bindgen(unchecked_return_type = "Promise<Device>")]
    pub fn request(#[wasm_bindgen(unchecked_optional_param_type = "DeviceOptions")] options: JsValue) -> Promise {
        future_to_promise(async move {
            let o = Options::new("options", &options, &["limits", "noFeatures", "targetWorkgroups"])?;
            let options = GpuOptions {
                limits: o.word("limits", &LIMITS)?.unwrap_or_default(),
                no_features: o.flag("noFeatures")?.unwrap_or(false),
                target_workgroups: o.size("targetWorkgroups", 1..=1 << 20)?,
                ..Default::default()
            };
            Ok(Device::open(options).await?.into())
        })
    }

    /// Name and limits of the device.
    #[wasm_bindgen(getter, unchecked_return_type = "DeviceInfo")]
    pub fn info(&self) -> JsValue {
        let c = self.gpu.capabilities();
        object([
            ("adapter", self.adapter_name().into()),
            ("software", c.is_software().into()),
            ("maxBindingBytes", (c.max_binding_bytes as f64).into()),
            ("maxBufferBytes", (c.max_buffer_bytes as f64).into()),
            ("maxStorageBuffers", c.max_storage_buffers.into()),
            ("workgroupStorageBytes", c.workgroup_storage_bytes.into()),
            ("maxInvocations", c.max_invocations.into()),
            ("timestamps", c.timestamps.into()),
            ("targetWorkgroups", (c.target_workgroups as f64).into()),
        ])
    }

    /// How many objects were made and calls sent so far.
    #[wasm_bindgen(getter, unchecked_return_type = "DeviceCounters")]
    pub fn counters(&self) -> JsValue {
        let c = self.gpu.counters();
        let number = |n: u64| JsValue::from_f64(n as f64);
        object([
            ("buffers", number(c.buffers)),
            ("pipelines", number(c.pipelines)),
            ("compiled", number(c.compiled)),
            ("bindGroups", number(c.bind_groups)),
            ("dispatches", number(c.dispatches)),
            ("submits", number(c.submits)),
            ("readbacks", number(c.readbacks)),
        ])
    }

    /// For `options.device`.
    #[wasm_bindgen(skip_typescript)]
    pub fn share(&self) {
        SHARED.set(Some(self.clone()));
    }

    /// Gives everything on the device back at once. Whatever uses it afterwards is refused with kind `DeviceLost`.
    pub fn destroy(&self) {
        self.gpu.device().destroy();
    }
}
