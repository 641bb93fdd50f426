//! A rank's part of a matrix: some of its inputs. (Some of its rows is [`Matrix::cut`].) And what tells a model from others without
//! reading all of it, since no rank does.

use super::matrix::{Matrix, Piece};
use super::reader::WeightReader;
use super::store::Place;
use super::stored::Stored;
use crate::error::{shape_text, Result};
use crate::io::xxh64;
use std::ops::Range;

impl Stored {
    /// The bytes of these elements of a row, or None where they begin or end within a block.
    fn bytes_of(self, elements: &Range<usize>) -> Option<Range<usize>> {
        let (block, bytes) = match self {
            Stored::F32 => (1, 4),
            Stored::F16 | Stored::BF16 => (1, 2),
            Stored::Blocks(block) => (block.elements(), block.bytes()),
            Stored::Other(_) | Stored::OtherBlocks(_) => return None,
        };
        let whole = elements.start.is_multiple_of(block) && elements.end.is_multiple_of(block);
        whole.then(|| elements.start / block * bytes..elements.end / block * bytes)
    }
}

impl WeightReader<'_> {
    /// A matrix as it was read, of some of its inputs: of each row these elements alone are read. Errors:
    /// [`ErrorKind::Weights`](crate::ErrorKind::Weights) where the file has it in blocks and one would be cut.
    pub(crate) fn of_inputs(&self, mut matrix: Matrix, inputs: &Range<usize>) -> Result<Matrix> {
        if *inputs == (0..matrix.in_dim) {
            return Ok(matrix);
        }
        for piece in &mut matrix.pieces {
            let stored = self.known(&piece.tensor)?.stored;
            if let (Stored::Blocks(block), None) = (stored, stored.bytes_of(inputs)) {
                let why = format!(
                    "is in {stored}, blocks of {}, and cannot be cut at the inputs {} and {} of a rank",
                    block.elements(),
                    inputs.start,
                    inputs.end
                );
                return Err(self.bad(&piece.tensor, why));
            }
            debug_assert!(piece.columns.is_none() && piece.inputs.is_none(), "as it was read");
            piece.inputs = Some(inputs.clone());
        }
        matrix.in_dim = inputs.len();
        Ok(matrix)
    }

    /// The bytes of a row that a piece has, if not all.
    pub(super) fn cut_bytes(&self, piece: &Piece, place: &Place) -> Option<Range<usize>> {
        piece.inputs.as_ref().and_then(|inputs| place.stored.bytes_of(inputs))
    }

    /// A number that tells these tensors from those of another model: of all names, shapes and dtypes, and of the first and the last
    /// row of each. Whoever reads a part of them gets the same number.
    ///
    /// Errors: [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub(crate) fn identity(&self) -> Result<u64> {
        let mut sum = 0;
        for name in self.store.names() {
            let place = self.known(name)?;
            let head = format!("{name} {} {}", place.stored, shape_text(&place.shape));
            sum = xxh64(head.as_bytes(), sum);
            if place.stored.is_read() && place.bytes > 0 {
                for row in [0, place.rows() - 1] {
                    sum = xxh64(&self.store.peek(place, row..row + 1)?, sum);
                }
            }
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::store::WeightFiles;
    use safetensors::tensor::{Dtype, TensorView};

    /// Of bytes and of a file, in parts of several rows: cuts that are read row by row, and those that are read with what lies between.
    #[test]
    fn cut_rows_are_the_same_numbers_wherever_they_are_read() {
        let (rows, width) = (37usize, 4096usize);
        let values: Vec<f32> = (0..rows * width).map(|i| i as f32).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![rows, width], &bytes).unwrap();
        let file = safetensors::serialize([("w", view)], None).unwrap();
        let folder = std::env::temp_dir().join(format!("latten-cut-rows-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("model.safetensors"), &file).unwrap();
        let stores = [WeightFiles::from_bytes("w", &file).unwrap(), WeightFiles::open(&folder).unwrap()];
        let mut sums = Vec::new();
        for inputs in [0..2048, 2048..4096, 1024..2048, 0..16, 4080..4096, 0..4000] {
            for store in &stores {
                let place = store.get("w").unwrap();
                let cut = place.stored.bytes_of(&inputs).unwrap();
                let (mut got, mut memory) = (Vec::new(), Vec::new());
                for part in store.parts("w", place, (3..rows, Some(cut.clone())), 1 << 16) {
                    let (bytes, counted) = part.read(&mut memory).unwrap();
                    assert_eq!(bytes.len(), part.rows() * cut.len());
                    got.extend(place.stored.decoded(bytes));
                    let mut copied = vec![7; 3];
                    part.read_to(&mut copied).unwrap();
                    assert_eq!(copied, memory);
                    store.count(counted);
                }
                let want: Vec<f32> =
                    (3..rows).flat_map(|row| values[row * width..][inputs.clone()].iter().copied()).collect();
                assert_eq!(got, want, "{inputs:?}");
                sums.push(store.checksum());
            }
        }
        // Whoever reads the same has the same sum.
        assert!(sums.chunks(2).all(|both| both[0] == both[1]), "{sums:?}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn blocks_are_not_cut() {
        use crate::nn::BlockType;
        let q4 = Stored::Blocks(BlockType::Q4_0);
        assert_eq!(q4.bytes_of(&(32..96)), Some(18..54));
        assert_eq!((q4.bytes_of(&(16..64)), q4.bytes_of(&(32..80))), (None, None));
        assert_eq!((Stored::F32.bytes_of(&(3..5)), Stored::BF16.bytes_of(&(3..5))), (Some(12..20), Some(6..10)));
    }
}
