//! Where results go: memory that serves one decode after the other.

use super::decode::Decode;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
#[cfg(doc)]
use crate::gpu::Gpu;
use crate::gpu::{DType, Tensor};
use std::sync::PoisonError;

/// Results of a decode. Dropped, the memory serves a later call of the same [`Decode`]; after [`Decode::encode`] only when
/// [`Gpu::passes_submitted`] was called.
#[derive(Debug, Clone)]
pub struct DecodeOutput {
    /// `(tokens, q_heads, v_dim)` f32: zeros where no token is visible.
    pub out: Tensor,
    /// `(tokens, q_heads)` f32: natural log of the sum of exponentials of the scaled scores; -inf where no token is
    /// visible.
    pub lse: Tensor,
}

/// Results that were dropped after they went into a pass of an app's, and that are kept for when that is submitted.
const LENT_OUTPUTS: usize = 4;

impl Decode {
    /// Result tensors for `tokens` query tokens, `(tokens, q_heads, v_dim)` and `(tokens, q_heads)`: memory of an earlier
    /// result that was dropped, or new. What they hold is undefined until a decode wrote it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`] for 0 tokens, [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`].
    pub fn output(&self, tokens: usize) -> Result<DecodeOutput> {
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        let out_shape = [tokens, self.heads.q_heads(), self.heads.v_dim()];
        let lent = |o: &DecodeOutput| self.gpu.is_lent(&o.out.buffer) || self.gpu.is_lent(&o.lse.buffer);
        let idle = |o: &DecodeOutput| o.out.is_unshared() && o.lse.is_unshared();
        let fits = |o: &&DecodeOutput| idle(o) && !lent(o) && o.out.shape()[0] >= tokens;
        if let Some(free) = outputs.iter().filter(fits).min_by_key(|o| o.out.shape()[0]) {
            // What it was to hold went with whoever dropped it.
            free.out.buffer.renew();
            free.lse.buffer.renew();
            return Ok(DecodeOutput { out: free.out.view(&out_shape)?, lse: free.lse.view(&out_shape[..2])? });
        }
        // Of those that a pass of an app's may still write, the last few: an app that never says that it has submitted its
        // passes would make them grow in number.
        let mut surplus = outputs.iter().filter(|o| idle(o) && lent(o)).count().saturating_sub(LENT_OUTPUTS);
        outputs.retain(|o| {
            let goes = o.out.is_unshared() && (!lent(o) || surplus > 0);
            surplus -= usize::from(goes && lent(o));
            !goes
        });
        let out = Tensor::zeros(&self.gpu, &out_shape, DType::F32)?;
        let lse = Tensor::zeros(&self.gpu, &out_shape[..2], DType::F32)?;
        outputs.push(DecodeOutput { out: out.clone(), lse: lse.clone() });
        Ok(DecodeOutput { out, lse })
    }
}
