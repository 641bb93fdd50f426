//! The wide channels of a cache: `HeadLayout::gqa_wide`.

use super::PagedKvCache;
use crate::error::{ErrorKind, Result};
use crate::gpu::{DType, Tensor};
use crate::kv::WideChannels;

pub(super) struct Wide {
    pub(super) channels: WideChannels,
    /// Per layer, (groups, nope_dim + wide_dim) U32: what kernels bind.
    pub(super) layers: Vec<Tensor>,
}

impl PagedKvCache {
    /// Names the wide channels of a layout that has some ([`HeadLayout::gqa_wide`](crate::HeadLayout)): before the first
    /// append, which needs them, and once, since rows that are there are of these.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for channels of another layout or number of layers, or a second call; those of the
    /// device.
    pub fn with_wide_channels(mut self, channels: &WideChannels) -> Result<Self> {
        let bad = |why: String| Err(ErrorKind::argument("channels", why));
        if channels.heads() != &self.heads {
            return bad(format!("of {:?}, the cache has {:?}", channels.heads(), self.heads));
        }
        if channels.layers() != self.pages.layers {
            return bad(format!("of {} layers, the cache has {}", channels.layers(), self.pages.layers));
        }
        if self.wide.is_some() {
            return bad("the cache has its wide channels".into());
        }
        let upload = |layer| {
            let words = channels.words(layer);
            let tensor = Tensor::zeros(&self.gpu, &[words.len()], DType::U32)?;
            self.gpu.upload(&tensor, &words)?;
            Ok(tensor)
        };
        let layers = (0..channels.layers()).map(upload).collect::<Result<_>>()?;
        self.wide = Some(Wide { channels: channels.clone(), layers });
        Ok(self)
    }

    /// The wide channels, where they are named.
    pub fn wide_channels(&self) -> Option<&WideChannels> {
        self.wide.as_ref().map(|wide| &wide.channels)
    }
}
