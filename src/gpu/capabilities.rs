//! What a device can do, probed once when a [`Gpu`](super::Gpu) is made.

use super::GpuOptions;
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// Which kernels may run: each tier has those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Tier {
    /// Workgroup memory and f32 arithmetic alone: every device.
    Portable,
    /// Subgroup operations (`wgpu::Features::SUBGROUP`): native devices.
    Subgroup,
    /// Cooperative matrices of 16 x 16, f16 to f32, over subgroups of 32 lanes
    /// (`wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX`, `SHADER_F16`, `SUBGROUP_BARRIER`). Factors are rounded to f16. wgpu calls the
    /// feature experimental, so it is used only where [`GpuOptions::tier`](super::GpuOptions) asks for it, and the kernels
    /// have agreed with the reference on this device ([`Gpu::with_options`](super::Gpu::with_options)).
    Matrix,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Portable => "portable",
            Tier::Subgroup => "subgroup",
            Tier::Matrix => "matrix",
        })
    }
}

impl FromStr for Tier {
    type Err = Error;

    /// From what it displays as: `subgroup`.
    fn from_str(text: &str) -> Result<Self> {
        let found = [Tier::Portable, Tier::Subgroup, Tier::Matrix].into_iter().find(|tier| tier.to_string() == text);
        found.ok_or_else(|| ErrorKind::argument("tier", format!("{text:?} is not portable, subgroup or matrix")))
    }
}

/// Limits and properties that kernels and planner choose by. All sizes in bytes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Capabilities {
    /// Adapter name, driver and backend, for log lines and tables.
    pub adapter: String,
    /// Discrete, integrated, virtual or CPU.
    pub device_type: wgpu::DeviceType,
    /// The API in use.
    pub backend: wgpu::Backend,
    /// Largest storage binding: the most that one tensor, or one of the [`max_slabs`](Self::max_slabs) slabs of a layer's
    /// pages, may take.
    pub max_binding_bytes: u64,
    /// Largest buffer.
    pub max_buffer_bytes: u64,
    /// Storage buffers that a kernel may bind.
    pub max_storage_buffers: u32,
    /// Workgroup memory per workgroup.
    pub workgroup_storage_bytes: u32,
    /// Threads per workgroup.
    pub max_invocations: u32,
    /// Workgroups per dispatch dimension.
    pub max_workgroups: u32,
    /// Lanes that run in step, the largest the device may choose; a hint for workgroup sizes, 32 where unknown.
    pub subgroup_size: u32,
    /// The fewest lanes that a subgroup may have; of use where the tier has subgroups.
    pub subgroup_min_size: u32,
    /// The kernels that are used: at most what [`GpuOptions::tier`](super::GpuOptions) asks for, and [`Tier::Matrix`] only
    /// after a self-test ([`Gpu::with_options`](super::Gpu::with_options)).
    pub tier: Tier,
    /// The highest tier that the device, as it was made, has the features for: above [`tier`](Self::tier) where more was
    /// not asked for, or failed its self-test.
    pub device_tier: Tier,
    /// Alignment of dynamic uniform offsets.
    pub uniform_align_bytes: u32,
    /// Whether GPU timestamps can be taken.
    pub timestamps: bool,
    /// How many workgroups keep the device busy: the planner's target. A guess by device type, unless
    /// [`GpuOptions::target_workgroups`](super::GpuOptions) says it; [`Gpu::measure_parallelism`](super::Gpu) finds out.
    /// In 1..=2^20.
    pub target_workgroups: usize,
    /// FLOP that one dispatch of a product or of attention holds at most, about: larger ones are cut, so that none takes
    /// more than 50 ms. `u64::MAX` for no bound. A guess by device type, for a slow one of it, unless
    /// [`GpuOptions::dispatch_flop`](super::GpuOptions) says it; [`nn::measure_dispatch_flop`](crate::nn) finds out.
    pub dispatch_flop: u64,
}

/// Workgroups that may be said to fill a device: far more than any has, and few enough to count with.
pub(crate) const MOST_WORKGROUPS: usize = 1 << 20;

/// What the kernels need at the least: WebGPU's defaults, but the workgroup memory of wgpu's downlevel ones.
const MIN_STORAGE_BUFFERS: u32 = 8;
const MIN_INVOCATIONS: u32 = 256;
/// Bytes of workgroup memory that kernels may take on every device: WebGPU's 16 KiB, but for 32 bytes that some drivers keep for
/// themselves.
pub(crate) const PORTABLE_WORKGROUP_BYTES: usize = 16352;
/// And on devices that multiply matrices: more than this has hung one that claimed to have it.
pub(crate) const MATRIX_WORKGROUP_BYTES: usize = 48 << 10;

impl Capabilities {
    /// `matrices`: whether the adapter multiplies 16 x 16 matrices of f16 into f32.
    pub(crate) fn probe(device: &wgpu::Device, options: &GpuOptions, matrices: bool) -> Result<Self> {
        let (info, limits) = (named(device.adapter_info(), options), device.limits());
        for (name, got, want) in [
            ("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage, MIN_STORAGE_BUFFERS),
            ("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup, MIN_INVOCATIONS),
            ("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x, MIN_INVOCATIONS),
            (
                "max_compute_workgroup_storage_size",
                limits.max_compute_workgroup_storage_size,
                PORTABLE_WORKGROUP_BYTES as u32,
            ),
        ] {
            if got < want {
                let what = format!("{name} is {got}, latten needs {want} (WebGPU's default limits give it)");
                return Err(ErrorKind::Unsupported { what }.into());
            }
        }
        // Fewer than 8 lanes (SwiftShader has 4) are too few to share a token.
        let subgroups = device.features().contains(wgpu::Features::SUBGROUP) && info.subgroup_min_size >= 8;
        let wanted = crate::gpu::device::matrix_features();
        let lanes = (info.subgroup_min_size, info.subgroup_max_size);
        let tier = match (subgroups, matrices && device.features().contains(wanted) && lanes == (32, 32)) {
            (true, true) => Tier::Matrix,
            (true, false) => Tier::Subgroup,
            _ => Tier::Portable,
        };
        let cores = std::thread::available_parallelism().map_or(4, usize::from);
        let guess = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => 1024,
            wgpu::DeviceType::IntegratedGpu => 128,
            wgpu::DeviceType::Cpu => 2 * cores,
            _ => 256,
        };
        // Of 50 ms: 2 GFLOP/s a core (llvmpipe has 3 to 5), 50 GFLOP/s; discrete cards have no need.
        let slow = match info.device_type {
            wgpu::DeviceType::Cpu => 100_000_000 * cores as u64,
            wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Other => 2_500_000_000,
            _ => u64::MAX,
        };
        Ok(Self {
            adapter: describe(&info),
            device_type: info.device_type,
            backend: info.backend,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            workgroup_storage_bytes: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            subgroup_size: if info.subgroup_max_size == 0 { 32 } else { info.subgroup_max_size.clamp(8, 64) },
            subgroup_min_size: info.subgroup_min_size,
            tier: options.tier.map_or(tier, |most| tier.min(most)),
            device_tier: tier,
            uniform_align_bytes: limits.min_uniform_buffer_offset_alignment,
            timestamps: device.features().contains(wgpu::Features::TIMESTAMP_QUERY),
            dispatch_flop: options.dispatch_flop.unwrap_or(slow).max(1),
            target_workgroups: options.target_workgroups.unwrap_or(guess).clamp(1, MOST_WORKGROUPS),
        })
    }

    /// How many slabs one layer's pages may lie in, each a binding of up to
    /// [`max_binding_bytes`](Self::max_binding_bytes): 4, or 2 where kernels may bind no more than WebGPU's default of 8
    /// storage buffers.
    pub fn max_slabs(&self) -> usize {
        match self.max_storage_buffers {
            // Decode binds six others, and sinks.
            10.. => 4,
            _ => 2,
        }
    }

    /// Whether the adapter is a CPU (llvmpipe, SwiftShader, WARP).
    pub fn is_software(&self) -> bool {
        self.device_type == wgpu::DeviceType::Cpu
    }
}

/// `llvmpipe (LLVM 15.0.6, 256 bits) [Mesa 22.3.6 (LLVM 15.0.6)] (Vulkan, Cpu)`.
pub(crate) fn describe(info: &wgpu::AdapterInfo) -> String {
    let driver = if info.driver_info.is_empty() { String::new() } else { format!(" [{}]", info.driver_info) };
    let name = if info.name.trim().is_empty() { "unnamed adapter" } else { &info.name };
    format!("{name}{driver} ({:?}, {:?})", info.backend, info.device_type)
}

/// With the name that the app gave where the adapter tells none.
pub(crate) fn named(mut info: wgpu::AdapterInfo, options: &GpuOptions) -> wgpu::AdapterInfo {
    if let (true, Some(name)) = (info.name.trim().is_empty(), &options.unnamed) {
        info.name.clone_from(name);
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_adapter_has_a_name() {
        let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::Cpu, wgpu::Backend::BrowserWebGpu);
        assert_eq!(describe(&info), "unnamed adapter (BrowserWebGpu, Cpu)");
        let options = GpuOptions { unnamed: Some("google swiftshader".into()), ..Default::default() };
        assert_eq!(describe(&named(info.clone(), &options)), "google swiftshader (BrowserWebGpu, Cpu)");
        info.name = "llvmpipe".into();
        assert_eq!(describe(&named(info.clone(), &options)), "llvmpipe (BrowserWebGpu, Cpu)");
        assert_eq!(describe(&named(info, &GpuOptions::default())), "llvmpipe (BrowserWebGpu, Cpu)");
    }
}
