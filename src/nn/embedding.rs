//! Rows of a table by their ids.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{params, word, Weight, WeightType};
use crate::error::{ErrorKind, Result};
use crate::gpu::check_apart;
use crate::gpu::elements::elements_part;
use crate::gpu::{number, part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};

params!(Params { dim: u32, row_words: u32, table_rows: u32, first_row: u32, part_rows: u32, scale: f32 });
#[cfg(test)]
pub(super) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

pub(super) fn spec(kind: impl Into<WeightType>) -> Result<KernelSpec> {
    let kind = kind.into();
    if let WeightType::Plain(dtype) = kind {
        elements_part(dtype)?; // no scales of rows
    }
    let (mut parts, mut consts) = kind.parts()?;
    consts.extend([("VECS_PER_WORD", number(kind.per_word().wrapping_div(4))), ("SCALES_BINDING", number(4))]);
    parts.push(part!("nn/embedding.wgsl"));
    let bindings = vec![Access::Read, Access::Read, Access::Write, Access::Read];
    Ok(KernelSpec { name: "embedding", consts, parts, bindings, workgroup_bytes: 0 })
}

/// `y[r, :] = scale table[ids[r], :]`, the scale 1 unless it is given. The table may be the weight of a tied head, or (with [`Weight::from_rows`])
/// activations of which a few rows are wanted.
#[derive(Debug, Clone)]
pub struct Embedding {
    gpu: Gpu,
    /// Rows below one another, of one width and dtype.
    parts: Vec<Weight>,
    scale: f32,
    kernel: Kernel,
}

impl Embedding {
    /// Compiles the kernel. `table` has one head.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for several.
    pub fn new(gpu: &Gpu, table: &Weight) -> Result<Self> {
        Self::of_parts(gpu, std::slice::from_ref(table))
    }

    /// [`Embedding::new`] of a table that is more than the device binds at once: `parts` are its rows, the first ones first,
    /// each of one head. One dispatch each.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for none, for several heads, and for parts of different widths or dtypes.
    pub fn of_parts(gpu: &Gpu, parts: &[Weight]) -> Result<Self> {
        let first = parts.first().ok_or_else(|| ErrorKind::argument("parts", "a table has at least one"))?;
        let kind = |part: &Weight| (part.in_dim(), part.weight_type());
        for part in parts {
            if part.heads() != 1 {
                return Err(ErrorKind::argument("table", format!("{} heads, a table has 1", part.heads())));
            }
            if kind(part) != kind(first) {
                let text = |part: &Weight| format!("rows of {} in {}", part.in_dim(), part.weight_type());
                return Err(ErrorKind::argument("parts", format!("{} beside {}", text(part), text(first))));
            }
        }
        let rows: usize = parts.iter().map(Weight::out_dim).sum();
        if rows > u32::MAX as usize {
            return Err(ErrorKind::argument("parts", format!("{rows} rows are past 32 bits")));
        }
        let kernel = gpu.kernel(spec(first.weight_type())?)?;
        Ok(Embedding { gpu: gpu.clone(), parts: parts.to_vec(), scale: 1.0, kernel })
    }

    /// The same with rows multiplied by a number, as Granite and Gemma do with their embeddings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for what is not finite.
    pub fn with_scale(self, scale: f32) -> Result<Self> {
        match scale.is_finite() {
            true => Ok(Embedding { scale, ..self }),
            false => Err(ErrorKind::argument("scale", format!("{scale} is not finite"))),
        }
    }

    /// The table, in one part but where it was made of several.
    pub fn parts(&self) -> &[Weight] {
        &self.parts
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(Weight::out_dim).sum()
    }

    /// Fails if an id is not a row of the table; the kernel itself clamps.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`].
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let rows = self.rows();
        match ids.iter().enumerate().find(|(_, id)| **id as usize >= rows) {
            None => Ok(()),
            Some((i, id)) => Err(ErrorKind::argument("ids", format!("entry {i} is {id}, the table has {rows} rows"))),
        }
    }

    /// Records; `ids` is (rows) U32, `y` (rows, dim) F32, in another buffer than ids and table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, ids: &Tensor, y: &Tensor) -> Result<()> {
        ids.expect("ids", &[0], DType::U32)?;
        let (rows, width) = (ids.len(), self.parts.first().map(|part| (part.in_dim(), part.row_words())));
        let (dim, row_words) = width.unwrap_or_default();
        y.expect("y", &[rows, dim], DType::F32)?;
        let inputs: Vec<&Tensor> = self.parts.iter().map(|part| &part.tensor).chain([ids]).collect();
        check_apart("y", y, &inputs)?;
        if y.len() > u32::MAX as usize {
            return Err(ErrorKind::shape("y", y.shape(), "fewer than 2^32 elements"));
        }
        let grid = (word(row_words.div_ceil(64)), word(rows), 1);
        let mut first = 0usize;
        for part in &self.parts {
            let (table_rows, part_rows) = (word(self.rows()), word(part.out_dim()));
            let params = Params {
                dim: word(dim),
                row_words: word(row_words),
                table_rows,
                first_row: word(first),
                part_rows,
                scale: self.scale,
            };
            let scales = part.scales.as_ref().unwrap_or(&part.tensor);
            let buffers = [&part.tensor.buffer, &ids.buffer, &y.buffer, &scales.buffer];
            // All parts together write all of `y`.
            self.gpu.dispatch_over(pass, &self.kernel, &params, &buffers, grid, y.whole().as_slice())?;
            first = first.saturating_add(part.out_dim()); // `of_parts` has counted the rows
        }
        Ok(())
    }

    /// [`Embedding::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`Embedding::encode`].
    pub fn run(&self, ids: &Tensor, y: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, ids, y))
    }
}
