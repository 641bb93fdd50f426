//! Which tensors a model's embedding and head are: the tie is undone where the file has another head.

use super::reader::WeightReader;
use crate::error::Result;
use crate::model::config::Config;

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// Bytes of each of two tensors that are compared at a time, or a row.
const PART_BYTES: usize = 1 << 20;

/// Names, without `.weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) table: &'static str,
    /// None where the table is the head.
    pub(crate) head: Option<&'static str>,
}

impl WeightReader<'_> {
    /// The tensors of `config`'s embedding and head. Where they are tied, and the file has both, they are tied only if they
    /// are equal, as in transformers; and where it has but a head, that is the table.
    ///
    /// Errors: [`ErrorKind::Weights`](crate::ErrorKind::Weights), [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub(crate) fn ends(&self, config: &Config) -> Result<Ends> {
        let (table, head) = (format!("{EMBEDDING}.weight"), format!("{HEAD}.weight"));
        let own_head = Ends { table: EMBEDDING, head: Some(HEAD) };
        if !config.tied {
            return Ok(own_head);
        }
        match (self.store.get(&table).is_some(), self.store.get(&head).is_some()) {
            (false, true) => Ok(Ends { table: HEAD, head: None }),
            (true, true) if !self.are_equal([&table, &head], &[config.vocab_size, config.hidden_size])? => {
                let why = format!("differs from {table}, so it is used, though tie_word_embeddings is true");
                log::warn!("{}", self.store.bad(&head, why));
                Ok(own_head)
            }
            _ => Ok(Ends { table: EMBEDDING, head: None }),
        }
    }

    /// Whether two tensors of this shape hold the same numbers, in whatever dtypes. Little of them is in memory at a time.
    pub(crate) fn are_equal(&self, names: [&str; 2], shape: &[usize]) -> Result<bool> {
        let [a, b] = [self.place(names[0], shape)?, self.place(names[1], shape)?];
        if a.rows() != b.rows() {
            return Ok(false);
        }
        let step = (PART_BYTES / a.row_bytes().max(b.row_bytes())).max(1);
        for first in (0..a.rows()).step_by(step) {
            let rows = first..a.rows().min(first.saturating_add(step));
            let (x, y) = (self.store.peek(a, rows.clone())?, self.store.peek(b, rows)?);
            let same_bytes = a.stored == b.stored && x == y;
            if !same_bytes && a.stored.decoded(&x) != b.stored.decoded(&y) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether all numbers of a tensor are 0. False for what is no float, or large.
    pub(crate) fn is_zero(&self, name: &str) -> Result<bool> {
        let Some(place) = self.store.get(name) else { return Ok(false) };
        let small = place.rows().saturating_mul(place.row_bytes()) <= PART_BYTES;
        if !small || !place.stored.is_read() {
            return Ok(false);
        }
        Ok(place.stored.decoded(&self.store.peek(place, 0..place.rows())?).iter().all(|value| *value == 0.0))
    }
}
