//! A matrix of the model as rows of tensors in the files, and what is to be done to them. Pure: no number is read here.

use std::ops::Range;
use std::sync::Arc;

/// Rows of a projection. Their numbers stay in the file until they go to the device, so that the host holds no more of
/// them than it works on; what is done to them is written down here.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub(super) in_dim: usize,
    /// Below one another.
    pub(super) pieces: Vec<Piece>,
    /// (rows)
    pub(super) bias: Option<Vec<f32>>,
}

/// Rows of a tensor (rows, in_dim) in the file.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) tensor: Arc<str>,
    pub(super) rows: Range<usize>,
    /// What the rows are multiplied by, if anything: as many as rows.
    pub(super) factors: Option<Vec<f32>>,
    /// Whether the piece is these of the columns of those rows instead.
    pub(super) columns: Option<Range<usize>>,
    /// Which of the inputs of those rows it has, if not all.
    pub(super) inputs: Option<Range<usize>>,
}

impl Piece {
    pub(super) fn len(&self) -> usize {
        self.columns.as_ref().map_or(self.rows.len(), Range::len)
    }

    /// A few of its rows.
    fn cut(&self, part: Range<usize>) -> Piece {
        let within = |all: &Range<usize>| all.start + part.start..all.start + part.end;
        match &self.columns {
            Some(columns) => Piece { columns: Some(within(columns)), ..self.clone() },
            None => Piece {
                rows: within(&self.rows),
                factors: self.factors.as_ref().map(|factors| factors[part.clone()].to_vec()),
                ..self.clone()
            },
        }
    }
}

impl Matrix {
    pub(crate) fn rows(&self) -> usize {
        self.pieces.iter().map(Piece::len).sum()
    }

    /// (rows)
    pub(crate) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The same without its bias in the elements `part` of each stretch of `head` rows.
    pub(crate) fn without_bias(mut self, head: usize, part: Range<usize>) -> Matrix {
        let biases = self.bias.iter_mut().flatten().enumerate().filter(|(row, _)| part.contains(&(row % head)));
        biases.for_each(|(_, b)| *b = 0.0);
        self
    }

    /// A few of the rows.
    pub(crate) fn cut(&self, rows: Range<usize>) -> Matrix {
        let (mut pieces, mut first) = (Vec::new(), 0);
        for piece in &self.pieces {
            let end = first + piece.len();
            let part = rows.start.max(first)..rows.end.min(end);
            if !part.is_empty() {
                pieces.push(piece.cut(part.start - first..part.end - first));
            }
            first = end;
        }
        Matrix { in_dim: self.in_dim, pieces, bias: self.bias.as_ref().map(|b| b[rows].to_vec()) }
    }

    /// Rows below one another; where only some have a bias, the others get zeros.
    pub(crate) fn stack(parts: &[Matrix]) -> Matrix {
        let has_bias = parts.iter().any(|p| p.bias.is_some());
        let bias = |p: &Matrix| p.bias.clone().unwrap_or_else(|| vec![0.0; p.rows()]);
        Matrix {
            in_dim: parts.first().map_or(1, |p| p.in_dim),
            pieces: parts.iter().flat_map(|p| p.pieces.iter().cloned()).collect(),
            bias: has_bias.then(|| parts.iter().flat_map(bias).collect()),
        }
    }

    /// Multiplies the elements `part` of each stretch of `head` rows of a matrix as it was read.
    pub(crate) fn scale_rows(&mut self, head: usize, part: Range<usize>, factor: f32) {
        let scaled = |row: usize| part.contains(&(row % head));
        let mut row = 0;
        for piece in &mut self.pieces {
            let factors = piece.factors.get_or_insert_with(|| vec![1.0; piece.rows.len()]);
            for value in factors {
                *value *= if scaled(row) { factor } else { 1.0 };
                row += 1;
            }
        }
        let biases = self.bias.iter_mut().flatten().enumerate().filter(|(row, _)| scaled(*row));
        biases.for_each(|(_, b)| *b *= factor);
    }

    /// The same without a bias.
    pub(crate) fn without_any_bias(self) -> Matrix {
        Matrix { bias: None, ..self }
    }

    /// Columns become rows, of a matrix that was cut from one as it was read. The bias, which belongs to rows, is dropped.
    pub(crate) fn transposed(&self) -> Matrix {
        let columns = |p: &Piece| Piece { columns: Some(0..self.in_dim), ..p.clone() };
        Matrix { in_dim: self.rows(), pieces: self.pieces.iter().map(columns).collect(), bias: None }
    }
}
