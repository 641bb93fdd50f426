//! gpt-oss's experts: those of a layer in one tensor, gate and up in turn, in MXFP4 (`gate_up_proj_blocks`, `gate_up_proj_scales`) or as
//! matrices of columns (`gate_up_proj`). Read as the matrices of each expert.

use super::made::{Lines, MadeRows};
use super::store::{Place, WeightFile, WeightFiles};
use super::stored::Stored;
use crate::error::Result;
use crate::model::config::{Config, ExpertsConfig};
use crate::nn::BlockType;
use safetensors::tensor::Dtype;
use std::ops::Range;

/// Elements of a block, and bytes of its codes in a file.
const BLOCK: usize = 32;
const CODES: usize = 16;

/// Every `step`-th row of an expert from `first` on.
pub(super) struct Mxfp4Rows {
    /// Rows of codes, two to a byte, the first in its low bits.
    blocks: Lines,
    /// An exponent for each block.
    scales: Lines,
    first: usize,
    step: usize,
}

/// Every `step`-th column of an expert from `first` on.
pub(super) struct ColumnRows {
    lines: Lines,
    first: usize,
    step: usize,
    /// Bytes.
    element: usize,
}

/// What a tensor of all experts has, and of which of its rows or columns each is.
struct Stack<'s> {
    name: &'s str,
    parts: &'s [&'s str],
    /// Of an expert, of all parts.
    rows: usize,
    in_dim: usize,
}

impl WeightFiles<'_> {
    /// Makes a tensor of each matrix of each expert, where they lie in one.
    ///
    /// Errors: [`ErrorKind::Weights`](crate::ErrorKind::Weights).
    pub(super) fn with_stacked(mut self, config: &Config, experts: &ExpertsConfig) -> Result<Self> {
        let (width, hidden) = (experts.width, config.hidden_size);
        for layer in 0..config.layers {
            let prefix = format!("model.layers.{layer}.mlp.experts.");
            for (name, parts, rows, in_dim) in [
                ("gate_up_proj", &["gate_proj", "up_proj"][..], width.saturating_mul(2), hidden),
                ("down_proj", &["down_proj"][..], hidden, width),
            ] {
                let stack = Stack { name: &format!("{prefix}{name}"), parts, rows, in_dim };
                self.part(&prefix, experts.route.experts, &stack)?;
            }
        }
        Ok(self)
    }

    fn part(&mut self, prefix: &str, experts: usize, stack: &Stack<'_>) -> Result<()> {
        let &Stack { name, parts, rows, in_dim } = stack;
        let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
        let (own_name, stored, lines) = if self.tensors.contains_key(&blocks) {
            if !in_dim.is_multiple_of(BLOCK) {
                return Err(self.bad(&blocks, format!("is of rows of {in_dim}, which is no multiple of {BLOCK}")));
            }
            let bytes = Stored::of_safetensors(Dtype::U8);
            let codes = self.lines(&blocks, bytes, [experts, rows, in_dim / BLOCK, CODES])?;
            let codes = Lines { count: experts * rows, bytes: in_dim / BLOCK * CODES, ..codes };
            let scales = self.lines(&scales, bytes, [experts, rows, in_dim / BLOCK])?;
            (blocks, Stored::Blocks(BlockType::MXFP4), [codes, scales])
        } else if let Some(stored) = self.tensors.get(name).map(|place| place.stored).filter(|stored| stored.is_read())
        {
            let lines = self.lines(name, stored, [experts, in_dim, rows])?;
            (name.to_string(), stored, [lines; 2])
        } else {
            return Ok(());
        };
        let part_rows = rows / parts.len();
        for (expert, (first, part)) in (0..experts).flat_map(|e| parts.iter().enumerate().map(move |part| (e, part))) {
            let step = parts.len();
            let (made, row_bytes) = match stored {
                Stored::Blocks(block) => {
                    let [blocks, scales] = lines.map(|lines| lines.run(expert, rows));
                    let rows = Mxfp4Rows { blocks, scales, first, step };
                    (MadeRows::Mxfp4(rows), in_dim / BLOCK * block.bytes())
                }
                _ => {
                    let lines = lines[0].run(expert, in_dim);
                    let element = lines.bytes / rows.max(1);
                    (MadeRows::Columns(ColumnRows { lines, first, step, element }), in_dim * element)
                }
            };
            let place = Place {
                file: lines[0].file,
                stored,
                shape: [part_rows, in_dim].into(),
                offset: lines[0].offset,
                bytes: part_rows * row_bytes,
                own_name: Some(format!("{own_name}[{expert}]").into()),
                neighbours: None,
                made: Some(Box::new(made)),
            };
            self.tensors.insert(format!("{prefix}{expert}.{part}.weight"), place);
        }
        for tensor in [name.to_string(), format!("{name}_blocks"), format!("{name}_scales")] {
            self.tensors.remove(&tensor);
        }
        Ok(())
    }
}

/// The rows of what is read, of which every `step`-th is wanted.
fn span(first: usize, step: usize, rows: &Range<usize>) -> Range<usize> {
    first + rows.start * step..first + rows.end.saturating_sub(1) * step + 1
}

impl Mxfp4Rows {
    pub(super) fn read(&self, files: &[WeightFile<'_>], rows: Range<usize>, made: &mut Vec<u8>) -> Result<()> {
        made.clear();
        if rows.is_empty() {
            return Ok(());
        }
        let lines = span(self.first, self.step, &rows);
        let (codes, scales) = (self.blocks.whole(files, lines.clone())?, self.scales.whole(files, lines)?);
        let rows = codes.chunks(self.blocks.bytes).zip(scales.chunks(self.scales.bytes)).step_by(self.step);
        for (codes, scales) in rows {
            for (codes, scale) in codes.chunks_exact(CODES).zip(scales) {
                made.push(*scale);
                // A byte of a block has an element and the one 16 behind it; of a file two neighbours.
                let code = |element: usize| codes[element / 2] >> (element % 2 * 4) & 15;
                made.extend((0..CODES).map(|i| code(i) | code(i + BLOCK / 2) << 4));
            }
        }
        Ok(())
    }
}

impl ColumnRows {
    pub(super) fn read(&self, files: &[WeightFile<'_>], rows: Range<usize>, made: &mut Vec<u8>) -> Result<()> {
        let (columns, element) = (span(self.first, self.step, &rows), self.element);
        let read = self.lines.read(files, columns.start * element..columns.end * element)?;
        let line = columns.len() * element;
        made.clear();
        for column in 0..rows.len() {
            let at = column * self.step * element;
            read.chunks_exact(line).for_each(|line| made.extend_from_slice(&line[at..at + element]));
        }
        Ok(())
    }
}
