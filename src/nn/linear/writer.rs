//! Rows of a weight as they come, on their way to the device.

use super::blocks::BlockType;
use super::packer::{PackedRows, RowPacker};
use super::weight::{check_sizes, weight_text, zeros, Weight};
use super::weight_type::WeightType;
use crate::error::{shape_text, ErrorKind, Result};
use crate::gpu::{DType, Gpu, Tensor};

/// A stack of matrices whose rows come in order, several at a time, so that the host never holds them all.
pub(crate) struct WeightWriter {
    gpu: Gpu,
    weight: Weight,
    /// I8's.
    scales: Vec<f32>,
    /// Blocks that are not yet whole groups.
    blocks: Vec<u8>,
    /// Blocks that were taken.
    count: usize,
    rows: Plane,
    /// Of blocks: scales and upper bits.
    side: Plane,
    /// Bytes that wait on the host for a submit.
    waiting: u64,
}

/// What goes to one of the buffers.
#[derive(Default)]
struct Plane {
    /// Converted, and not yet written.
    block: Vec<u8>,
    written: u64,
}

/// Bytes that wait on the host at most: what is written is copied there first.
const MOST_WAITING: u64 = 16 << 20;
/// Converted bytes that are written together.
const BLOCK_BYTES: usize = 2 << 20;
/// From so many on they are written from where they are.
const DIRECT_BYTES: usize = 1 << 18;

impl WeightWriter {
    /// `shape` is (heads, out_dim, in_dim). Errors: as [`Weight::new`].
    pub(crate) fn new(gpu: &Gpu, shape: [usize; 3], kind: impl Into<WeightType>) -> Result<Self> {
        let [heads, out_dim, in_dim] = shape;
        let kind = kind.into();
        let (tensor, scales) = match kind {
            WeightType::Plain(dtype) => (zeros(gpu, shape, dtype)?, None),
            WeightType::Blocks(block) => planes(gpu, shape, block)?,
        };
        let weight = Weight { tensor, scales, kind, heads, out_dim, in_dim };
        let (rows, side) = Default::default();
        let (scales, blocks) = (Vec::new(), Vec::new());
        Ok(WeightWriter { gpu: gpu.clone(), weight, scales, blocks, count: 0, rows, side, waiting: 0 })
    }

    /// Whether rows lie on the device as F16 lies in files.
    pub(crate) fn takes_f16(&self) -> bool {
        self.weight.kind.is(DType::F16) && self.weight.in_dim == 8 * self.weight.row_words()
    }

    /// Which blocks the weight is of, if it is of any.
    pub(crate) fn takes_blocks(&self) -> Option<BlockType> {
        self.weight.kind.blocks()
    }

    /// What makes the next rows.
    pub(crate) fn packer(&self) -> RowPacker {
        RowPacker { kind: self.weight.kind, in_dim: self.weight.in_dim, first: self.count }
    }

    /// The next blocks, whole ones, of the type that it takes. Errors: as [`Weight::from_blocks`].
    pub(crate) fn push_blocks(&mut self, blocks: &[u8]) -> Result<()> {
        let block = self.takes_blocks().map_or(1, BlockType::bytes);
        let mut made = PackedRows::default();
        for part in blocks.chunks(BLOCK_BYTES / block * block) {
            self.packer().blocks(part, &mut made)?;
            self.push_packed(&mut made)?;
            made.clear();
        }
        Ok(())
    }

    /// The next rows, as [`WeightWriter::packer`] has made them.
    pub(crate) fn push_packed(&mut self, made: &mut PackedRows) -> Result<()> {
        self.count += made.blocks;
        self.scales.append(&mut made.scales);
        if let (false, Some(block)) = (made.head.is_empty(), self.takes_blocks()) {
            self.blocks.extend_from_slice(&made.head);
            if self.blocks.len() == block.group_blocks() * block.bytes() {
                block.repack(&self.blocks, &mut self.rows.block, &mut self.side.block);
                self.blocks.clear();
            }
        }
        self.side.block.extend_from_slice(&made.side);
        if self.side.block.len() >= BLOCK_BYTES / 4 {
            self.write_block(true)?;
        }
        if self.rows.block.is_empty() && made.rows.len() >= DIRECT_BYTES {
            self.write(&made.rows, false)?;
        } else {
            self.rows.block.extend_from_slice(&made.rows);
        }
        if self.rows.block.len() >= BLOCK_BYTES {
            self.write_block(false)?;
        }
        self.blocks.extend_from_slice(&made.tail);
        Ok(())
    }

    /// Writes what waits for one of the planes.
    fn write_block(&mut self, side: bool) -> Result<()> {
        let plane = |own: &mut Self| std::mem::take(if side { &mut own.side.block } else { &mut own.rows.block });
        let mut block = plane(self);
        self.write(&block, side)?;
        block.clear();
        let plane = if side { &mut self.side } else { &mut self.rows };
        plane.block = block;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], side: bool) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let Weight { tensor, scales, heads, out_dim, in_dim, .. } = &self.weight;
        let (plane, tensor) = match (side, scales) {
            (true, Some(scales)) => (&mut self.side, scales),
            _ => (&mut self.rows, tensor),
        };
        let (wanted, got) = (tensor.buffer.size_bytes(), plane.written + bytes.len() as u64);
        if got > wanted {
            let why = format!("{got} bytes of rows or more, {} has {wanted}", shape_text(&[*heads, *out_dim, *in_dim]));
            return Err(ErrorKind::argument("values", why));
        }
        self.gpu.write(&tensor.buffer, plane.written, bytes)?;
        plane.written += bytes.len() as u64;
        self.waiting += bytes.len() as u64;
        if self.waiting >= MOST_WAITING {
            self.waiting = 0;
            self.gpu.flush()?;
        }
        Ok(())
    }

    /// The next rows. Errors: as [`Weight::new`].
    pub(crate) fn push(&mut self, values: &[f32]) -> Result<()> {
        let mut made = PackedRows::default();
        self.packer().values(values, &mut made)?;
        self.push_packed(&mut made)
    }

    /// Errors: [`ErrorKind::Argument`] where rows are missing.
    pub(crate) fn finish(mut self) -> Result<Weight> {
        if let (false, Some(block)) = (self.blocks.is_empty(), self.takes_blocks()) {
            block.repack(&self.blocks, &mut self.rows.block, &mut self.side.block);
        }
        self.write_block(false)?;
        self.write_block(true)?;
        let Weight { heads, out_dim, in_dim, kind, .. } = &self.weight;
        let whole = (kind.word_bytes() * self.weight.row_words() * heads * out_dim) as u64;
        if self.rows.written != whole {
            let shape = shape_text(&[*heads, *out_dim, *in_dim]);
            let why = format!("{} bytes of rows, {shape} has {whole}", self.rows.written);
            return Err(ErrorKind::argument("values", why));
        }
        let scales = match kind.is(DType::I8) {
            true => Some(Tensor::from_slice(&self.gpu, &[*heads, *out_dim], &self.scales, DType::F32)?),
            false => self.weight.scales,
        };
        Ok(Weight { scales, ..self.weight })
    }
}

/// Room for both planes of blocks.
fn planes(gpu: &Gpu, shape: [usize; 3], block: BlockType) -> Result<(Tensor, Option<Tensor>)> {
    check_sizes(shape)?;
    let kind = WeightType::from(block);
    kind.check_in_dim(shape)?;
    let words =
        shape.into_iter().try_fold(1usize, |product, size| product.checked_mul(size)).map(|n| n / kind.per_word());
    let Some(words) = words.filter(|words| (1..=u32::MAX as usize).contains(words)) else {
        let want = format!("sizes of at least 1, and fewer than 2^32 words of {} elements", kind.per_word());
        return Err(ErrorKind::shape("weight", &shape, want));
    };
    let plane = |bytes: usize| {
        Tensor::zeros(gpu, &[bytes.div_ceil(4)], DType::U32).map_err(|e| e.of(&weight_text(shape, kind)))
    };
    Ok((plane(words * block.word_bytes())?, Some(plane(block.side_bytes(words))?)))
}
