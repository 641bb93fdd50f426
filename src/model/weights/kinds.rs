//! What matrices become on the device: of a dtype, quantised, or the blocks that they are in the file.

use super::matrix::{Matrix, Piece};
use super::reader::WeightReader;
use super::split::runs;
use super::stored::Stored;
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::DType;
use crate::nn::{BlockType, WeightType};
use std::ops::Range;

impl WeightReader<'_> {
    /// The same with matrices in blocks, where their rows are whole ones. Errors: [`ErrorKind::Unsupported`] for a type that is not
    /// quantised to, [`ErrorKind::Argument`] beside I8.
    pub(crate) fn with_blocks(mut self, blocks: Option<BlockType>) -> Result<Self> {
        if let Some(block) = blocks {
            block.quantise(&[])?;
            if self.dtype == DType::I8 {
                return Err(ErrorKind::argument("blocks", format!("{block} beside a dtype of i8")));
            }
        }
        self.blocks = blocks;
        Ok(self)
    }

    /// What matrices of one width become together.
    pub(super) fn kind(&self, matrices: &[Matrix]) -> WeightType {
        let in_dim = matrices.first().map_or(0, |matrix| matrix.in_dim);
        if let Some(block) = self.blocks.filter(|block| in_dim.is_multiple_of(block.elements())) {
            return block.into();
        }
        let mut kept = matrices.iter().flat_map(|matrix| &matrix.pieces).map(|piece| self.kept(piece));
        match kept.next().flatten() {
            Some(block) if kept.all(|other| other == Some(block)) => block.into(),
            _ => self.dtype.into(),
        }
    }

    /// What a table of rows becomes: F16 where matrices are in I8, Q8_0 where they are quantised to blocks.
    pub(super) fn table_kind(&self, table: &Matrix) -> WeightType {
        match self.kind(std::slice::from_ref(table)) {
            WeightType::Blocks(_) if self.blocks.is_some() => BlockType::Q8_0.into(),
            WeightType::Plain(DType::I8) => DType::F16.into(),
            kind => kind,
        }
    }

    /// The blocks that rows are in, and stay in: with F16, where nothing is done to them.
    fn kept(&self, piece: &Piece) -> Option<BlockType> {
        let stays = self.dtype == DType::F16 && self.blocks.is_none();
        match self.store.get(&piece.tensor)?.stored {
            Stored::Blocks(block) if stays && piece.factors.is_none() && piece.columns.is_none() => Some(block),
            _ => None,
        }
    }

    /// The runs of outputs that are one linear each: of one type, since a file may have values in another than queries, and what
    /// one binding holds. Matrices side by side are of one type together.
    pub(super) fn parts(&self, matrices: &[Matrix]) -> Vec<Range<usize>> {
        let (outputs, in_dim) = matrices.first().map_or((0, 1), |matrix| (matrix.rows(), matrix.in_dim));
        let mut stretches: Vec<(Option<BlockType>, Range<usize>)> = Vec::new();
        if let [matrix] = matrices {
            let mut first = 0;
            for piece in &matrix.pieces {
                let (kept, end) = (self.kept(piece), first + piece.len());
                match stretches.last_mut() {
                    Some((last, rows)) if *last == kept => rows.end = end,
                    _ => stretches.push((kept, first..end)),
                }
                first = end;
            }
        }
        if stretches.is_empty() {
            stretches.push((None, 0..outputs));
        }
        let mut all = Vec::new();
        for (_, rows) in stretches {
            let cut: Vec<Matrix> = matrices.iter().map(|matrix| matrix.cut(rows.clone())).collect();
            let runs = runs(self.gpu().capabilities(), rows.len(), matrices.len(), in_dim, self.kind(&cut));
            all.extend(runs.into_iter().map(|run| rows.start + run.start..rows.start + run.end));
        }
        all
    }

    /// An error of blocks, with the name of their tensor.
    pub(super) fn of_blocks(&self, tensor: &str, error: Error) -> Error {
        match error.kind() {
            ErrorKind::Argument { name: "blocks", why } => {
                self.bad(tensor, format!("{why}: load the model with DType::F32"))
            }
            _ => error,
        }
    }
}

#[cfg(test)]
#[path = "kinds_tests.rs"]
mod kinds_tests;
