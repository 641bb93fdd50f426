//! Weights on the device: packed rows that kernels read 16 bytes at a time.

use crate::error::{shape_text, ErrorKind, Result};
use crate::gpu::{part, DType, Gpu, ShaderPart, Tensor};
use crate::sizes::{sum_of_products, MOST_ROW};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;

/// A stack of `heads` matrices (out_dim, in_dim), or with one head a table of `out_dim` rows.
///
/// On the device each row is padded with zeros to a multiple of 16 bytes, so any `in_dim` works. Cloning shares the
/// memory.
#[derive(Debug, Clone)]
pub struct Weight {
    /// (heads, out_dim, in_dim rounded up to 16 bytes), F32, F16 or I8.
    pub(crate) tensor: Tensor,
    /// I8: (heads, out_dim) F32, what a row's integers are multiplied by.
    pub(crate) scales: Option<Tensor>,
    heads: usize,
    out_dim: usize,
    in_dim: usize,
}

impl Weight {
    /// `shape` is (heads, out_dim, in_dim), `values` row-major, converted to `dtype`: F32, F16, or I8 by [`quantise`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`];
    /// [`ErrorKind::Argument`] for I8 of a value that is not finite.
    pub fn new(gpu: &Gpu, shape: [usize; 3], values: &[f32], dtype: DType) -> Result<Self> {
        let [heads, out_dim, in_dim] = shape;
        let count = heads.checked_mul(out_dim).and_then(|n| n.checked_mul(in_dim));
        check_count(values.len(), count, &shape)?;
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
        Ok(Weight { tensor, scales, heads, out_dim, in_dim })
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
        dtype: DType,
        mut matrix: impl FnMut(usize) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let [heads, out_dim, in_dim] = shape;
        let tensor = zeros(gpu, shape, dtype)?;
        let mut scales = Vec::new();
        for head in 0..heads {
            let values = matrix(head)?;
            check_count(values.len(), out_dim.checked_mul(in_dim), &[out_dim, in_dim])?;
            let (bytes, own) = packed(&values, in_dim, dtype)?;
            gpu.write(&tensor.buffer, (head * bytes.len()) as u64, &bytes)?;
            // Else all of them wait on the host.
            gpu.flush()?;
            scales.extend(own);
        }
        let scales = match dtype {
            DType::I8 => Some(Tensor::from_slice(gpu, &[heads, out_dim], &scales, DType::F32)?),
            _ => None,
        };
        Ok(Weight { tensor, scales, heads, out_dim, in_dim })
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
        Ok(Weight { tensor: tensor.clone(), scales: None, heads: 1, out_dim, in_dim })
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

    /// F32, F16 or I8.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Bytes on the device: padded rows, and the scales of I8.
    pub fn size_bytes(&self) -> usize {
        16 * self.row_vec4() * self.heads * self.out_dim + self.scales.as_ref().map_or(0, |s| 4 * s.len())
    }

    /// `vec4<u32>` per row.
    pub(crate) fn row_vec4(&self) -> usize {
        self.in_dim.div_ceil(self.dtype().per_vec4())
    }
}

/// (heads, out_dim, in_dim rounded up to 16 bytes). Sizes are counted in 32 bits there.
fn device_shape([heads, out_dim, in_dim]: [usize; 3], dtype: DType) -> Result<[usize; 3]> {
    for size in [heads, out_dim, in_dim] {
        sum_of_products("shape", &[&[size]], MOST_ROW / 2)?;
    }
    Ok([heads, out_dim, in_dim.next_multiple_of(dtype.per_vec4())])
}

/// A stack of matrices whose rows come in order, several at a time, so that the host never holds them all.
pub(crate) struct WeightWriter {
    gpu: Gpu,
    weight: Weight,
    scales: Vec<f32>,
    /// Converted rows that are not yet written.
    block: Vec<u8>,
    /// Bytes written, and those of them that wait on the host for a submit.
    written: u64,
    waiting: u64,
}

/// Bytes that wait on the host at most: what is written is copied there first.
const MOST_WAITING: u64 = 16 << 20;
/// Converted bytes that are written together.
const BLOCK_BYTES: usize = 2 << 20;

impl WeightWriter {
    /// `shape` is (heads, out_dim, in_dim). Errors: as [`Weight::new`].
    pub(crate) fn new(gpu: &Gpu, shape: [usize; 3], dtype: DType) -> Result<Self> {
        let [heads, out_dim, in_dim] = shape;
        let tensor = zeros(gpu, shape, dtype)?;
        let weight = Weight { tensor, scales: None, heads, out_dim, in_dim };
        Ok(WeightWriter { gpu: gpu.clone(), weight, scales: Vec::new(), block: Vec::new(), written: 0, waiting: 0 })
    }

    /// Whether rows lie on the device as F16 lies in files.
    pub(crate) fn takes_f16(&self) -> bool {
        self.weight.dtype() == DType::F16 && self.weight.in_dim == 8 * self.weight.row_vec4()
    }

    /// The next rows, where [`WeightWriter::takes_f16`].
    pub(crate) fn push_f16(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_block()?;
        self.write(bytes)
    }

    fn write_block(&mut self) -> Result<()> {
        let block = std::mem::take(&mut self.block);
        self.write(&block)?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let Weight { tensor, heads, out_dim, in_dim, .. } = &self.weight;
        let (wanted, got) = (tensor.buffer.size_bytes(), self.written + bytes.len() as u64);
        if got > wanted {
            let why = format!("{got} bytes of rows or more, {} has {wanted}", shape_text(&[*heads, *out_dim, *in_dim]));
            return Err(ErrorKind::argument("values", why));
        }
        self.gpu.write(&tensor.buffer, self.written, bytes)?;
        self.written += bytes.len() as u64;
        self.waiting += bytes.len() as u64;
        if self.waiting >= MOST_WAITING {
            self.waiting = 0;
            self.gpu.flush()?;
        }
        Ok(())
    }

    /// The next rows. Errors: as [`Weight::new`].
    pub(crate) fn push(&mut self, values: &[f32]) -> Result<()> {
        let (bytes, scales) = packed(values, self.weight.in_dim, self.weight.dtype())?;
        self.scales.extend(scales);
        self.block.extend_from_slice(&bytes);
        match self.block.len() < BLOCK_BYTES {
            true => Ok(()),
            false => self.write_block(),
        }
    }

    /// Errors: [`ErrorKind::Argument`] where rows are missing.
    pub(crate) fn finish(mut self) -> Result<Weight> {
        self.write_block()?;
        let Weight { tensor, heads, out_dim, in_dim, .. } = &self.weight;
        let whole = 16 * (self.weight.row_vec4() * heads * out_dim) as u64;
        if self.written != whole {
            let shape = shape_text(&[*heads, *out_dim, *in_dim]);
            let why = format!("{} bytes of rows, {shape} has {whole}", self.written);
            return Err(ErrorKind::argument("values", why));
        }
        let scales = match tensor.dtype() {
            DType::I8 => Some(Tensor::from_slice(&self.gpu, &[*heads, *out_dim], &self.scales, DType::F32)?),
            _ => None,
        };
        Ok(Weight { scales, ..self.weight })
    }
}

/// Room for a stack (heads, out_dim, in_dim).
fn zeros(gpu: &Gpu, shape: [usize; 3], dtype: DType) -> Result<Tensor> {
    Tensor::zeros(gpu, &device_shape(shape, dtype)?, dtype).map_err(|e| e.of(&weight_text(shape, dtype)))
}

/// For errors of memory.
fn weight_text(shape: [usize; 3], dtype: DType) -> String {
    format!("a weight {} in {dtype}", shape_text(&shape))
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
fn packed(values: &[f32], in_dim: usize, dtype: DType) -> Result<(Vec<u8>, Vec<f32>)> {
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

/// The slots that unpack words of weights, and scale the rows of a matrix.
pub(crate) fn weight_parts(dtype: DType) -> Result<[ShaderPart; 2]> {
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
