//! Decode: attention of a step's query tokens over the paged cache. Kernels: `shaders/attention/decode_tile.wgsl`, `merge.wgsl`.

use super::classes::{classes, token_flop, Class};
use super::options::AttentionOptions;
use super::output::DecodeOutput;
use crate::attention::kernels::select::{Device, KernelShape};
use crate::attention::kernels::spec::merge_blocks;
use crate::attention::plan::buffer::Home;
use crate::attention::plan::planner::Plan;
use crate::attention::plan::work::{PlanShape, SplitPolicy};
use crate::error::{ErrorKind, Result};
use crate::gpu::{Buffer, DType, Gpu, Tensor, MOST_WORKGROUPS};
use crate::kv::layout::KvView;
use crate::kv::HeadLayout;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The decode kernels of one head layout and cache dtype, with their scratch. Everything is compiled in `new`, on several threads.
///
/// ```no_run
/// # use latten::*;
/// # async fn f(gpu: Gpu, mut cache: PagedKvCache, seq: SeqId, q: Tensor, heads: HeadLayout) -> Result<()> {
/// let decode = Decode::new(&gpu, heads, DType::F16)?;
/// cache.reserve(&[seq], 1)?;
/// let plan = decode.plan(&cache, &[seq])?; // once per step, for all layers
/// let result = decode.run(DecodeArgs::new(&plan, &cache.layer(0)?, &q, 0.0625))?;
/// let values: Vec<f32> = gpu.download(&result.out).await?;
/// # Ok(()) }
/// ```
pub struct Decode {
    pub(super) gpu: Gpu,
    pub(super) heads: HeadLayout,
    dtype: DType,
    pub(super) options: AttentionOptions,
    pub(super) policy: SplitPolicy,
    pub(super) shape: PlanShape,
    classes: Vec<Class>,
    pub(super) plans: Home,
    pub(super) partials: Mutex<Buffer>,
    pub(super) outputs: Mutex<Vec<DecodeOutput>>,
}

impl fmt::Debug for Decode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decode")
            .field("heads", &self.heads)
            .field("dtype", &self.dtype)
            .field("options", &self.options)
            .field("policy", &self.policy)
            .field("target_workgroups", &self.shape.target_workgroups)
            .finish_non_exhaustive()
    }
}

/// Arguments of [`Decode::run`] and [`Decode::encode`].
#[derive(Debug, Clone, Copy)]
pub struct DecodeArgs<'a> {
    /// The step's plan, made by the same `Decode`.
    pub plan: &'a Plan,
    /// The layer's pages.
    pub layer: &'a KvView,
    /// `(tokens, q_heads, q_dim)` f32: absorbed (GLA, MLA) and rotated queries, sequences in plan order.
    pub q: &'a Tensor,
    /// Factor on the scores: `head_dim^-0.5` (GQA, GTA), `(head_dim + rope_dim)^-0.5` of the width before absorption
    /// (GLA, MLA).
    pub softmax_scale: f32,
    /// `(q_heads)` f32: the layer's sinks, where the `Decode` was made with [`AttentionOptions::sinks`], and only there.
    pub sinks: Option<&'a Tensor>,
}

impl<'a> DecodeArgs<'a> {
    /// Without sinks.
    pub fn new(plan: &'a Plan, layer: &'a KvView, q: &'a Tensor, softmax_scale: f32) -> Self {
        DecodeArgs { plan, layer, q, softmax_scale, sinks: None }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct DecodeParams {
    pub(crate) scale_log2: f32,
    pub(crate) page_count: u32,
    pub(crate) page_shift: u32,
    pub(crate) class_index: u32,
    pub(crate) slab_pages: u32,
    pub(crate) item_first: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct MergeParams {
    pub(crate) class_index: u32,
    pub(crate) item_first: u32,
}

/// What one workgroup of a merge takes the time of, with so many parts, of which it joins 32 at a turn (llvmpipe: 3 us, a
/// core's 16,000 FLOP of a product).
fn merge_flop(parts: u32) -> u64 {
    16_000 * u64::from(parts.div_ceil(32)).max(1)
}

impl Decode {
    /// Compiles the kernels.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for a state too large for the device's workgroup memory,
    /// [`ErrorKind::DType`] for a dtype that is no cache dtype.
    pub fn new(gpu: &Gpu, heads: HeadLayout, dtype: DType) -> Result<Self> {
        Self::with_options(gpu, heads, dtype, AttentionOptions::default())
    }

    /// Compiles the kernels with options.
    ///
    /// # Errors
    ///
    /// As [`Decode::new`]; [`ErrorKind::Argument`] for an option out of range.
    pub fn with_options(gpu: &Gpu, heads: HeadLayout, dtype: DType, options: AttentionOptions) -> Result<Self> {
        let shapes = KernelShape::all(&heads, dtype, &Device::of(gpu.capabilities()))?;
        Self::with_shapes(gpu, heads, dtype, options, &shapes)
    }

    /// With the kernel for the most rows alone, for prompts: shorter ones take it too.
    ///
    /// Errors: as [`Decode::with_options`].
    pub(crate) fn tallest(gpu: &Gpu, heads: HeadLayout, dtype: DType, options: AttentionOptions) -> Result<Self> {
        let shape = KernelShape::tallest(&heads, dtype, &Device::of(gpu.capabilities()))?;
        Self::with_shapes(gpu, heads, dtype, options, &[shape])
    }

    fn with_shapes(
        gpu: &Gpu,
        heads: HeadLayout,
        dtype: DType,
        options: AttentionOptions,
        shapes: &[KernelShape],
    ) -> Result<Self> {
        gpu.together(|| Self::of_shapes(gpu, heads, dtype, options, shapes))
    }

    fn of_shapes(
        gpu: &Gpu,
        heads: HeadLayout,
        dtype: DType,
        options: AttentionOptions,
        shapes: &[KernelShape],
    ) -> Result<Self> {
        options.check()?;
        let (classes, shape) = classes(gpu, &heads, dtype, &options, shapes)?;
        let partials = Mutex::new(gpu.create_scratch("partials", 16)?);
        let (plans, outputs) = (Arc::default(), Mutex::default());
        let policy = SplitPolicy::default();
        Ok(Self { gpu: gpu.clone(), heads, dtype, options, policy, shape, classes, plans, partials, outputs })
    }

    /// The same with another way of splitting sequences among workgroups. [`Decode::plan`] refuses a part count or size
    /// of 0.
    pub fn with_policy(mut self, policy: SplitPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The same with another count of workgroups that fill the device, taken into 1..=2^20: what
    /// [`Gpu::measure_parallelism`] found, where the device is the app's own. Default:
    /// [`Capabilities::target_workgroups`](crate::Capabilities).
    pub fn with_target_workgroups(mut self, workgroups: usize) -> Self {
        self.shape.target_workgroups = workgroups.clamp(1, MOST_WORKGROUPS);
        self
    }

    /// Compiles what [`Decode::new`] does not: the kernels for pages in slabs, if those of `layer` are. Without this, the first
    /// decode of such a layer does it.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub fn prepare(&self, layer: &KvView) -> Result<()> {
        let slabs = layer.pool.buffers().len();
        self.gpu.together(|| self.classes.iter().try_for_each(|class| class.want(&self.gpu, slabs)))
    }

    /// The head layout.
    pub fn heads(&self) -> &HeadLayout {
        &self.heads
    }

    /// How sequences are split.
    pub(crate) fn policy(&self) -> SplitPolicy {
        self.policy
    }

    /// The options it was made with.
    pub fn options(&self) -> &AttentionOptions {
        &self.options
    }

    /// Records the attention of one layer. The results are in memory of [`Decode::output`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::StalePlan`] where plan and layer are of different moments or caches, [`ErrorKind::Shape`],
    /// [`ErrorKind::DType`]; [`ErrorKind::Argument`] for a plan of another `Decode`, a layer of another layout or dtype, a scale
    /// that is not finite, sinks that are given to a `Decode` made without or not given to one made with them; those of
    /// [`Decode::output`].
    pub fn run(&self, args: DecodeArgs<'_>) -> Result<DecodeOutput> {
        let plan_buffer = self.check(&args)?;
        let output = self.output(args.plan.tokens)?;
        self.gpu.record(|pass| self.dispatch(pass, args, plan_buffer, &output))?;
        Ok(output)
    }

    /// Records the attention of one layer into a pass of the caller's, on the same device. The plan and the outputs may be
    /// dropped at any time: their memory serves nobody else before [`Gpu::passes_submitted`] is called.
    ///
    /// # Errors
    ///
    /// As [`Decode::run`], and [`ErrorKind::Shape`] or [`ErrorKind::DType`] of the output.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, args: DecodeArgs<'_>, output: &DecodeOutput) -> Result<()> {
        let plan_buffer = self.check(&args)?;
        let (tokens, heads) = (args.plan.tokens, self.heads.q_heads());
        output.out.expect("out", &[tokens, heads, self.heads.v_dim()], DType::F32)?;
        output.lse.expect("lse", &[tokens, heads], DType::F32)?;
        self.dispatch(pass, args, plan_buffer, output)
    }

    /// What [`Decode::check`] has let through.
    fn dispatch(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        args: DecodeArgs<'_>,
        plan_buffer: &Buffer,
        output: &DecodeOutput,
    ) -> Result<()> {
        let DecodeArgs { plan, layer, q, softmax_scale, sinks } = args;
        let partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (out, lse, groups) = (&output.out.buffer, &output.lse.buffer, self.heads.groups());
        let sinks = sinks.map(|tensor| &tensor.buffer);
        let slabs = layer.pool.buffers();
        for (index, (class, (items, _))) in
            self.classes.iter().zip(&plan.counts).enumerate().filter(|(_, c)| c.1 .0 > 0)
        {
            class.want(&self.gpu, slabs.len())?;
            let mut buffers = vec![&slabs[0], &q.buffer, plan_buffer, out, lse, &partials];
            buffers.extend(sinks);
            buffers.extend(&slabs[1..]);
            let (kernel, x) = (class.kernel(plan.forms[index]), self.shape.workgroups_of(index, plan.forms[index]));
            let longest = u64::from(plan.longest[index]).max(1);
            let at_once = self.at_once(token_flop(&self.heads, &class.shape).saturating_mul(longest));
            for item_first in (0..*items).step_by(at_once) {
                let params = DecodeParams {
                    scale_log2: softmax_scale * std::f32::consts::LOG2_E,
                    page_count: layer.pool.pages() as u32,
                    page_shift: layer.page_size.ilog2(),
                    class_index: index as u32,
                    slab_pages: layer.pool.slab_pages() as u32,
                    item_first: item_first as u32,
                };
                let (y, z) = crate::gpu::grid::fold(at_once.min(items - item_first));
                let kernel = kernel.of(&self.gpu, slabs.len())?;
                self.gpu.dispatch(pass, kernel, &params, &buffers, (x as u32, y, z))?;
            }
        }
        // Without merges this dispatches nothing; but what it binds is ready when the sequences have grown.
        for (index, (class, (_, merges))) in
            self.classes.iter().zip(&plan.counts).enumerate().filter(|(_, c)| c.1 .0 > 0)
        {
            let across = groups * class.shape.rows() * merge_blocks(&self.heads);
            let at_once = self.at_once(across as u64 * merge_flop(plan.most_parts[index]));
            let mut buffers = vec![&partials, out, plan_buffer, lse];
            buffers.extend(sinks);
            for item_first in (0..(*merges).max(1)).step_by(at_once) {
                let params = MergeParams { class_index: index as u32, item_first: item_first as u32 };
                let (y, z) = crate::gpu::grid::fold(at_once.min(merges - item_first));
                self.gpu.dispatch(pass, &class.merge, &params, &buffers, (across as u32, y, z))?;
            }
        }
        Ok(())
    }

    /// Items of one dispatch, of so much work each: a power of two, so that parameters repeat.
    fn at_once(&self, flop: u64) -> usize {
        let fits = (self.gpu.capabilities().dispatch_flop / flop).max(1);
        if fits >= 1 << 31 {
            return usize::MAX;
        }
        1 << fits.ilog2().min(15)
    }

    /// All that the dispatches of a step's layers hang on in its plan.
    pub(crate) fn extend_key(&self, plan: &Plan, key: &mut Vec<u64>) {
        key.extend(plan.buffer.as_ref().map(|plan| plan.buffer.id()));
        for (index, (class, (items, merges))) in self.classes.iter().zip(&plan.counts).enumerate() {
            let flop = token_flop(&self.heads, &class.shape).saturating_mul(u64::from(plan.longest[index]).max(1));
            let across = self.heads.groups() * class.shape.rows() * merge_blocks(&self.heads);
            let merge = self.at_once(across as u64 * merge_flop(plan.most_parts[index]));
            let numbers = [*items, *merges, plan.forms[index] as usize, self.at_once(flop), merge];
            key.extend(numbers.map(|n| n as u64));
        }
    }

    fn check<'a>(&self, args: &DecodeArgs<'a>) -> Result<&'a Buffer> {
        let DecodeArgs { plan, layer, q, softmax_scale, sinks } = *args;
        let foreign = || ErrorKind::argument("plan", "was made by another Decode");
        if !Arc::ptr_eq(&plan.home, &self.plans) {
            return Err(foreign());
        }
        let generation = layer.generation();
        if plan.generation != generation {
            return Err(ErrorKind::StalePlan { plan: plan.generation, cache: generation }.into());
        }
        if layer.heads != self.heads || layer.dtype != self.dtype {
            let why = format!(
                "caches {:?} as {}, the kernel was made for {:?} as {}",
                layer.heads, layer.dtype, self.heads, self.dtype
            );
            return Err(ErrorKind::argument("layer", why));
        }
        if plan.page_size != layer.page_size {
            let why = format!("has pages of {} tokens, the plan is for pages of {}", layer.page_size, plan.page_size);
            return Err(ErrorKind::argument("layer", why));
        }
        if plan.max_page as usize >= layer.pool.pages() {
            let why = format!("page {} of the plan is not among its {} pages", plan.max_page, layer.pool.pages());
            return Err(ErrorKind::argument("layer", why));
        }
        if !softmax_scale.is_finite() {
            return Err(ErrorKind::argument("softmax_scale", format!("{softmax_scale} is not finite")));
        }
        let (tokens, heads) = (plan.tokens, self.heads.q_heads());
        match sinks {
            Some(sinks) if self.options.sinks => sinks.expect("sinks", &[heads], DType::F32)?,
            None if !self.options.sinks => {}
            Some(_) => return Err(ErrorKind::argument("sinks", "were given, the Decode was made without")),
            None => return Err(ErrorKind::argument("sinks", "were not given, the Decode was made with them")),
        }
        q.expect("q", &[tokens, heads, self.heads.q_dim()], DType::F32)?;
        plan.buffer.as_ref().map(|plan| &plan.buffer).ok_or_else(foreign)
    }
}
