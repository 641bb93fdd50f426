//! From how many new tokens on the explicit form of prompts is faster here.

use super::owned::Owned;
use super::Session;
use crate::error::{ErrorKind, Result};
use crate::gpu::{DType, Tensor};
use crate::model::layers::attention::{AttentionScratch, AttentionStep, ScratchForms, StepPlans};
use crate::model::layers::explicit::ExplicitPrefill;
use crate::model::layers::prefill::{Choice, PrefillPath};
use crate::nn::Span;
use std::time::Instant;

/// New tokens that are tried.
const TRIED: [usize; 10] = [16, 32, 64, 96, 128, 192, 256, 384, 512, 1024];
/// Tokens before them, or as many as there is room for.
const CONTEXT: usize = 4096;
/// Layers of one wait, so that it does not count.
const REPEATS: usize = 4;

impl Session {
    /// Times one layer's attention in both forms ([`PrefillPath`]) with more and more new tokens behind a context of
    /// 4,096 (less where cache or model have no room), and returns the least number from which on the explicit form is
    /// faster: for [`PrefillPath::From`], in this session's options the next time or wherever an app keeps what it knows of
    /// an adapter. None where it never is within a step's tokens, or is not kept. By the host's clock: measure on an idle
    /// device.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] in browsers, whose clock is not read; those of the device. The session is as it
    /// was.
    pub async fn measure_prefill(&mut self) -> Result<Option<usize>> {
        if cfg!(target_arch = "wasm32") {
            return Err(ErrorKind::Unsupported { what: "the host's clock in a browser".into() }.into());
        }
        self.expect_alone("Session::measure_prefill")?;
        let (decoder, options) = (self.decoder().clone(), *self.options());
        let config = decoder.own_config();
        let most = self.capacity().min(self.max_positions().saturating_sub(1));
        let choice = Choice::new(config, PrefillPath::Explicit, options.window, most);
        let Some(choice) = choice.filter(|_| decoder.keeps_explicit() && options.keep_first == 0) else {
            return Ok(None);
        };
        let mut explicit =
            ExplicitPrefill::of_choice(decoder.gpu(), config, options.kv_dtype, choice, options.cache_tokens)?;
        let mut least = None;
        for new in TRIED.into_iter().filter(|new| *new <= most) {
            // Kept pages stay.
            let room = self.stats().free * options.page_size;
            if new > room {
                break;
            }
            let context = CONTEXT.min(room - new).min(self.max_positions() - new);
            let absorbed = self.time_layer((context, new), None).await?;
            let faster = self.time_layer((context, new), Some(&mut explicit)).await? < absorbed;
            least = if faster { least.or(Some(new)) } else { None };
        }
        Ok(least)
    }

    /// Seconds of one layer.
    async fn time_layer(
        &mut self,
        (context, new): (usize, usize),
        explicit: Option<&mut ExplicitPrefill>,
    ) -> Result<f64> {
        let decoder = self.decoder().clone();
        let (gpu, config) = (decoder.gpu(), decoder.own_config());
        let Some(block) = decoder.inner.blocks.first() else { return Ok(0.0) };
        let mut own = Owned::new(self);
        let id = own.insert();
        let cache = own.session.cache_mut();
        if context > 0 {
            // What the rows hold does not matter.
            cache.reserve(&[id], context)?;
            cache.commit(&[id], context)?;
        }
        cache.reserve(&[id], new)?;
        let forms = ScratchForms { explicit: explicit.is_some(), by_context: false };
        let scratch = AttentionScratch::new(gpu, (config, cache.heads()), new, forms)?;
        let x = Tensor::zeros(gpu, &[new, config.hidden_size], DType::F32)?;
        let (decode, cache) = own.session.attention_parts();
        let plans = StepPlans::new(decode, cache, &[id], explicit)?;
        cache.slots(&[id])?; // and angles
        let mut best = f64::INFINITY;
        // The first compiles.
        for repeats in [1, REPEATS, REPEATS] {
            let start = Instant::now();
            for _ in 0..repeats {
                let mut step = AttentionStep {
                    rows: new,
                    cache: &mut *cache,
                    decode,
                    plan: plans.absorbed.as_ref(),
                    kinds: None, // variants with two forms have one kind of layer
                    explicit: plans.explicit(),
                    sequences: &[id],
                    appending: None,
                    wide: None, // variants with two forms have no wide channels
                };
                block.attention().run(0, &scratch, &mut step, (Span::of(&x), Span::of(&x)), &mut || Ok(()))?;
            }
            gpu.download::<f32>(&x.view(&[1, 4])?).await?;
            best = if repeats > 1 { best.min(start.elapsed().as_secs_f64() / repeats as f64) } else { best };
        }
        Ok(best)
    }
}
