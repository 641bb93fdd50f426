//! One device for window and model: eframe makes it, asked for what latten can use.

use eframe::egui_wgpu::{RenderState, SurfaceConfig, WgpuConfiguration, WgpuSetup, WgpuSetupCreateNew};
use latten::wgpu;
use latten::{Gpu, GpuOptions, Tier};
use std::sync::Arc;

/// All that the adapter has: subgroups, timestamps, and matrices where it multiplies them.
pub(crate) fn gpu_options() -> GpuOptions {
    GpuOptions { tier: Some(Tier::Matrix), ..Default::default() }
}

/// eframe's own choices, but for the device.
pub(crate) fn native_options() -> eframe::NativeOptions {
    let mut setup = WgpuSetupCreateNew::without_display_handle();
    // By itself eframe asks for no feature and for WebGPU's limits. latten refuses OpenGL, so it is not chosen either.
    setup.device_descriptor = Arc::new(|adapter| gpu_options().device_descriptor(adapter));
    setup.instance_descriptor.backends = wgpu::Backends::PRIMARY;
    eframe::NativeOptions {
        renderer: eframe::Renderer::Wgpu,
        wgpu_options: WgpuConfiguration {
            wgpu_setup: WgpuSetup::CreateNew(setup),
            // One frame at a time: a second one would wait behind the model's steps, too.
            surface: SurfaceConfig::LOW_LATENCY,
            ..Default::default()
        },
        viewport: eframe::egui::ViewportBuilder::default().with_inner_size([1080.0, 680.0]),
        ..Default::default()
    }
}

/// latten on the window's device. Matrix kernels come after their self-test, on the engine's thread.
pub(crate) fn gpu(state: &RenderState) -> latten::Result<Gpu> {
    Gpu::from_wgpu(&state.adapter, state.device.clone(), state.queue.clone())
}
