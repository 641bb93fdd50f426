//! Matrices in 4 bits as AWQ and GPTQ have them, in three tensors each: `qweight`, by inputs, `qzeros` and `scales`, by groups of
//! inputs. Read as rows of blocks: [`BlockType::Q4_G128`], or [`BlockType::Q4_G32`] for groups that are no multiple of 128.

use super::made::{Lines, MadeRows};
use super::store::{Place, WeightFile, WeightFiles};
use super::stored::Stored;
use crate::error::{shape_text, Result};
use crate::model::config::quantised::{GroupPacking, GroupQuantised};
use crate::nn::BlockType;
use safetensors::tensor::Dtype;
use std::ops::Range;

/// Integers in a word of a file, of 32 bits.
const IN_WORD: usize = 8;
/// Elements of a run of a block, and bytes of its integers.
const RUN: usize = 32;
const RUN_BYTES: usize = 16;
/// Bytes before a block's integers: f16, zero, and one that says nothing.
const HEADER: usize = 4;
/// Where in AWQ's words the integer of each of 8 outputs is.
const AWQ_PLACES: [u32; IN_WORD] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Where a matrix's tensors lie, and how.
pub(super) struct Groups {
    packing: GroupPacking,
    group: usize,
    in_dim: usize,
    qweight: Lines,
    qzeros: Lines,
    scales: Lines,
}

impl WeightFiles<'_> {
    /// Makes one tensor, `x.weight`, of each `x.qweight` and what belongs to it.
    ///
    /// Errors: [`ErrorKind::Weights`](crate::ErrorKind::Weights), [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub(crate) fn with_groups(mut self, quantised: GroupQuantised) -> Result<Self> {
        let stems: Vec<String> =
            self.tensors.keys().filter_map(|name| name.strip_suffix(".qweight")).map(str::to_string).collect();
        for stem in stems {
            let weight = format!("{stem}.weight");
            if self.tensors.contains_key(&weight) {
                return Err(self.bad(&weight, format!("is there beside {stem}.qweight")));
            }
            let place = self.joined(&stem, quantised)?;
            for part in ["qweight", "qzeros", "scales", "g_idx"] {
                self.tensors.remove(&format!("{stem}.{part}"));
            }
            self.tensors.insert(weight, place);
        }
        Ok(self)
    }

    fn joined(&self, stem: &str, quantised: GroupQuantised) -> Result<Place> {
        let qweight = format!("{stem}.qweight");
        let shape = self.tensors.get(&qweight).map_or(&[][..], |place| &place.shape);
        let [lines, columns] = *shape else {
            return Err(self.bad(&qweight, format!("has shape {}, wanted two sizes", shape_text(shape))));
        };
        let awq = quantised.packing == GroupPacking::Awq;
        let (in_words, out_words) = if awq { (1, IN_WORD) } else { (IN_WORD, 1) };
        let (in_dim, out_dim) = (lines.saturating_mul(in_words), columns.saturating_mul(out_words));
        let group = quantised.group.unwrap_or(in_dim);
        if !group.is_multiple_of(RUN) || !in_dim.is_multiple_of(group) || !out_dim.is_multiple_of(IN_WORD) {
            let found = format!("holds {out_dim} outputs of {in_dim} inputs in groups of {group}");
            let why = format!("{found}, wanted a multiple of {IN_WORD}, and whole groups of a multiple of {RUN}");
            return Err(self.bad(&qweight, why));
        }
        let groups = in_dim / group;
        let part = |name: &str, dtype, shape: [usize; 2]| {
            self.lines(&format!("{stem}.{name}"), Stored::of_safetensors(dtype), shape)
        };
        let joined = Groups {
            packing: quantised.packing,
            group,
            in_dim,
            qweight: part("qweight", Dtype::I32, [lines, columns])?,
            qzeros: part("qzeros", Dtype::I32, [groups, out_dim / IN_WORD])?,
            scales: part("scales", Dtype::F16, [groups, out_dim])?,
        };
        self.check_order(stem, (in_dim, group), quantised.ordered)?;
        let block = joined.block();
        let bytes = block.row_bytes(in_dim).and_then(|row| row.checked_mul(out_dim));
        let bytes = bytes.ok_or_else(|| self.bad(&qweight, format!("has {out_dim} rows of {in_dim}")))?;
        Ok(Place {
            file: joined.qweight.file,
            stored: Stored::Blocks(block),
            shape: [out_dim, in_dim].into(),
            offset: joined.qweight.offset,
            bytes,
            own_name: Some(qweight.into()),
            neighbours: None,
            made: Some(Box::new(MadeRows::Groups(joined))),
        })
    }

    /// Inputs must be in the order of their groups.
    fn check_order(&self, stem: &str, (in_dim, group): (usize, usize), ordered: bool) -> Result<()> {
        let name = format!("{stem}.g_idx");
        let Some(place) = self.tensors.get(&name) else {
            return match ordered {
                true => Err(self.bad(&name, "missing, and desc_act is true".into())),
                false => Ok(()),
            };
        };
        if *place.shape != [in_dim] || place.stored != Stored::Other(Dtype::I32) {
            let found = format!("has shape {} in {}", shape_text(&place.shape), place.stored);
            return Err(self.bad(&name, format!("{found}, wanted {} in I32", shape_text(&[in_dim]))));
        }
        let bytes = self.files[place.file].read(place.offset, place.bytes)?;
        let numbers = bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        match numbers.enumerate().find(|(input, number)| usize::try_from(*number) != Ok(input / group)) {
            None => Ok(()),
            Some((input, number)) => {
                let why = format!("has input {input} in group {number}, not {}", input / group);
                Err(self.bad(&name, format!("{why}: another order (desc_act = true) is not supported")))
            }
        }
    }
}

impl Groups {
    pub(super) fn block(&self) -> BlockType {
        match self.group.is_multiple_of(BlockType::Q4_G128.elements()) {
            true => BlockType::Q4_G128,
            false => BlockType::Q4_G32,
        }
    }

    /// Some rows of the matrix, behind each other in `rows_out`.
    ///
    /// Errors: [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub(super) fn read(&self, files: &[WeightFile<'_>], rows: Range<usize>, made: &mut Vec<u8>) -> Result<()> {
        // Whole words of zeros, and of AWQ's integers.
        let outputs = rows.start / IN_WORD * IN_WORD..rows.end.next_multiple_of(IN_WORD);
        let columns = |bits: usize| outputs.start * bits / 8..outputs.end * bits / 8;
        let awq = self.packing == GroupPacking::Awq;
        let codes = self.qweight.read(files, columns(if awq { 4 } else { 32 }))?;
        let zeros = self.qzeros.read(files, columns(4))?;
        let scales = self.scales.read(files, columns(16))?;
        let row_bytes = self.in_dim / self.block().elements() * self.block().bytes();
        made.clear();
        made.resize(rows.len() * row_bytes, 0);
        let skipped = rows.start - outputs.start;
        for (row, bytes) in made.chunks_exact_mut(row_bytes).enumerate() {
            self.write_headers((skipped + row, outputs.len()), (&zeros, &scales), bytes);
        }
        match awq {
            true => self.write_awq(&codes, (skipped, outputs.len()), made, row_bytes),
            false => self.write_gptq(&codes, (skipped, outputs.len()), made, row_bytes),
        }
        Ok(())
    }

    /// Scale and zero of a row's blocks. `output` of `outputs` that were read.
    fn write_headers(&self, (output, outputs): (usize, usize), (zeros, scales): (&[u8], &[u8]), row: &mut [u8]) {
        let block = self.block();
        for (i, header) in row.chunks_exact_mut(block.bytes()).enumerate() {
            let group = i * block.elements() / self.group;
            let at = 2 * (group * outputs + output);
            header[..2].copy_from_slice(&scales[at..at + 2]);
            let word = u32_at(zeros, 4 * (group * (outputs / IN_WORD) + output / IN_WORD));
            let zero = |place: u32| (word >> (4 * place) & 15) as u8;
            header[2] = match self.packing {
                GroupPacking::Awq => zero(AWQ_PLACES[output % IN_WORD]),
                // What is written for a zero of 0 is 15.
                GroupPacking::Gptq => (zero((output % IN_WORD) as u32) + 1) % 16,
                GroupPacking::GptqV2 => zero((output % IN_WORD) as u32),
            };
        }
    }

    /// Where a row has the integers of a run of 32 elements.
    fn run_at(&self, run: usize) -> usize {
        let per_block = self.block().elements() / RUN;
        run / per_block * self.block().bytes() + HEADER + run % per_block * RUN_BYTES
    }

    /// Integers of `outputs`, of which the first ones are `skipped`: a word has 8 inputs of one.
    fn write_gptq(&self, codes: &[u8], (skipped, outputs): (usize, usize), made: &mut [u8], row_bytes: usize) {
        for run in 0..self.in_dim / RUN {
            let at = self.run_at(run);
            let lines: [&[u8]; 4] = std::array::from_fn(|i| &codes[(4 * run + i) * 4 * outputs..][..4 * outputs]);
            for (row, bytes) in made.chunks_exact_mut(row_bytes).enumerate() {
                let [a, b, c, d] = lines.map(|line| spread(u32_at(line, 4 * (skipped + row))));
                bytes[at..at + 8].copy_from_slice(&(a | c << 4).to_le_bytes());
                bytes[at + 8..at + 16].copy_from_slice(&(b | d << 4).to_le_bytes());
            }
        }
    }

    /// The same where a word has 8 outputs of an input.
    fn write_awq(&self, codes: &[u8], (skipped, outputs): (usize, usize), made: &mut [u8], row_bytes: usize) {
        let rows = made.len() / row_bytes;
        for run in 0..self.in_dim / RUN {
            let (at, line) = (self.run_at(run), outputs / 2);
            for word in 0..outputs / IN_WORD {
                let half = |first: usize| -> [u32; RUN_BYTES] {
                    std::array::from_fn(|i| u32_at(codes, (RUN * run + first + i) * line + 4 * word))
                };
                let (low, high) = (half(0), half(RUN_BYTES));
                for (output, place) in AWQ_PLACES.into_iter().enumerate() {
                    let row = (IN_WORD * word + output).checked_sub(skipped).filter(|row| *row < rows);
                    let Some(row) = row else { continue };
                    let bytes = &mut made[row * row_bytes + at..][..RUN_BYTES];
                    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
                        *byte = (low >> (4 * place) & 15 | (high >> (4 * place) & 15) << 4) as u8;
                    }
                }
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The 8 integers of a word, a byte each.
fn spread(word: u32) -> u64 {
    let word = u64::from(word);
    let word = (word | word << 16) & 0x0000_ffff_0000_ffff;
    let word = (word | word << 8) & 0x00ff_00ff_00ff_00ff;
    (word | word << 4) & 0x0f0f_0f0f_0f0f_0f0f
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod groups_tests;
