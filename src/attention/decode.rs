//! Decode: attention of a step's query tokens over the paged cache. Kernels: `shaders/decode.wgsl`, `merge.wgsl`.

use super::balance::most_slots;
use super::kernels::{kernel_spec, merge_blocks, merge_spec};
use super::layout::{KvView, StateLayout};
use super::options::AttentionOptions;
use super::plan::{self, PlanShape, SplitPolicy, Step, WorkList};
use super::plan_buffer::{self, Entries, Home, PlanBuffer};
use super::pool::PoolKernel;
use super::select::{Device, KernelShape};
use super::tables::PageTables;
use super::view::{KvSource, Resident};
use super::HeadLayout;
use crate::error::{ErrorKind, Result};
use crate::gpu::{Buffer, DType, Gpu, Kernel, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// The decode kernels of one head layout and cache dtype, with their scratch. Everything is compiled in `new`.
///
/// ```no_run
/// # use latten::*;
/// # async fn f(gpu: Gpu, mut cache: PagedKvCache, seq: SeqId, q: Tensor, heads: HeadLayout) -> Result<()> {
/// let decode = Decode::new(&gpu, heads, DType::F16)?;
/// cache.reserve(&[seq], 1)?;
/// let plan = decode.plan(&cache, &[seq])?; // once per step, for all layers
/// let result = decode.run(&plan, &cache.layer(0)?, &q, 0.0625)?;
/// let values = gpu.download(&result.out).await?;
/// # Ok(()) }
/// ```
pub struct Decode {
    gpu: Gpu,
    heads: HeadLayout,
    dtype: DType,
    options: AttentionOptions,
    policy: SplitPolicy,
    shape: PlanShape,
    classes: Vec<Class>,
    plans: Home,
    partials: Mutex<Buffer>,
    outputs: Mutex<Vec<DecodeOutput>>,
}

/// The two kernels of one row tile.
struct Class {
    shape: KernelShape,
    decode: PoolKernel,
    merge: Kernel,
}

/// The work of one step: which workgroup reads which tokens of which sequence. Made once, used by every layer.
///
/// Keep it until the passes that use it are submitted: dropped, its buffer serves the next plan.
pub struct Plan {
    buffer: Option<PlanBuffer>,
    home: Home,
    generation: u64,
    tokens: usize,
    /// Per class: work items and merge items.
    counts: Vec<(usize, usize)>,
    workgroups: usize,
    partial_rows: usize,
    max_page: u32,
}

/// Results of a decode. Dropped, the memory serves a later call of the same [`Decode`].
#[derive(Debug, Clone)]
pub struct DecodeOutput {
    /// `(tokens, q_heads, v_dim)` f32: zeros where no token is visible.
    pub out: Tensor,
    /// `(tokens, q_heads)` f32: natural log of the sum of exponentials of the scaled scores; -inf where no token is
    /// visible.
    pub lse: Tensor,
}

/// Arguments of [`Decode::encode`].
#[derive(Clone, Copy)]
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
    /// Where the results go.
    pub output: &'a DecodeOutput,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct DecodeParams {
    pub(crate) scale_log2: f32,
    pub(crate) page_count: u32,
    pub(crate) page_shift: u32,
    pub(crate) class_index: u32,
    pub(crate) slab_pages: u32,
}

impl Decode {
    /// Compiles the kernels.
    ///
    /// Errors: [`ErrorKind::Unsupported`] for a state too large for the device's workgroup memory,
    /// [`ErrorKind::DType`] for a dtype that is no cache dtype.
    pub fn new(gpu: &Gpu, heads: HeadLayout, dtype: DType) -> Result<Self> {
        Self::with_options(gpu, heads, dtype, AttentionOptions::default())
    }

    /// Compiles the kernels with options.
    ///
    /// Errors: as [`Decode::new`]; [`ErrorKind::Argument`] for an option out of range.
    pub fn with_options(gpu: &Gpu, heads: HeadLayout, dtype: DType, options: AttentionOptions) -> Result<Self> {
        options.check()?;
        let layout = StateLayout::new(&heads, dtype);
        let shapes = KernelShape::all(&heads, dtype, &Device::of(gpu.capabilities()))?;
        let mut classes = Vec::new();
        for &shape in &shapes {
            let decode = PoolKernel::new(gpu, kernel_spec(&heads, dtype, &options, &shape)?)?;
            let merge = gpu.kernel(merge_spec(&heads, &options, shape.rows()))?;
            classes.push(Class { shape, decode, merge });
        }
        let shape = PlanShape {
            heads_per_group: heads.heads_per_group(),
            groups: heads.groups(),
            v_dim: heads.v_dim(),
            bytes_per_token: layout.group_bytes(),
            row_tiles: shapes.iter().map(KernelShape::rows).collect(),
            groups_per_workgroup: shapes.iter().map(KernelShape::groups_per_workgroup).collect(),
            room: shapes.iter().map(KernelShape::room).collect(),
            target_workgroups: gpu.capabilities().target_workgroups,
            token_tile: shapes.iter().map(KernelShape::tokens).max().unwrap_or(1),
            window: options.window_tokens(),
            keep_first: options.first_tokens(),
        };
        let partials = Mutex::new(gpu.create_buffer("partials", 16)?);
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

    /// The same with another count of workgroups that fill the device, at least 1: what
    /// [`Gpu::measure_parallelism`] found, where the device is the app's own. Default:
    /// [`Capabilities::target_workgroups`](crate::Capabilities).
    pub fn with_target_workgroups(mut self, workgroups: usize) -> Self {
        self.shape.target_workgroups = workgroups.max(1);
        self
    }

    /// Compiles what [`Decode::new`] does not: the kernels for pages in slabs, if those of `layer` are. Without this, the first
    /// decode of such a layer does it.
    ///
    /// Errors: those of the device.
    pub fn prepare(&self, layer: &KvView) -> Result<()> {
        let slabs = layer.pool.buffers().len();
        self.classes.iter().try_for_each(|class| class.decode.of(&self.gpu, slabs).map(|_| ()))
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

    /// Plans a step: each sequence attends from its reserved tokens over everything it holds, those included.
    ///
    /// Valid until any sequence of the cache changes, whichever it is. The plan is uploaded, and what is recorded is
    /// submitted before: so plan before recording the step.
    ///
    /// Errors: unknown or repeated sequences, as the cache says; [`ErrorKind::Argument`] where no token is reserved,
    /// [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`].
    pub fn plan<S: KvSource>(&self, cache: &S, sequences: &[S::Id]) -> Result<Plan> {
        self.plan_masked(cache, sequences, None)
    }

    /// [`Decode::plan`] with a tree mask per query token, for a `Decode` made with [`AttentionOptions::tree`]: bit i of
    /// `masks[t]` says whether query token t sees the i-th of its own sequence's reserved tokens. What was cached before,
    /// every token sees. (With a window, a token sees the last of all these, in a tree its nearest ancestors, and of
    /// the farthest [`AttentionOptions::keep_first`].)
    ///
    /// Masks say who sees whom, not where: rotate queries and keys by the tokens' depths, through [`Append::encode`]
    /// (the cache's own append counts positions along the sequence).
    ///
    /// Errors: as [`Decode::plan`]; [`ErrorKind::Shape`] for another number of masks than query tokens,
    /// [`ErrorKind::Argument`] for more than 64 tokens of one sequence, bits past them, a token that does not see itself, a
    /// `Decode` made without tree masks.
    ///
    /// [`Append::encode`]: super::Append::encode
    pub fn plan_tree<S: KvSource>(&self, cache: &S, sequences: &[S::Id], masks: &[u64]) -> Result<Plan> {
        self.plan_masked(cache, sequences, Some(masks))
    }

    fn plan_masked<S: KvSource>(&self, cache: &S, sequences: &[S::Id], masks: Option<&[u64]>) -> Result<Plan> {
        let resident = cache.resident(sequences)?;
        let (batch, tables, most_page) = match resident {
            Some(Resident { batch, tables, most_page }) => (batch, Some(tables), Some(most_page)),
            None => (cache.batch(sequences)?, None, None),
        };
        let entries = tables.map_or(&batch.page_table[..], PageTables::words);
        if batch.tokens() == 0 {
            return Err(ErrorKind::argument("sequences", "no token is reserved, so there is nothing to attend from"));
        }
        let masks = self.options.masks(&batch.sequences, masks)?;
        let step = Step {
            sequences: &batch.sequences,
            masks: &masks,
            page_size: u32::try_from(cache.page_size()).unwrap_or(0), // which is refused
            page_entries: entries.len(),
        };
        let list = plan::plan_step(&step, &self.shape, self.policy)?;
        self.reserve_partials(&list)?;
        let entries = Entries { words: entries, resident: tables };
        let buffer = plan_buffer::upload(&self.gpu, &self.plans, &list, &masks, &entries)?;
        Ok(Plan {
            buffer: Some(buffer),
            home: self.plans.clone(),
            generation: batch.generation,
            tokens: batch.tokens(),
            counts: list.classes.iter().zip(&list.merge_classes).map(|(c, m)| (c.len(), m.len())).collect(),
            workgroups: (0..).zip(&list.classes).map(|(class, items)| items.len() * self.shape.workgroups(class)).sum(),
            partial_rows: list.partial_rows,
            max_page: most_page.or(batch.page_table.iter().copied().max()).unwrap_or(0),
        })
    }

    /// Grows the scratch for partial results: to what the plan needs, and at once to what Auto may need when the same
    /// sequences have grown, so that a decode loop allocates nothing after its first step.
    fn reserve_partials(&self, list: &WorkList) -> Result<()> {
        let row_bytes = 4 * (self.heads.v_dim() + 1) * self.heads.groups();
        let mut partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        let auto = self.policy == SplitPolicy::Auto;
        let later = if auto { most_partial_rows(list, &self.shape) } else { 0 };
        let limit = self.gpu.capabilities().max_binding_bytes / row_bytes as u64;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let bytes = (list.partial_rows.max(later.min(limit)) * row_bytes) as u64;
        if bytes > partials.size_bytes() {
            *partials = self.gpu.create_buffer("partials", bytes)?;
        }
        Ok(())
    }

    /// Result tensors for `tokens` query tokens, `(tokens, q_heads, v_dim)` and `(tokens, q_heads)`: memory of an earlier
    /// result that was dropped, or new. What they hold is undefined until a decode wrote it.
    ///
    /// Errors: [`ErrorKind::Shape`] for 0 tokens, [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`].
    pub fn output(&self, tokens: usize) -> Result<DecodeOutput> {
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        let out_shape = [tokens, self.heads.q_heads(), self.heads.v_dim()];
        let fits = |o: &&DecodeOutput| o.out.is_unshared() && o.lse.is_unshared() && o.out.shape()[0] >= tokens;
        if let Some(free) = outputs.iter().filter(fits).min_by_key(|o| o.out.shape()[0]) {
            return Ok(DecodeOutput { out: free.out.view(&out_shape)?, lse: free.lse.view(&out_shape[..2])? });
        }
        outputs.retain(|o| !o.out.is_unshared());
        let out = Tensor::zeros(&self.gpu, &out_shape, DType::F32)?;
        let lse = Tensor::zeros(&self.gpu, &out_shape[..2], DType::F32)?;
        outputs.push(DecodeOutput { out: out.clone(), lse: lse.clone() });
        Ok(DecodeOutput { out, lse })
    }

    /// Records the attention of one layer. `q` and `softmax_scale` as in [`DecodeArgs`].
    ///
    /// Errors: [`ErrorKind::StalePlan`] where plan and layer are of different moments or caches, [`ErrorKind::Shape`],
    /// [`ErrorKind::DType`]; [`ErrorKind::Argument`] for a plan of another `Decode`, a layer of another layout or dtype, a
    /// scale that is not finite, a `Decode` that needs sinks.
    pub fn run(&self, plan: &Plan, layer: &KvView, q: &Tensor, softmax_scale: f32) -> Result<DecodeOutput> {
        let output = self.output(plan.tokens)?;
        self.record(DecodeArgs { plan, layer, q, softmax_scale, sinks: None, output: &output })?;
        Ok(output)
    }

    /// [`Decode::run`] with the layer's sinks, `(q_heads)` f32, for a `Decode` made with [`AttentionOptions::sinks`].
    ///
    /// Errors: as [`Decode::run`]; [`ErrorKind::Argument`] for a `Decode` made without.
    pub fn run_with_sinks(
        &self,
        plan: &Plan,
        layer: &KvView,
        q: &Tensor,
        softmax_scale: f32,
        sinks: &Tensor,
    ) -> Result<DecodeOutput> {
        let output = self.output(plan.tokens)?;
        self.record(DecodeArgs { plan, layer, q, softmax_scale, sinks: Some(sinks), output: &output })?;
        Ok(output)
    }

    fn record(&self, args: DecodeArgs<'_>) -> Result<()> {
        self.check(&args)?;
        self.gpu.record(|pass| self.encode(pass, args))
    }

    /// Records the attention of one layer into a pass of the caller's, on the same device. Keep the plan and the outputs
    /// until the pass is submitted: dropped, their memory serves the next.
    ///
    /// Errors: as [`Decode::run`].
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, args: DecodeArgs<'_>) -> Result<()> {
        let plan_buffer = self.check(&args)?;
        let DecodeArgs { plan, layer, q, softmax_scale, sinks, output } = args;
        let partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (out, lse, groups) = (&output.out.buffer, &output.lse.buffer, self.heads.groups());
        let sinks = sinks.map(|tensor| &tensor.buffer);
        let slabs = layer.pool.buffers();
        for (index, (class, (items, _))) in
            self.classes.iter().zip(&plan.counts).enumerate().filter(|(_, c)| c.1 .0 > 0)
        {
            let params = DecodeParams {
                scale_log2: softmax_scale * std::f32::consts::LOG2_E,
                page_count: layer.pool.pages() as u32,
                page_shift: layer.page_size.ilog2(),
                class_index: index as u32,
                slab_pages: layer.pool.slab_pages() as u32,
            };
            let mut buffers = vec![&slabs[0], &q.buffer, plan_buffer, out, lse, &partials];
            buffers.extend(sinks);
            buffers.extend(&slabs[1..]);
            let (y, z) = plan::fold(*items);
            let x = self.shape.workgroups(index);
            self.gpu.dispatch(pass, class.decode.of(&self.gpu, slabs.len())?, &params, &buffers, (x as u32, y, z))?;
        }
        // Without merges this dispatches nothing; but what it binds is ready when the sequences have grown.
        for (index, (class, (_, merges))) in
            self.classes.iter().zip(&plan.counts).enumerate().filter(|(_, c)| c.1 .0 > 0)
        {
            let (y, z) = plan::fold(*merges);
            let grid = ((groups * class.shape.rows() * merge_blocks(&self.heads)) as u32, y, z);
            let mut buffers = vec![&partials, out, plan_buffer, lse];
            buffers.extend(sinks);
            self.gpu.dispatch(pass, &class.merge, &(index as u32), &buffers, grid)?;
        }
        Ok(())
    }

    fn check<'a>(&self, args: &DecodeArgs<'a>) -> Result<&'a Buffer> {
        let DecodeArgs { plan, layer, q, softmax_scale, sinks, output } = *args;
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
        output.out.expect("out", &[tokens, heads, self.heads.v_dim()], DType::F32)?;
        output.lse.expect("lse", &[tokens, heads], DType::F32)?;
        plan.buffer.as_ref().map(|plan| &plan.buffer).ok_or_else(foreign)
    }
}

impl Plan {
    /// Query tokens of the step, over all sequences.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Work items in all: parts of sequences, each for every group.
    pub fn items(&self) -> usize {
        self.counts.iter().map(|c| c.0).sum()
    }

    /// Workgroups that decode takes in all; a workgroup takes one or more groups of an item.
    pub fn workgroups(&self) -> usize {
        self.workgroups
    }

    /// Whether some sequence is split, so that a merge follows.
    pub fn is_split(&self) -> bool {
        self.partial_rows > 0
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.home.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }
}

/// Partial rows that Auto may need for batches like this one: each of its classes may use so many slots.
fn most_partial_rows(list: &WorkList, shape: &PlanShape) -> usize {
    let used = list.classes.iter().zip(&shape.row_tiles).enumerate().filter(|(_, (items, _))| !items.is_empty());
    used.map(|(class, (_, rows))| most_slots(shape.slots(class), shape.workgroups(class)).saturating_mul(*rows))
        .fold(0, usize::saturating_add)
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
