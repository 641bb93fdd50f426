//! Weights on the device: packed rows that kernels read 16 bytes at a time.

use crate::error::{shape_text, ErrorKind, Result};
use crate::gpu::{DType, Gpu, Tensor};

/// A stack of `heads` matrices (out_dim, in_dim), or with one head a table of `out_dim` rows.
///
/// On the device each row is padded with zeros to a multiple of 16 bytes, so any `in_dim` works. Cloning shares the
/// memory.
#[derive(Debug, Clone)]
pub struct Weight {
    /// (heads, out_dim, in_dim rounded up to 16 bytes), F32 or F16.
    pub(crate) tensor: Tensor,
    heads: usize,
    out_dim: usize,
    in_dim: usize,
}

impl Weight {
    /// `shape` is (heads, out_dim, in_dim), `values` row-major, converted to `dtype` (F32 or F16).
    ///
    /// Errors: [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`].
    pub fn new(gpu: &Gpu, shape: [usize; 3], values: &[f32], dtype: DType) -> Result<Self> {
        let [heads, out_dim, in_dim] = shape;
        let count = heads.checked_mul(out_dim).and_then(|n| n.checked_mul(in_dim));
        if count != Some(values.len()) || values.is_empty() {
            let want = format!("the element count of {}, not 0", shape_text(&shape));
            return Err(ErrorKind::shape("values", &[values.len()], want));
        }
        let padded = in_dim.next_multiple_of(dtype.per_vec4());
        let tensor = if padded == in_dim {
            Tensor::from_f32(gpu, &[heads, out_dim, padded], values, dtype)?
        } else {
            let mut rows = vec![0.0; heads * out_dim * padded];
            for (to, from) in rows.chunks_exact_mut(padded).zip(values.chunks_exact(in_dim)) {
                to[..in_dim].copy_from_slice(from);
            }
            Tensor::from_f32(gpu, &[heads, out_dim, padded], &rows, dtype)?
        };
        Ok(Weight { tensor, heads, out_dim, in_dim })
    }

    /// An F32 tensor (rows, dim) seen as a table; `dim` must be a multiple of 4. Shares the tensor's memory.
    ///
    /// Errors: [`ErrorKind::Shape`], [`ErrorKind::DType`].
    pub fn from_rows(tensor: &Tensor) -> Result<Self> {
        tensor.expect("tensor", &[0, 0], DType::F32)?;
        let (out_dim, in_dim) = (tensor.shape()[0], tensor.shape()[1]);
        if in_dim % 4 != 0 {
            return Err(ErrorKind::shape("tensor", tensor.shape(), "(_,a multiple of 4)"));
        }
        Ok(Weight { tensor: tensor.clone(), heads: 1, out_dim, in_dim })
    }

    /// Matrices in the stack.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Rows of each matrix: outputs of a linear, entries of a table.
    pub fn out_dim(&self) -> usize {
        self.out_dim
    }

    /// Elements of a row: inputs of a linear, the width of a table.
    pub fn in_dim(&self) -> usize {
        self.in_dim
    }

    /// F32 or F16.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// `vec4<u32>` per row.
    pub(crate) fn row_vec4(&self) -> usize {
        self.in_dim.div_ceil(self.dtype().per_vec4())
    }
}
