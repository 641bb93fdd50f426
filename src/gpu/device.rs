//! Finding an adapter and making, or taking over, a device.

use super::capabilities::{describe, named, Capabilities, Tier};
use super::pipeline_cache::PipelineCacheFile;
use super::{CounterCells, Gpu, GpuInner};
use crate::error::{ErrorKind, Result};
use std::sync::{Arc, Mutex};

/// Which limits to ask the device for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LimitsChoice {
    /// All that the adapter has.
    #[default]
    Adapter,
    /// WebGPU's defaults (128 MiB bindings, 16 KiB workgroup memory): for tests.
    Default,
    /// `wgpu::Limits::downlevel_defaults()`, with the 8 storage buffers that latten needs: for tests.
    Downlevel,
}

/// How to make a [`Gpu`]; `Default` is what [`Gpu::new`] uses.
///
/// ```no_run
/// # use latten::{Gpu, GpuOptions, Tier};
/// # async fn f() -> latten::Result<()> {
/// // The best kernels there are, the experimental ones too where the adapter has them and they pass their test.
/// let gpu = Gpu::with_options(GpuOptions { tier: Some(Tier::Matrix), ..Default::default() }).await?;
/// println!("{:?}", gpu.capabilities().tier);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct GpuOptions {
    /// Take the adapter whose description ([`Capabilities::adapter`]) contains this, whatever its case; of several the
    /// best. Default: the environment variable `LATTEN_ADAPTER`, if it is set and not empty.
    pub adapter: Option<String>,
    /// Which of the adapters that are as good as the best, in the system's order: for several GPUs of one host, of one name as they
    /// may be. Default: 0, the first.
    pub number: usize,
    /// What to call an adapter that tells no name, as most browsers' do: in the log, in errors and in
    /// [`Capabilities::adapter`]. Default: "unnamed adapter".
    pub unnamed: Option<String>,
    /// Device limits.
    pub limits: LimitsChoice,
    /// Ask for no optional feature at all (no timestamps, no subgroups): for tests.
    pub no_features: bool,
    /// The highest tier of kernels to use: a device that has less gives what it has, so `Some(Tier::Matrix)` asks for the
    /// best there is. Default: the best but for [`Tier::Matrix`], which wgpu calls experimental and which must be asked
    /// for. [`Capabilities::tier`] says what is used.
    pub tier: Option<Tier>,
    /// Override of the planner's workgroup target ([`Capabilities::target_workgroups`]).
    pub target_workgroups: Option<usize>,
    /// Override of the work of one dispatch ([`Capabilities::dispatch_flop`]): what
    /// [`nn::measure_dispatch_flop`](crate::nn::measure_dispatch_flop) found, or `u64::MAX` for no bound.
    pub dispatch_flop: Option<u64>,
    /// Ask for timestamps inside passes, which [`Gpu::start_profile`] needs. Not every device has them.
    pub profile: bool,
    /// A file that compiled pipelines are kept in, so that the next start compiles faster. Where the device has no such
    /// caches (only Vulkan has) it is not used; a damaged file, or one of another device, is passed over and replaced.
    pub pipeline_cache: Option<std::path::PathBuf>,
}

#[cfg(target_arch = "wasm32")]
const HINT: &str = "WebGPU is missing or turned off here: use a current browser that has it, a page served from \
                    localhost or over https, and a graphics driver that the browser does not block";
#[cfg(not(target_arch = "wasm32"))]
const HINT: &str = "install a Vulkan driver (Debian: apt-get install mesa-vulkan-drivers for a software one), \
                    check LATTEN_ADAPTER, or build with a backend feature for this platform";

impl GpuOptions {
    /// What [`Gpu::with_options`] asks `adapter` for: timestamps and subgroups where it has them, matrices too where
    /// [`GpuOptions::tier`] is [`Tier::Matrix`], and the limits. For an app whose framework makes the device, and takes a
    /// descriptor for it: [`Gpu::from_wgpu`] of such a device has all that latten can use, [`Gpu::with_matrix_kernels`] its
    /// matrices. An app may add features and raise limits.
    pub fn device_descriptor(&self, adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
        let available = adapter.limits();
        let required_limits = match self.limits {
            LimitsChoice::Adapter => available,
            LimitsChoice::Default => wgpu::Limits::default(),
            LimitsChoice::Downlevel => {
                wgpu::Limits { max_storage_buffers_per_shader_stage: 8, ..wgpu::Limits::downlevel_defaults() }
            }
        };
        let mut optional = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP;
        if self.pipeline_cache.is_some() {
            optional |= wgpu::Features::PIPELINE_CACHE;
        }
        if self.profile {
            optional |= wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        }
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if self.tier == Some(Tier::Matrix) && !self.no_features && multiplies_16x16(adapter) {
            optional |= matrix_features();
            experimental_features = self::experimental_features();
        }
        let wanted = if self.no_features { wgpu::Features::empty() } else { optional };
        wgpu::DeviceDescriptor {
            label: Some("latten"),
            required_features: wanted & adapter.features(),
            required_limits,
            experimental_features,
            ..Default::default()
        }
    }
}

/// What the kernels of [`Tier::Matrix`] need beside [`Tier::Subgroup`]'s.
pub(crate) fn matrix_features() -> wgpu::Features {
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP_BARRIER
}

impl Gpu {
    /// A device as the options say, its matrix kernels not yet tested: `start.rs` goes on. Errors: as
    /// [`Gpu::with_options`].
    pub(crate) async fn open(options: &GpuOptions) -> Result<Self> {
        let none = |found: String| ErrorKind::NoAdapter { found, hint: HINT.into() };
        if wgpu::Instance::enabled_backend_features().is_empty() {
            return Err(none("no backend compiled in".into()).into());
        }
        let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
        // OpenGL has no bounds checks; latten does not run there.
        desc.backends = wgpu::Backends::all() - wgpu::Backends::GL;
        desc.flags = wgpu::InstanceFlags::empty();
        let instance = wgpu::Instance::new(desc);
        let adapter = pick(&instance, options).await.map_err(none)?;
        let info = named(adapter.get_info(), options);
        if info.device_type == wgpu::DeviceType::Cpu {
            log::warn!("latten: no GPU found, using the software adapter {}", describe(&info));
        } else {
            log::info!("latten: using {}", describe(&info));
        }
        let descriptor = options.device_descriptor(&adapter);
        let matrices = descriptor.required_features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        let request = adapter.request_device(&descriptor);
        let (device, queue) =
            request.await.map_err(|e| ErrorKind::Unsupported { what: format!("{}: {e}", describe(&info)) })?;
        let lost = Arc::new(Mutex::new(None));
        let flag = lost.clone();
        // Our own device, so its one callback is ours to set.
        device.set_device_lost_callback(move |reason, message| {
            let mut lost = flag.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            lost.get_or_insert_with(|| format!("{reason:?}: {message}"));
        });
        Self::build(device, queue, lost, options, matrices)
    }

    /// Uses a device that the app owns. Its error handlers and callbacks are left alone, `LATTEN_ADAPTER` does not
    /// count, and no feature is needed: `TIMESTAMP_QUERY`, if it is on, serves [`Gpu::time_passes`], and `SUBGROUP` brings
    /// the kernels of [`Tier::Subgroup`]. Those of [`Tier::Matrix`] come with [`Gpu::with_matrix_kernels`]; they need its
    /// features on the device, and `adapter`, which is asked for the matrices it multiplies; else it may be `None`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] on OpenGL, or where the device has less than 8 storage buffers per stage, 256
    /// invocations per workgroup (and in x), or 16,352 bytes of workgroup memory. wgpu's `Limits::default()` suffice;
    /// `Limits::downlevel_defaults()` do not, for their 4 storage buffers.
    pub fn from_wgpu<'a>(
        adapter: impl Into<Option<&'a wgpu::Adapter>>,
        device: wgpu::Device,
        queue: wgpu::Queue,
    ) -> Result<Self> {
        let matrices = adapter.into().is_some_and(multiplies_16x16);
        if device.adapter_info().backend == wgpu::Backend::Gl {
            return Err(ErrorKind::Unsupported { what: "the OpenGL backend (no bounds checks)".into() }.into());
        }
        let options = GpuOptions { tier: Some(Tier::Subgroup), ..Default::default() };
        Self::build(device, queue, Arc::default(), &options, matrices)
    }

    fn build(
        device: wgpu::Device,
        queue: wgpu::Queue,
        lost: Arc<Mutex<Option<String>>>,
        options: &GpuOptions,
        matrices: bool,
    ) -> Result<Self> {
        let capabilities = Capabilities::probe(&device, options, matrices)?;
        let pipeline_cache = options.pipeline_cache.clone().and_then(|path| PipelineCacheFile::open(&device, path));
        Ok(Self::of_parts(device, queue, lost, capabilities, pipeline_cache.map(Arc::new)))
    }

    /// The same device with the kernels of another tier, at most the device's own. It shares nothing recorded, and what was
    /// made with one is refused by the other.
    pub(crate) fn at_tier(&self, tier: Tier) -> Self {
        let GpuInner { device, queue, lost, capabilities, pipeline_cache, .. } = &*self.inner;
        let capabilities = Capabilities { tier: tier.min(capabilities.device_tier), ..capabilities.clone() };
        Self::of_parts(device.clone(), queue.clone(), lost.clone(), capabilities, pipeline_cache.clone())
    }

    fn of_parts(
        device: wgpu::Device,
        queue: wgpu::Queue,
        lost: Arc<Mutex<Option<String>>>,
        capabilities: Capabilities,
        pipeline_cache: Option<Arc<PipelineCacheFile>>,
    ) -> Self {
        Gpu {
            inner: Arc::new(GpuInner {
                device,
                queue,
                capabilities,
                commands: Default::default(),
                kernels: Mutex::default(),
                bind_groups: Mutex::default(),
                layouts: Mutex::default(),
                params: Mutex::default(),
                readback: Mutex::default(),
                scratch: Mutex::default(),
                profile: Mutex::default(),
                compile_times: Mutex::default(),
                timers: Default::default(),
                tapes: Default::default(),
                pipeline_cache,
                lost,
                counters: CounterCells::default(),
                web: Default::default(),
                #[cfg(test)]
                poison_workgroup: Default::default(),
            }),
        }
    }
}

/// Whether the adapter multiplies 16 x 16 matrices of f16 and adds in f32.
fn multiplies_16x16(adapter: &wgpu::Adapter) -> bool {
    use wgpu::CooperativeScalarType as Scalar;
    adapter
        .cooperative_matrix_properties()
        .iter()
        .any(|p| (p.m_size, p.n_size, p.k_size) == (16, 16, 16) && p.ab_type == Scalar::F16 && p.cr_type == Scalar::F32)
}

/// wgpu's token for features that it does not yet vouch for.
#[allow(unsafe_code)]
fn experimental_features() -> wgpu::ExperimentalFeatures {
    // SAFETY: whoever asks for Tier::Matrix accepts an experimental feature, as GpuOptions::tier says. What wgpu does
    // not check there, that a matrix lies inside its buffer, the kernels see to: they load and store matrices in
    // workgroup arrays of fixed size only, at indices below constants.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// The adapter to use, or what there was instead.
async fn pick(instance: &wgpu::Instance, options: &GpuOptions) -> Result<wgpu::Adapter, String> {
    let wish = options.adapter.clone().or_else(|| std::env::var("LATTEN_ADAPTER").ok()).filter(|w| !w.is_empty());
    // Browsers have nothing to enumerate; wgpu gives what they take to be good for saving power.
    let mut adapters = match cfg!(target_arch = "wasm32") {
        true => Vec::new(),
        false => instance.enumerate_adapters(wgpu::Backends::all() - wgpu::Backends::GL).await,
    };
    adapters.retain(|a| !matches!(a.get_info().backend, wgpu::Backend::Noop | wgpu::Backend::Gl));
    if adapters.is_empty() {
        let found = instance.request_adapter(&wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        });
        adapters.extend(found.await.ok().filter(|a| a.get_info().backend != wgpu::Backend::Gl));
    }
    let names: Vec<String> = adapters.iter().map(|a| describe(&a.get_info())).collect();
    let found = if names.is_empty() { "none found".to_string() } else { names.join("; ") };
    let rank = |a: &wgpu::Adapter| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    let fits = |name: &str| wish.as_ref().is_none_or(|w| name.to_lowercase().contains(&w.to_lowercase()));
    let fitting: Vec<_> = adapters.into_iter().zip(&names).filter(|(_, n)| fits(n)).map(|(a, _)| a).collect();
    let kind = |a: &wgpu::Adapter| (rank(a), a.get_info().backend);
    let Some(best) = fitting.iter().min_by_key(|a| rank(a)).map(kind) else {
        return Err(match &wish {
            Some(wish) => format!("LATTEN_ADAPTER or the options ask for {wish:?}; found: {found}"),
            None => found,
        });
    };
    let alike = fitting.into_iter().filter(|a| kind(a) == best);
    alike.enumerate().find(|(number, _)| *number == options.number).map(|(_, adapter)| adapter).ok_or_else(|| {
        format!("the options ask for adapter {} of its kind, counted from 0; found: {found}", options.number)
    })
}
