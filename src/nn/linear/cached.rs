//! A product that makes new rows of a cache, of its outputs or of what lies beside its input: rotated and stored where they belong,
//! in one dispatch.

use super::blocks::BlockType;
use super::shape::{Fusion, LinearTuning, Shape};
use super::Linear;
use crate::error::{shape_text, ErrorKind, Result};
use crate::gpu::elements::pack_part;
use crate::gpu::{number, part, Capabilities, Consts, DType, KernelSpec, ShaderPart, Tensor};
use crate::kv::append::{rotated_dim, row_consts};
use crate::kv::{HeadLayout, KvView, StateLayout};
use crate::nn::rope::pairs_part;
use crate::nn::NormShape;
use crate::rope::RopePairs;

/// Where a [`Linear`] made by [`Linear::with_append`] puts new rows.
#[derive(Debug, Clone, Copy)]
pub struct AppendRows<'a> {
    /// Of the layout, dtype and page size that the linear was made for.
    pub layer: &'a KvView,
    /// (rows) U32: `page * page_size + offset` ([`KvBatch::slots`](crate::KvBatch)), one for each row. Rows whose slot is past the pool are
    /// written nowhere.
    pub slots: &'a Tensor,
}

/// What is cached, and how. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CachedOutputs {
    pub(crate) heads: HeadLayout,
    pub(crate) dtype: DType,
    pub(crate) page_size: usize,
    pub(crate) pairs: RopePairs,
    /// Buffers that a layer's pages lie in.
    pub(crate) slabs: usize,
}

/// Outputs that are rotated and packed together.
const UNIT: usize = 4;

impl CachedOutputs {
    fn of(layer: &KvView, pairs: RopePairs) -> Self {
        let KvView { heads, dtype, page_size, .. } = *layer;
        CachedOutputs { heads, dtype, page_size, pairs, slabs: layer.pool.buffers().len() }
    }

    /// Outputs of a row: queries, then what is cached.
    fn outputs(&self) -> usize {
        self.heads.q_heads() * self.heads.q_dim() + self.heads.kv_dim()
    }

    /// Elements of a rotated span.
    pub(super) fn rotated(&self) -> usize {
        rotated_dim(&self.heads, self.pairs)
    }

    /// Why this cannot be, if it cannot. `rest`: of a row that lies beside the product's input.
    fn refusal(&self, capabilities: &Capabilities, rest: bool) -> Option<String> {
        let CachedOutputs { heads, dtype, slabs, .. } = *self;
        let layout = StateLayout::new(&heads, dtype);
        let whole = |dim: usize| dim.is_multiple_of(layout.elems_per_word.max(UNIT));
        let rotated = self.rotated();
        let parts = [heads.nope_dim(), heads.v_dim(), heads.rope_dim(), heads.state_dim()];
        let buffers = if rest { 10 } else { 9 } + slabs - 1;
        if layout.spans > 0 {
            return Some(format!("{dtype}: a scale needs the whole of a row"));
        }
        if !parts.into_iter().all(whole) || !rotated.is_multiple_of(UNIT) || !heads.q_dim().is_multiple_of(UNIT) {
            return Some(format!("{heads:?} in {dtype}: its parts are not whole words of 16 bytes"));
        }
        let most = capabilities.max_storage_buffers as usize;
        (buffers > most).then(|| format!("{buffers} storage buffers, the device binds {most}"))
    }

    pub(super) fn consts(&self) -> Consts {
        let CachedOutputs { heads, dtype, page_size, pairs, .. } = *self;
        let mut consts = row_consts(&heads, dtype, page_size, pairs);
        consts.extend([
            ("Q_HEADS", number(heads.q_heads())),
            ("Q_DIM", number(heads.q_dim())),
            ("PACKED", number(4 * UNIT / dtype.per_vec4())),
            ("ROTATED", number(self.rotated())),
        ]);
        consts
    }

    /// The parts beside those of a plain product, but for the slots `nn/output`, `nn/rows_end` and `nn/beside`; for pages in one
    /// buffer. `rest`: of a row that lies beside the product's input.
    pub(super) fn parts(&self, rest: bool) -> Result<Vec<ShaderPart>> {
        let unit = match self.pairs {
            RopePairs::Interleaved => part!("nn/unit/interleaved.wgsl"),
            RopePairs::None | RopePairs::Half => part!("nn/unit/half.wgsl"),
        };
        let mut parts = if rest { Vec::new() } else { vec![unit, part!("nn/cached_place.wgsl")] };
        parts.extend([
            pairs_part(self.pairs),
            pack_part(self.dtype)?,
            part!("kv/slabs/1.wgsl"),
            part!("kv/page.wgsl"),
            part!("kv/slab_stores/1.wgsl"),
        ]);
        Ok(parts)
    }
}

impl LinearTuning {
    /// The same with whole units of outputs in each workgroup; of lanes that share nothing, in each lane.
    pub(super) fn for_units(self) -> Self {
        let mut tuning = self;
        if tuning.in_lanes == 1 {
            return LinearTuning { outs: UNIT, ..tuning };
        }
        while tuning.outs * tuning.out_lanes < UNIT {
            match tuning.in_lanes * tuning.out_lanes <= 128 {
                true => tuning.out_lanes *= 2,
                false => tuning.outs *= 2,
            }
        }
        tuning
    }
}

impl Linear {
    /// The same whose outputs are the queries of a layer and its new cached rows, `[q_heads x q_dim | kv_dim]` of
    /// `layer`'s layout, rotated by `pairs` on the way: queries go to [`LinearArgs::y`](super::LinearArgs), rows into their pages.
    /// So one dispatch does what a product, a [`RopeKernel`](crate::nn::RopeKernel) and an
    /// [`Append`](crate::kv::Append) do. The last `rotated_dim` elements of each query are rotated
    /// ([`HeadLayout::rotated_dim`]), and of a row what [`Append`](crate::kv::Append) rotates. Each call takes up to
    /// [`LinearTuning::max_rows`] rows, and gives [`LinearArgs::cos_sin`](super::LinearArgs) and
    /// [`LinearArgs::append`](super::LinearArgs).
    ///
    /// After [`Linear::with_rest`] it is the rest that is cached, and the outputs are what they were: the latents of GLA and MLA, whose
    /// norm that is, and their rope key, rotated. [`LinearArgs::rest`](super::LinearArgs) is then not given.
    ///
    /// ```no_run
    /// # use latten::nn::{AppendRows, Linear, LinearArgs, Span};
    /// # use latten::{rope::RopePairs, PagedKvCache, SeqId, Tensor};
    /// # fn f(qkv: Linear, cache: &mut PagedKvCache, seq: SeqId, slots: &Tensor, x: &Tensor, q: &Tensor) -> latten::Result<()> {
    /// let layer = cache.layer(0)?;
    /// let qkv = qkv.with_append(&layer, RopePairs::Half)?; // once
    /// let cos_sin = cache.cos_sin(&[seq])?; // of the reserved token
    /// let args = LinearArgs::new(1, Span::of(x), Span::of(q)); // q: (1, q_heads, q_dim)
    /// qkv.run(LinearArgs { cos_sin: Some(&cos_sin), append: Some(AppendRows { layer: &layer, slots }), ..args })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`] for a matrix of other outputs or of several heads, or a rest of other widths than the cached states and rope
    /// key; [`ErrorKind::Argument`] beside SwiGLU, a tail or a scale; [`ErrorKind::Unsupported`] for a cache of integers, rows that are not
    /// whole words of 16 bytes, or more storage buffers than the device binds.
    pub fn with_append(self, layer: &KvView, pairs: RopePairs) -> Result<Self> {
        let cached = CachedOutputs::of(layer, pairs);
        self.check_widths(&cached)?;
        if self.swiglu || self.tail.is_some() || self.changes_outputs() {
            return Err(ErrorKind::argument("append", "this linear has SwiGLU, a tail, a scale or a softcap"));
        }
        if let Some(why) = cached.refusal(self.gpu.capabilities(), self.rest.is_some()) {
            return Err(ErrorKind::Unsupported { what: format!("an append in a product: {why}") }.into());
        }
        let tunings = match self.rest {
            Some(_) => self.tunings,
            None => self.tunings.map(LinearTuning::for_units),
        };
        let tiles = Vec::new();
        Ok(Linear { cached: Some(cached), tunings, tiles, ..self }.without_kernels())
    }

    /// Whether what is to be cached is as wide as a row of the cache.
    fn check_widths(&self, cached: &CachedOutputs) -> Result<()> {
        let heads = &cached.heads;
        if let Some(norm) = &self.rest {
            let NormShape { groups, dim, tail, .. } = norm.shape();
            let want = [heads.groups(), heads.state_dim(), heads.rope_dim()];
            let fits = [groups, dim, tail] == want && cached.rotated() <= tail;
            let text = || format!("(groups, dim, tail) {}, a cached row of {heads:?}", shape_text(&want));
            return if fits { Ok(()) } else { Err(ErrorKind::shape("rest", &[groups, dim, tail], text())) };
        }
        let w = &self.weight;
        if w.heads() != 1 || w.out_dim() != cached.outputs() {
            let want = format!("(1,{},_), queries and cached rows of {heads:?}", cached.outputs());
            return Err(ErrorKind::shape("weight", &[w.heads(), w.out_dim(), w.in_dim()], want));
        }
        Ok(())
    }

    /// Whether [`Linear::with_append`] takes such a layer, as far as the layer and the device go.
    pub(crate) fn takes_append(&self, layer: &KvView, pairs: RopePairs) -> bool {
        CachedOutputs::of(layer, pairs).refusal(self.gpu.capabilities(), self.rest.is_some()).is_none()
    }

    /// Whether a place for new rows is there where, and only where, there is one to be; and whether it is as it was to be.
    pub(super) fn check_append<'a>(
        &self,
        rows: usize,
        append: Option<AppendRows<'a>>,
    ) -> Result<Option<AppendRows<'a>>> {
        let Some(cached) = &self.cached else {
            return match append {
                None => Ok(None),
                Some(_) => Err(ErrorKind::argument("append", "this linear has none")),
            };
        };
        let Some(append) = append else {
            return Err(ErrorKind::argument("append", "this linear has one, which needs a layer"));
        };
        let most = self.tuning(rows).max_rows;
        if rows > most {
            return Err(ErrorKind::argument("rows", format!("{rows}, a product that appends takes up to {most}")));
        }
        let got = CachedOutputs::of(append.layer, cached.pairs);
        if got != *cached {
            let why = format!("is {got:?}, the linear was made for {cached:?}");
            return Err(ErrorKind::argument("layer", why));
        }
        append.slots.expect("slots", &[0], DType::U32)?;
        if append.slots.len() < rows {
            return Err(ErrorKind::shape("slots", append.slots.shape(), format!("at least {}", shape_text(&[rows]))));
        }
        Ok(Some(append))
    }
}

/// Kernel texts of every slot, for software adapters and GPUs of either tier.
pub(super) fn specs([software, subgroups, portable]: [LinearTuning; 3]) -> Result<Vec<(String, KernelSpec)>> {
    use crate::kv::{Gla, Gqa, Gta};
    let gqa = HeadLayout::gqa(Gqa { q_heads: 16, kv_heads: 4, head_dim: 128 })?;
    let gta = HeadLayout::gta(Gta { q_heads: 16, kv_heads: 4, head_dim: 128, rope_dim: 64 })?;
    let f16 = CachedOutputs { heads: gqa, dtype: DType::F16, page_size: 64, pairs: RopePairs::Half, slabs: 1 };
    let all = [
        f16,
        CachedOutputs { heads: gta, pairs: RopePairs::Interleaved, ..f16 },
        CachedOutputs { dtype: DType::F32, slabs: 2, ..f16 },
        CachedOutputs { dtype: DType::BF16, slabs: 4, pairs: RopePairs::Interleaved, ..f16 },
        CachedOutputs { pairs: RopePairs::None, ..f16 },
    ];
    let mut specs = Vec::new();
    for cached in all {
        let fusion = Fusion { norm: true, cached: Some(cached), ..Default::default() };
        let one = |tuning| LinearTuning { outs: 1, steps: 2, ..tuning };
        for (dtype, rows, tuning) in [
            (DType::F16, 1, software),
            (DType::F16, 1, one(subgroups)),
            (DType::F16, 4, subgroups),
            (DType::I8, 1, one(portable)),
            (DType::I8, 4, portable),
        ] {
            specs.push((dtype.to_string(), Shape::Rows(rows).spec(&tuning.for_units(), dtype, true, fusion)?));
        }
        for tuning in [software, subgroups] {
            let block = BlockType::Q4_0;
            specs.push((block.to_string(), Shape::Rows(1).spec(&tuning.for_units(), block, true, fusion)?));
        }
    }
    let gla = HeadLayout::gla(Gla { q_heads: 16, latent_heads: 2, latent_dim: 256, rope_dim: 64 })?;
    let gla = CachedOutputs { heads: gla, ..f16 };
    for cached in [gla, CachedOutputs { dtype: DType::F32, pairs: RopePairs::Interleaved, slabs: 2, ..gla }] {
        let fusion = Fusion { norm: true, rest: true, cached: Some(cached), ..Default::default() };
        for (dtype, rows, tuning) in [(DType::F16, 1, software), (DType::F16, 4, subgroups), (DType::I8, 4, portable)] {
            specs.push((dtype.to_string(), Shape::Rows(rows).spec(&tuning, dtype, true, fusion)?));
        }
    }
    Ok(specs)
}
