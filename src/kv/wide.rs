//! Which channels of keys a cache of integers keeps in f16 as well. Pure.

use super::HeadLayout;
use crate::error::{ErrorKind, Result};

/// The wide channels of a [`HeadLayout::gqa_wide`], by layer and KV head: those of its keys, after rotation, that are much
/// larger than the others. RopePairs mixes the two channels of a pair, so name both (`i` and `i + head_dim / 2`, or `2i` and
/// `2i + 1`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WideChannels {
    heads: HeadLayout,
    layers: usize,
    /// (layers, groups, wide_dim)
    channels: Vec<u32>,
}

impl WideChannels {
    /// `channels[layer][kv_head]` are elements of the key, `wide` ([`HeadLayout::wide_dim`]) at most and each once; where they
    /// are fewer, the first of the other elements are taken besides.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a layout without wide channels, no layers, a layer with another number of KV heads,
    /// and for channels that are too many, not in the key or named twice.
    pub fn new(heads: &HeadLayout, channels: &[Vec<Vec<u32>>]) -> Result<Self> {
        let bad = |why: String| Err(ErrorKind::argument("channels", why));
        let (wide, width) = (heads.wide_dim(), heads.nope_dim() as u32);
        if wide == 0 {
            return bad("the layout has no wide channels: HeadLayout::gqa_wide makes one".into());
        }
        if channels.is_empty() {
            return bad("no layers".into());
        }
        let mut all = Vec::new();
        for (l, layer) in channels.iter().enumerate() {
            if layer.len() != heads.groups() {
                return bad(format!("{} KV heads in layer {l}, wanted {}", layer.len(), heads.groups()));
            }
            for (g, named) in layer.iter().enumerate() {
                let whose = format!("layer {l}, KV head {g}");
                if named.len() > wide {
                    return bad(format!("{} in {whose}, the layout has room for {wide}", named.len()));
                }
                for (i, channel) in named.iter().enumerate() {
                    if *channel >= width || named.iter().take(i).any(|c| c == channel) {
                        return bad(format!("{channel} in {whose} is named twice or not in 0..{width}"));
                    }
                }
                let others = (0..width).filter(|c| !named.contains(c));
                all.extend(named.iter().copied().chain(others).take(wide));
            }
        }
        Ok(Self { heads: *heads, layers: channels.len(), channels: all })
    }

    /// The layout that they are of.
    pub fn heads(&self) -> &HeadLayout {
        &self.heads
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// The `wide` channels of a KV head, in the order in which they are kept; none for a layer or head that is not there.
    pub fn of(&self, layer: usize, kv_head: usize) -> &[u32] {
        let (wide, groups) = (self.heads.wide_dim(), self.heads.groups());
        if layer >= self.layers || kv_head >= groups {
            return &[];
        }
        self.channels.chunks_exact(wide).nth(layer * groups + kv_head).unwrap_or_default()
    }

    /// (layers, groups, wide_dim): as they are saved.
    pub(crate) fn numbers(&self) -> &[u32] {
        &self.channels
    }

    /// From such numbers. Errors: as [`WideChannels::new`].
    pub(crate) fn from_numbers(heads: &HeadLayout, numbers: &[u32]) -> Result<Self> {
        let groups: Vec<Vec<u32>> = numbers.chunks(heads.wide_dim().max(1)).map(<[u32]>::to_vec).collect();
        let layers: Vec<Vec<Vec<u32>>> = groups.chunks(heads.groups()).map(<[Vec<u32>]>::to_vec).collect();
        Self::new(heads, &layers)
    }

    /// What kernels bind for a layer, per group: of every element of the key its place plus 1 or 0, then the channels.
    pub(crate) fn words(&self, layer: usize) -> Vec<u32> {
        let mut words = Vec::new();
        for group in 0..self.heads.groups() {
            let channels = self.of(layer, group);
            let place = |c: u32| channels.iter().position(|wide| *wide == c).map_or(0, |i| i as u32 + 1);
            words.extend((0..self.heads.nope_dim() as u32).map(place));
            words.extend(channels);
        }
        words
    }
}
