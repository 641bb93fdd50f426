//! Weights on the device: packed rows that kernels read a word at a time.

use super::blocks::BlockType;
use super::weight_type::WeightType;
use super::writer::WeightWriter;
use crate::error::{shape_text, ErrorKind, Result};
use crate::gpu::{part, DType, Gpu, ShaderPart, Tensor};
use crate::sizes::{sum_of_products, MOST_ROW};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;

/// A stack of `heads` matrices (out_dim, in_dim), or with one head a table of `out_dim` rows.
///
/// On the device each row of a [`DType`] is padded with zeros to a multiple of 16 bytes, so any `in_dim` works; of a
/// [`BlockType`] it is whole blocks. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct Weight {
    /// (heads, out_dim, in_dim rounded up to 16 bytes), F32, F16, BF16 or I8; of blocks the plane of words, U32.
    pub(crate) tensor: Tensor,
    /// I8: (heads, out_dim) F32, what a row's integers are multiplied by. Of blocks the plane of scales, U32.
    pub(crate) scales: Option<Tensor>,
    pub(super) kind: WeightType,
    pub(super) heads: usize,
    pub(super) out_dim: usize,
    pub(super) in_dim: usize,
}

impl Weight {
    /// `shape` is (heads, out_dim, in_dim), `values` row-major, converted to `kind`: F32, F16, BF16, I8 by [`quantise`], or
    /// [`BlockType::Q8_0`] or [`BlockType::Q4_0`] by [`BlockType::quantise`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`];
    /// [`ErrorKind::Argument`] for I8 or blocks of a value that is not finite, [`ErrorKind::Unsupported`] for other block types.
    pub fn new(gpu: &Gpu, shape: [usize; 3], values: &[f32], kind: impl Into<WeightType>) -> Result<Self> {
        let [heads, out_dim, in_dim] = shape;
        let kind = kind.into();
        let count = heads.checked_mul(out_dim).and_then(|n| n.checked_mul(in_dim));
        check_count(values.len(), count, &shape)?;
        let WeightType::Plain(dtype) = kind else {
            let mut weight = WeightWriter::new(gpu, shape, kind)?;
            weight.push(values)?;
            return weight.finish();
        };
        let device_shape = device_shape(shape, dtype)?;
        let padded = device_shape[2];
        let (tensor, scales) = if dtype == DType::I8 {
            let (integers, scales) = quantise(values, in_dim)?;
            let tensor = zeros(gpu, shape, dtype)?;
            gpu.write(&tensor.buffer, 0, bytemuck::cast_slice(&padded_rows(&integers, in_dim, padded)))?;
            (tensor, Some(Tensor::from_slice(gpu, &[heads, out_dim], &scales, DType::F32)?))
        } else if padded == in_dim {
            (Tensor::from_slice(gpu, &device_shape, values, dtype).map_err(|e| e.of(&weight_text(shape, dtype)))?, None)
        } else {
            let values = padded_rows(values, in_dim, padded);
            let tensor = Tensor::from_slice(gpu, &device_shape, &values, dtype);
            (tensor.map_err(|e| e.of(&weight_text(shape, dtype)))?, None)
        };
        Ok(Weight { tensor, scales, kind, heads, out_dim, in_dim })
    }

    /// A weight of blocks as GGUF files have them: `blocks` are the rows of all matrices, one behind the other.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`] for an `in_dim` that is no multiple of [`BlockType::elements`], and for another number of bytes;
    /// [`ErrorKind::Argument`] for blocks that stand for what is no number, or for one beyond f16; [`ErrorKind::TooLarge`],
    /// [`ErrorKind::OutOfMemory`].
    pub fn from_blocks(gpu: &Gpu, shape: [usize; 3], block: BlockType, blocks: &[u8]) -> Result<Self> {
        WeightType::from(block).check_in_dim(shape)?;
        let rows = shape[0].checked_mul(shape[1]);
        let wanted = rows.zip(block.row_bytes(shape[2])).and_then(|(rows, bytes)| rows.checked_mul(bytes));
        if wanted != Some(blocks.len()) || blocks.is_empty() {
            let want = match wanted {
                None | Some(0) => format!("sizes of at least 1 and fewer than 2^64 bytes, not {}", shape_text(&shape)),
                Some(bytes) => format!("({bytes}), the bytes of {} in {block}", shape_text(&shape)),
            };
            return Err(ErrorKind::shape("blocks", &[blocks.len()], want));
        }
        let mut weight = WeightWriter::new(gpu, shape, block)?;
        weight.push_blocks(blocks)?;
        weight.finish()
    }

    /// [`Weight::new`] of one matrix after another, so that the host never holds them all: `matrix(h)` is (out_dim,
    /// in_dim), row-major.
    ///
    /// # Errors
    ///
    /// As [`Weight::new`], and those of `matrix`.
    pub fn from_heads(
        gpu: &Gpu,
        shape: [usize; 3],
        kind: impl Into<WeightType>,
        mut matrix: impl FnMut(usize) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let [heads, out_dim, in_dim] = shape;
        let mut weight = WeightWriter::new(gpu, shape, kind)?;
        for head in 0..heads {
            let values = matrix(head)?;
            check_count(values.len(), out_dim.checked_mul(in_dim), &[out_dim, in_dim])?;
            weight.push(&values)?;
        }
        weight.finish()
    }

    /// An F32 tensor (rows, dim) seen as a table; `dim` must be a multiple of 4. Shares the tensor's memory.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`].
    pub fn from_rows(tensor: &Tensor) -> Result<Self> {
        tensor.expect("tensor", &[0, 0], DType::F32)?;
        let (out_dim, in_dim) = (tensor.shape()[0], tensor.shape()[1]);
        if in_dim % 4 != 0 {
            return Err(ErrorKind::shape("tensor", tensor.shape(), "(_,a multiple of 4)"));
        }
        let kind = WeightType::Plain(DType::F32);
        Ok(Weight { tensor: tensor.clone(), scales: None, kind, heads: 1, out_dim, in_dim })
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

    /// What its numbers are.
    pub fn weight_type(&self) -> WeightType {
        self.kind
    }

    /// Bytes on the device: padded rows, and scales.
    pub fn size_bytes(&self) -> usize {
        let words = self.row_words() * self.heads * self.out_dim;
        match self.kind {
            WeightType::Blocks(block) => words * block.word_bytes() + block.side_bytes(words),
            WeightType::Plain(_) => 16 * words + self.scales.as_ref().map_or(0, |s| 4 * s.len()),
        }
    }

    /// Words per row.
    pub(crate) fn row_words(&self) -> usize {
        self.in_dim.div_ceil(self.kind.per_word())
    }
}

/// (heads, out_dim, in_dim rounded up to 16 bytes). Sizes are counted in 32 bits there.
pub(super) fn device_shape([heads, out_dim, in_dim]: [usize; 3], dtype: DType) -> Result<[usize; 3]> {
    check_sizes([heads, out_dim, in_dim])?;
    Ok([heads, out_dim, in_dim.next_multiple_of(dtype.per_vec4())])
}

pub(super) fn check_sizes(shape: [usize; 3]) -> Result<()> {
    shape.into_iter().try_for_each(|size| sum_of_products("shape", &[&[size]], MOST_ROW / 2).map(drop))
}

/// Room for a stack (heads, out_dim, in_dim).
pub(super) fn zeros(gpu: &Gpu, shape: [usize; 3], dtype: DType) -> Result<Tensor> {
    Tensor::zeros(gpu, &device_shape(shape, dtype)?, dtype).map_err(|e| e.of(&weight_text(shape, dtype)))
}

/// For errors of memory.
pub(super) fn weight_text(shape: [usize; 3], kind: impl Into<WeightType>) -> String {
    format!("a weight {} in {}", shape_text(&shape), kind.into())
}

/// Whether there are as many values as a shape has, and any.
fn check_count(got: usize, wanted: Option<usize>, shape: &[usize]) -> Result<()> {
    if wanted == Some(got) && got > 0 {
        return Ok(());
    }
    let want = match wanted {
        None | Some(0) => format!("sizes of at least 1 and fewer than 2^64 elements, not {}", shape_text(shape)),
        Some(wanted) => format!("({wanted}), the elements of {}", shape_text(shape)),
    };
    Err(ErrorKind::shape("values", &[got], want))
}

/// Rows as they lie on the device, and of I8 the scale of each.
pub(super) fn packed(values: &[f32], in_dim: usize, dtype: DType) -> Result<(Vec<u8>, Vec<f32>)> {
    let padded = in_dim.next_multiple_of(dtype.per_vec4());
    let halves = |halves: &[u16]| match padded == in_dim {
        true => bytemuck::cast_slice(halves).to_vec(),
        false => bytemuck::cast_slice(&padded_rows(halves, in_dim, padded)).to_vec(),
    };
    match dtype {
        DType::F32 => Ok((bytemuck::cast_slice(&padded_rows(values, in_dim, padded)).to_vec(), Vec::new())),
        // By the processor's own conversion where it has one.
        DType::F16 => Ok((halves(Vec::<half::f16>::from_f32_slice(values).reinterpret_cast()), Vec::new())),
        DType::BF16 => Ok((halves(Vec::<half::bf16>::from_f32_slice(values).reinterpret_cast()), Vec::new())),
        DType::I8 => {
            let (integers, scales) = quantise(values, in_dim)?;
            Ok((bytemuck::cast_slice(&padded_rows(&integers, in_dim, padded)).to_vec(), scales))
        }
        DType::U32 | DType::I4 => {
            let (got, want) = (dtype.to_string(), "f32, f16, bf16 or i8".into());
            Err(ErrorKind::DType { name: "dtype", got, want }.into())
        }
    }
}

fn padded_rows<T: Copy + Default>(values: &[T], in_dim: usize, padded: usize) -> Vec<T> {
    let mut rows = vec![T::default(); values.len() / in_dim * padded];
    for (to, from) in rows.chunks_exact_mut(padded).zip(values.chunks_exact(in_dim)) {
        to[..in_dim].copy_from_slice(from);
    }
    rows
}

/// Rows of 8-bit integers and a scale for each: `value = integer * scale`, with `scale = max|row| / 127`, so that each
/// value is off by at most half a scale. `values` is (rows, in_dim); returns (rows, in_dim) and (rows).
///
/// # Errors
///
/// [`ErrorKind::Argument`] for a value that is not finite, [`ErrorKind::Shape`].
pub fn quantise(values: &[f32], in_dim: usize) -> Result<(Vec<i8>, Vec<f32>)> {
    if in_dim == 0 || !values.len().is_multiple_of(in_dim) {
        let want = if in_dim == 0 {
            "rows of at least 1 element".into()
        } else {
            format!("a multiple of {in_dim}, the length of a row")
        };
        return Err(ErrorKind::shape("values", &[values.len()], want));
    }
    if largest_magnitude(values) == f32::INFINITY {
        let i = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
        return Err(ErrorKind::argument(
            "values",
            format!("element {i} is {}, which no integer stands for", values[i]),
        ));
    }
    let (mut integers, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
    for row in values.chunks_exact(in_dim) {
        let scale = largest_magnitude(row) / 127.0;
        // A row of zeros, or so small that the scale is lost to f32.
        let inverse = if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 };
        // Of numbers so small that the scale is but a few bits, some would be past the ends.
        integers.extend(row.iter().map(|v| nearest_i8((f64::from(*v) * inverse).clamp(-127.0, 127.0))));
        scales.push(scale);
    }
    Ok((integers, scales))
}

/// The nearest integer, the even one of two, of a number in -128..=127. `round` is a call of the C library where the processor may
/// lack it as an instruction; added to 1.5 * 2^52 a number is rounded to an integer, which then is the low bits of the sum.
fn nearest_i8(value: f64) -> i8 {
    const ROUNDING: f64 = 6_755_399_441_055_744.0;
    (value + ROUNDING).to_bits() as i8
}

/// The largest magnitude of some numbers; infinite if one of them is not finite. Magnitudes are in the order of their bits, so that
/// several are compared at once.
pub(crate) fn largest_magnitude(values: &[f32]) -> f32 {
    const INFINITY: i32 = f32::INFINITY.to_bits() as i32;
    let largest = values.iter().fold(0, |most, v| most.max((v.to_bits() & 0x7fff_ffff) as i32));
    f32::from_bits(largest.min(INFINITY) as u32)
}

/// The slots that load and unpack words of 16 bytes, and scale the rows of a matrix.
pub(crate) fn float_parts(dtype: DType) -> Result<[ShaderPart; 2]> {
    match dtype {
        DType::I8 => Ok([part!("nn/weight_bytes.wgsl"), part!("nn/weights/i8.wgsl")]),
        _ => Ok([crate::gpu::elements::elements_part(dtype)?, part!("nn/weights/plain.wgsl")]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_the_nearest() {
        for step in -127 * 64..=127 * 64 {
            let value = f64::from(step) / 64.0;
            assert_eq!(f64::from(nearest_i8(value)), value.round_ties_even(), "{value}");
        }
        // Scales of a bit or two, or none.
        for largest in [1, 63, 64, 150, 190, 191, 254, 1000] {
            let values = [f32::from_bits(largest), -f32::from_bits(largest), f32::from_bits(largest / 2), 0.0];
            let (integers, scales) = quantise(&values, 4).unwrap();
            assert!(integers[0] >= 0 && integers[1] == -integers[0] && integers[3] == 0, "{integers:?} of {scales:?}");
        }
    }

    #[test]
    fn magnitudes_are_those_of_all_and_infinite_for_what_is_no_number() {
        assert_eq!(largest_magnitude(&[]), 0.0);
        assert_eq!(largest_magnitude(&[-0.0, 1e-45, -3.5, 2.0]), 3.5);
        for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xff80_0001)] {
            assert_eq!(largest_magnitude(&[1.0, odd, 2.0]), f32::INFINITY);
        }
    }
}
