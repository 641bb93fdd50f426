//! Rows of a table by their ids.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::span::check_apart;
use super::{params, word, Weight};
use crate::attention::append::elements_part;
use crate::error::{ErrorKind, Result};
use crate::gpu::{number, part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};

params!(Params { dim: u32, row_vec4: u32, table_rows: u32 });
#[cfg(test)]
pub(super) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

pub(super) fn spec(dtype: DType) -> Result<KernelSpec> {
    Ok(KernelSpec {
        name: "embedding",
        consts: vec![("VECS_PER_WORD", number(dtype.per_vec4() / 4))],
        parts: vec![elements_part(dtype)?, part!("embedding.wgsl")],
        bindings: vec![Access::Read, Access::Read, Access::Write],
        workgroup_bytes: 0,
    })
}

/// `y[r, :] = table[ids[r], :]`. The table may be the weight of a tied head, or (with [`Weight::from_rows`])
/// activations of which a few rows are wanted.
#[derive(Clone)]
pub struct Embedding {
    gpu: Gpu,
    table: Weight,
    kernel: Kernel,
}

impl Embedding {
    /// Compiles the kernel. `table` has one head.
    ///
    /// Errors: [`ErrorKind::Argument`] for several.
    pub fn new(gpu: &Gpu, table: &Weight) -> Result<Self> {
        if table.heads() != 1 {
            return Err(ErrorKind::argument("table", format!("{} heads, a table has 1", table.heads())));
        }
        Ok(Embedding { gpu: gpu.clone(), table: table.clone(), kernel: gpu.kernel(spec(table.dtype())?)? })
    }

    /// The table.
    pub fn table(&self) -> &Weight {
        &self.table
    }

    /// Fails, with [`ErrorKind::Argument`], if an id is not a row of the table; the kernel itself clamps.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let rows = self.table.out_dim();
        match ids.iter().enumerate().find(|(_, id)| **id as usize >= rows) {
            None => Ok(()),
            Some((i, id)) => Err(ErrorKind::argument("ids", format!("entry {i} is {id}, the table has {rows} rows"))),
        }
    }

    /// Records; `ids` is (rows) U32, `y` (rows, dim) F32, in another buffer than ids and table.
    ///
    /// Errors: [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, ids: &Tensor, y: &Tensor) -> Result<()> {
        ids.expect("ids", &[0], DType::U32)?;
        let (rows, dim) = (ids.len(), self.table.in_dim());
        y.expect("y", &[rows, dim], DType::F32)?;
        check_apart("y", y, &[ids, &self.table.tensor])?;
        if y.len() > u32::MAX as usize {
            return Err(ErrorKind::shape("y", y.shape(), "fewer than 2^32 elements"));
        }
        let row_vec4 = self.table.row_vec4();
        let params = Params { dim: word(dim), row_vec4: word(row_vec4), table_rows: word(self.table.out_dim()) };
        let buffers = [&self.table.tensor.buffer, &ids.buffer, &y.buffer];
        let grid = (word(row_vec4.div_ceil(64)), word(rows), 1);
        self.gpu.dispatch_over(pass, &self.kernel, &params, &buffers, grid, y.whole().as_slice())
    }

    /// [`Embedding::encode`] into the [`Gpu`]'s own pass.
    pub fn run(&self, ids: &Tensor, y: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, ids, y))
    }
}
