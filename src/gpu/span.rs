//! Where the rows of a call lie inside a tensor.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{Buffer, DType, Tensor};
use crate::error::{ErrorKind, Result};

/// The rows that a kernel reads or writes inside an F32 tensor: element `i` of head `h` of row `r` is at
/// `offset + r * row_stride + h * head_stride + i`. All in elements.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) offset: usize,
    pub(crate) row_stride: usize,
    pub(crate) head_stride: usize,
}

/// What a kernel wants of a [`Span`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
}

impl<'a> Span<'a> {
    /// All of a dense tensor: (rows, dim), or (rows, heads, dim). Checked where it is used: [`ErrorKind::Shape`] for rows
    /// past the tensor's end, [`ErrorKind::DType`].
    pub fn of(tensor: &'a Tensor) -> Self {
        let shape = tensor.shape();
        let row_stride = shape.iter().skip(1).product();
        let head_stride = if shape.len() > 2 { shape.iter().skip(2).product() } else { 0 };
        Span { tensor, offset: 0, row_stride, head_stride }
    }

    /// Begins this many elements later.
    pub fn offset(self, offset: usize) -> Self {
        Span { offset, ..self }
    }

    /// Elements from a row to the next.
    pub fn row_stride(self, row_stride: usize) -> Self {
        Span { row_stride, ..self }
    }

    /// Elements from a head to the next.
    pub fn head_stride(self, head_stride: usize) -> Self {
        Span { head_stride, ..self }
    }

    /// Whether every row and head begins at a multiple of 4 elements.
    pub(crate) fn is_vec4(&self) -> bool {
        [self.offset, self.row_stride, self.head_stride].iter().all(|n| n % 4 == 0)
    }

    /// The buffer, if the extent, which is checked as an output, is all of it.
    pub(crate) fn whole(&self, Extent { rows, heads, dim }: Extent) -> Option<&'a Buffer> {
        let all = rows.checked_mul(heads).and_then(|n| n.checked_mul(dim)) == Some(self.tensor.len());
        self.tensor.whole().filter(|_| all)
    }

    /// Fails unless the extent lies inside the tensor, which must be F32.
    pub(crate) fn check(&self, name: &'static str, want: Extent) -> Result<()> {
        self.tensor.expect(name, self.tensor.shape(), DType::F32)?;
        let Extent { rows, heads, dim } = want;
        if rows == 0 {
            return Err(ErrorKind::argument("rows", "0 rows"));
        }
        let last = |count: usize, stride: usize| count.saturating_sub(1).checked_mul(stride);
        let end = last(rows, self.row_stride)
            .and_then(|n| n.checked_add(last(heads, self.head_stride)?))
            .and_then(|n| n.checked_add(self.offset)?.checked_add(dim));
        match end {
            Some(end) if end <= self.tensor.len() && end <= u32::MAX as usize => Ok(()),
            _ => Err(ErrorKind::shape(
                name,
                self.tensor.shape(),
                format!(
                    "({rows},{heads},{dim}) at offset {} with strides {} and {}",
                    self.offset, self.row_stride, self.head_stride
                ),
            )),
        }
    }

    /// [`Span::check`] for an output: also refuses rows that overlap, and a buffer that an input lies in.
    pub(crate) fn check_output(&self, name: &'static str, want: Extent, inputs: &[&Tensor]) -> Result<()> {
        self.check(name, want)?;
        let Extent { rows, heads, dim } = want;
        let nested = |(n_in, s_in): (usize, usize), (n_out, s_out): (usize, usize)| {
            (n_in == 1 || s_in >= dim)
                && (n_out == 1 || s_out >= n_in.saturating_sub(1).saturating_mul(s_in).saturating_add(dim))
        };
        let (row, head) = ((rows, self.row_stride), (heads, self.head_stride));
        if !nested(head, row) && !nested(row, head) {
            let why = format!(
                "({rows},{heads},{dim}) with strides {} and {} overlaps itself",
                self.row_stride, self.head_stride
            );
            return Err(ErrorKind::argument(name, why));
        }
        check_apart(name, self.tensor, inputs)
    }
}

/// Fails if an output shares its buffer with an input: no kernel here works in place.
pub(crate) fn check_apart(name: &'static str, output: &Tensor, inputs: &[&Tensor]) -> Result<()> {
    if inputs.iter().any(|t| t.buffer.id() == output.buffer.id()) {
        return Err(ErrorKind::argument(name, "shares its buffer with an input"));
    }
    Ok(())
}
