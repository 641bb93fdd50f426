//! The rate of the matrix units, through cooperative matrices; on a device of its own, since they are experimental.

use crate::common::ceilings::Bench;
use crate::common::timing::median_us;
use latten::{wgpu, Gpu};

/// As in the shader.
const LANES: u32 = 128;
const STEPS: u32 = 2048;
const GROUPS: u32 = 2112;

/// TFLOP per second of f16 products with f32 sums. Errors say why there is no number.
pub async fn measure(gpu: &Gpu) -> Result<f64, String> {
    let adapter = adapter_of(gpu).await.ok_or("the adapter was not found again")?;
    let info = adapter.get_info();
    let needed =
        wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16 | wgpu::Features::TIMESTAMP_QUERY;
    let missing = needed - adapter.features();
    if !missing.is_empty() {
        return Err(format!("the adapter has no {missing}"));
    }
    let is_16 = |p: &wgpu::CooperativeMatrixProperties| {
        (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
            && p.ab_type == wgpu::CooperativeScalarType::F16
            && p.cr_type == wgpu::CooperativeScalarType::F32
    };
    if !adapter.cooperative_matrix_properties().iter().any(is_16) {
        return Err("the adapter has no 16 x 16 x 16 product of f16 with f32 sums".into());
    }
    if info.subgroup_min_size != info.subgroup_max_size {
        let (least, most) = (info.subgroup_min_size, info.subgroup_max_size);
        return Err(format!("subgroups have {least} to {most} lanes, so their number is unknown"));
    }
    let request = wgpu::DeviceDescriptor {
        label: Some("matmul ceiling"),
        required_features: needed,
        required_limits: adapter.limits(),
        // SAFETY: asks for an experimental feature, whose bugs may be undefined behaviour, in a benchmark of its own
        // device; the one kernel that uses it indexes fixed-size arrays by constants.
        #[allow(unsafe_code)]
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&request).await.map_err(|e| e.to_string())?;
    let gpu = Gpu::from_wgpu(&adapter, device, queue).map_err(|e| e.to_string())?;
    rate(&gpu, LANES / info.subgroup_min_size.max(1)).await
}

async fn rate(gpu: &Gpu, subgroups: u32) -> Result<f64, String> {
    let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
    let tensor = latten::Tensor::zeros(gpu, &[GROUPS as usize, 256], latten::DType::F32).map_err(|e| e.to_string())?;
    let wgsl = include_str!("../../../benches/shaders/matmul_coop.wgsl");
    let bench = Bench::new(gpu.device(), wgsl, &[tensor.wgpu_buffer()]);
    if let Some(error) = scope.pop().await {
        return Err(error.to_string());
    }
    let us = median_us(gpu, |pass| bench.dispatch(pass, GROUPS)).await.map_err(|e| e.to_string())?;
    let got = gpu.download::<f32>(&tensor).await.map_err(|e| e.to_string())?;
    let want = expected();
    if let Some(i) = (0..got.len()).find(|i| got[*i] != want[*i % 256]) {
        return Err(format!("wrong product: element {i} is {}, wanted {}", got[i], want[i % 256]));
    }
    let flop = f64::from(GROUPS * subgroups) * f64::from(STEPS) * 2.0 * 64.0 * 64.0 * 16.0;
    Ok(flop / us / 1e6)
}

/// The sum that the shader's head describes.
fn expected() -> Vec<f32> {
    let x = |i: usize, k: usize| (i + 2 * k) as i64 % 3 - 1;
    let y = |k: usize, j: usize| (k + 2 * j) as i64 % 5 - 2;
    let element = |i: usize, j: usize| {
        let tiles = (0..16).map(|tile| (16 * (tile / 4) + i, 16 * (tile % 4) + j));
        tiles.map(|(row, column)| (0..64).map(|k| x(row, k) * y(k, column)).sum::<i64>()).sum::<i64>()
    };
    (0..256).map(|at| (element(at / 16, at % 16) * i64::from(STEPS / 4)) as f32).collect()
}

/// latten's choice of adapter, again: a device knows its adapter's description alone.
async fn adapter_of(gpu: &Gpu) -> Option<wgpu::Adapter> {
    let used = &gpu.capabilities().adapter;
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::all() - wgpu::Backends::GL;
    let adapters = wgpu::Instance::new(desc).enumerate_adapters(wgpu::Backends::all() - wgpu::Backends::GL).await;
    adapters.into_iter().find(|adapter| {
        let info = adapter.get_info();
        used.starts_with(&info.name) && used.contains(&format!("({:?},", info.backend))
    })
}
