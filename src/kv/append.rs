//! Append: new tokens' rows into their pages, the key part rotated on the way. Kernel: `shaders/kv/append.wgsl`.

use super::layout::{KvView, StateLayout};
use super::pool::PoolKernel;
use super::HeadLayout;
use crate::error::{shape_text, ErrorKind, Result};
use crate::gpu::elements::pack_part;
use crate::gpu::{number, part, Access, Consts, DType, Extent, Gpu, KernelSpec, Span, Tensor};
use crate::rope::RopePairs;

/// The append kernel of one head layout, dtype and page size.
#[derive(Debug, Clone)]
pub struct Append {
    kernel: PoolKernel,
    heads: HeadLayout,
    dtype: DType,
    page_size: usize,
    rotation: RopePairs,
    /// Workgroups per token.
    x: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct AppendParams {
    pub(crate) token_count: u32,
    pub(crate) slot_count: u32,
    pub(crate) slab_pages: u32,
    pub(crate) kv_offset: u32,
    pub(crate) kv_row_stride: u32,
}

/// One append: the rows and where they go.
#[derive(Debug, Clone, Copy)]
pub struct AppendArgs<'a> {
    /// `(tokens, groups * state_dim + rope_dim)` f32: states, then the rope key. [`Span::of`] a tensor, or rows inside of one.
    pub kv: Span<'a>,
    /// `(tokens)` u32: `page * page_size + offset`.
    pub slots: &'a Tensor,
    /// `(tokens, rotated_dim / 2, 2)` f32 cosines and sines at the tokens' positions ([`Append::rotated_dim`],
    /// [`cos_sin_table`](crate::rope::cos_sin_table)); for [`RopePairs::None`] any f32 tensor.
    pub cos_sin: &'a Tensor,
    /// Tokens to append; the tensors may hold more.
    pub tokens: usize,
}

impl Append {
    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a rotation of an odd width, or a page size that is no power of two up to 4096;
    /// [`ErrorKind::DType`], also for wide channels ([`HeadLayout::gqa_wide`]) in a dtype that is not of integers.
    pub fn new(gpu: &Gpu, heads: HeadLayout, dtype: DType, page_size: usize, rotation: RopePairs) -> Result<Self> {
        let spec = append_spec(&heads, dtype, page_size, rotation)?;
        let layout = StateLayout::new(&heads, dtype);
        let x = match layout.spans {
            0 => (4 * layout.row_words(heads.groups())).div_ceil(64),
            // Wide channels are written with their keys.
            spans => heads.groups() * spans + usize::from(heads.narrow().rope_dim() > 0),
        };
        Ok(Self { kernel: PoolKernel::new(gpu, spec)?, heads, dtype, page_size, rotation, x: x as u32 })
    }

    /// Elements that are rotated: the rope key, or where there is none the whole key of each head (GQA) or nothing (a
    /// tied state); 0 for [`RopePairs::None`].
    pub fn rotated_dim(&self) -> usize {
        rotated_dim(&self.heads, self.rotation)
    }

    /// Compiles the kernel for pages in slabs, if those of `layer` are: [`Append::new`] does not, and the first append of such
    /// a layer would.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub fn prepare(&self, gpu: &Gpu, layer: &KvView) -> Result<()> {
        self.kernel.of(gpu, layer.pool.buffers().len()).map(|_| ())
    }

    /// How keys are rotated on their way.
    pub(crate) fn rotation(&self) -> RopePairs {
        self.rotation
    }

    /// Records the append of `args` into `layer`.
    ///
    /// The slots must come from the cache that owns `layer` ([`super::KvBatch::slots`]); they are checked against
    /// the pool, not a sequence: of a token whose slot is past the pool nothing is written. f16 caches take values beyond +-65,504 as +-65,504, bf16 caches
    /// those beyond +-3.39e38 as that. i8 caches round a state to 127 steps of its largest value (key and value apart where they
    /// are), i4 caches to 7, and both keep rope keys as f16.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a layer of another layout, dtype or page size, or with wide channels that nobody
    /// has named ([`PagedKvCache::with_wide_channels`](crate::PagedKvCache)); [`ErrorKind::Shape`], [`ErrorKind::DType`].
    pub fn encode(
        &self,
        gpu: &Gpu,
        pass: &mut wgpu::ComputePass<'_>,
        layer: &KvView,
        args: AppendArgs<'_>,
    ) -> Result<()> {
        self.check(layer, &args)?;
        let AppendArgs { kv, slots, cos_sin, tokens } = args;
        let params = AppendParams {
            token_count: tokens as u32,
            slot_count: layer.slot_count() as u32,
            slab_pages: layer.pool.slab_pages() as u32,
            kv_offset: kv.offset as u32,
            kv_row_stride: kv.row_stride as u32,
        };
        let (y, z) = crate::gpu::grid::fold(tokens);
        let slabs = layer.pool.buffers();
        let mut buffers = vec![&kv.tensor.buffer, &slots.buffer, &cos_sin.buffer];
        buffers.extend(&slabs);
        if self.heads.wide_dim() > 0 {
            buffers.insert(4, &layer.wide()?.buffer); // before the further slabs
        }
        gpu.dispatch(pass, self.kernel.of(gpu, slabs.len())?, &params, &buffers, (self.x, y, z))
    }

    fn check(&self, layer: &KvView, args: &AppendArgs<'_>) -> Result<()> {
        if layer.heads != self.heads || layer.dtype != self.dtype || layer.page_size != self.page_size {
            let why = format!(
                "is {:?} {} page {}, the kernel was made for {:?} {} page {}",
                layer.heads, layer.dtype, layer.page_size, self.heads, self.dtype, self.page_size
            );
            return Err(ErrorKind::argument("layer", why));
        }
        args.kv.check("kv", Extent { rows: args.tokens.max(1), heads: 1, dim: self.heads.kv_dim() })?;
        args.slots.expect("slots", &[0], DType::U32)?;
        if args.tokens > args.slots.len() {
            return Err(ErrorKind::shape(
                "slots",
                args.slots.shape(),
                format!("at least {}", shape_text(&[args.tokens])),
            ));
        }
        let needed = args.tokens * self.rotated_dim();
        if args.cos_sin.dtype() != DType::F32 || args.cos_sin.len() < needed {
            let want = format!("({},{},2) f32", args.tokens, self.rotated_dim() / 2);
            return Err(ErrorKind::shape("cos_sin", args.cos_sin.shape(), want));
        }
        Ok(())
    }
}

/// Elements that are rotated: [`Append::rotated_dim`].
pub(crate) fn rotated_dim(heads: &HeadLayout, rotation: RopePairs) -> usize {
    match rotation {
        RopePairs::None => 0,
        RopePairs::Half | RopePairs::Interleaved => heads.rotated_dim(),
    }
}

/// What frequencies a rotation of a layout wants, and whence.
pub(crate) fn frequencies_text(heads: &HeadLayout, rotation: RopePairs) -> String {
    let what = match (rotation, heads.narrow().rope_dim()) {
        (RopePairs::None, _) => "none with RopePairs::None".into(),
        (_, 0) if heads.rotated_dim() == 0 => "none: this layout has no rope key, and its states are values too".into(),
        (_, 0) => format!("half of head_dim {}: GQA rotates the whole key of a head", heads.rotated_dim()),
        (_, rope_dim) => format!("half of rope_dim {rope_dim}"),
    };
    let pairs = if rotation == RopePairs::None { 0 } else { heads.rotated_dim() / 2 };
    format!("({pairs}), {what}; HeadLayout::rotated_dim() is what Rope::new takes")
}

/// What writing a row hangs on: its layout, its place in a page, what of it is rotated.
pub(crate) fn row_consts(heads: &HeadLayout, dtype: DType, page_size: usize, rotation: RopePairs) -> Consts {
    let layout = StateLayout::new(heads, dtype);
    let rotated = rotated_dim(heads, rotation);
    let (rotated_state, rotated_rope) = if heads.narrow().rope_dim() == 0 { (rotated, 0) } else { (0, rotated) };
    let [spans, scale_words] = layout.scale_consts();
    vec![
        spans,
        scale_words,
        ("GROUPS", number(heads.groups())),
        ("STATE_DIM", number(heads.state_dim())),
        ("KEY_DIM", number(heads.nope_dim())),
        ("ROPE_DIM", number(heads.narrow().rope_dim())),
        ("WIDE_DIM", number(heads.wide_dim())),
        ("VALUE_FIRST", number(layout.value_first)),
        ("VALUE_DIM", number(heads.v_dim())),
        ("STATE_WORDS", number(layout.state_words)),
        ("ROPE_WORDS", number(layout.rope_words)),
        ("PAGE_SIZE", number(page_size)),
        ("ELEMS_PER_U32", number(layout.elems_per_word / 4)),
        ("ROTATED_STATE", number(rotated_state)),
        ("ROTATED_ROPE", number(rotated_rope)),
    ]
}

/// Tokens of a page, at most.
pub(crate) const MAX_PAGE_SIZE: usize = 4096;

pub(crate) fn append_spec(
    heads: &HeadLayout,
    dtype: DType,
    page_size: usize,
    rotation: RopePairs,
) -> Result<KernelSpec> {
    if !page_size.is_power_of_two() || page_size > MAX_PAGE_SIZE {
        let why = format!("{page_size} is not a power of two up to {MAX_PAGE_SIZE}");
        return Err(ErrorKind::argument("page_size", why));
    }
    let layout = StateLayout::new(heads, dtype);
    if heads.wide_dim() > 0 && layout.spans == 0 {
        let want = "i8 or i4, where keys have wide channels";
        return Err(ErrorKind::DType { name: "dtype", got: dtype.to_string(), want: want.into() }.into());
    }
    let rotated = rotated_dim(heads, rotation);
    if !rotated.is_multiple_of(2) {
        return Err(ErrorKind::argument("head_dim", format!("{rotated} elements cannot be rotated in pairs")));
    }
    let pack = pack_part(dtype)?;
    let rope = match rotation {
        RopePairs::Interleaved => part!("rope/interleaved.wgsl"),
        RopePairs::None | RopePairs::Half => part!("rope/half.wgsl"),
    };
    let scaled = layout.spans > 0;
    let (name, main) = match scaled {
        false => ("append", part!("kv/append.wgsl")),
        true => ("append_scaled", part!("kv/append_scaled.wgsl")),
    };
    let wide = heads.wide_dim();
    let mut bindings = vec![Access::Read, Access::Read, Access::Read, Access::Write];
    bindings.extend((wide > 0).then_some(Access::Read));
    Ok(KernelSpec {
        name,
        consts: row_consts(heads, dtype, page_size, rotation),
        parts: vec![
            pack,
            rope,
            part!("kv/slabs/1.wgsl"),
            part!("kv/page.wgsl"),
            part!("kv/append_row.wgsl"),
            if wide > 0 { part!("kv/wide/channels.wgsl") } else { part!("kv/wide/none.wgsl") },
            part!("kv/slab_stores/1.wgsl"),
            main,
        ],
        bindings,
        workgroup_bytes: if scaled { 4 * 64 + 4 * wide } else { 0 },
    })
}
