//! Rotations of some layers: those of a model whose layers do not all rotate alike.

use super::PagedKvCache;
use crate::error::{ErrorKind, Result};
use crate::rope::Rope;

/// Which layers rotate otherwise than the cache does.
#[derive(Debug, Clone, Default)]
pub(super) struct LayerRopes {
    others: Vec<Vec<f32>>,
    /// Of each layer, 0 for the cache's and from 1 on one of the others; empty where there are none.
    of_layers: Vec<usize>,
}

impl LayerRopes {
    /// Frequencies beside the cache's own.
    pub(super) fn others(&self) -> std::slice::Iter<'_, Vec<f32>> {
        self.others.iter()
    }

    /// The number of a layer's rotation.
    pub(super) fn of(&self, layer: usize) -> usize {
        self.of_layers.get(layer).copied().unwrap_or(0)
    }
}

impl PagedKvCache {
    /// The same whose layers rotate by these, one for each, of the pairs and the width of the cache's rotation. Frequencies of 0 leave
    /// elements as they are. Saved caches know the cache's own rotation alone: which layers differ is for those who load to know.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for another number of layers, other pairs or another width, and those of the device.
    pub fn with_layer_ropes(mut self, ropes: &[Rope]) -> Result<Self> {
        let layers = self.pages.layers;
        if ropes.len() != layers {
            return Err(ErrorKind::argument("ropes", format!("{}, the cache has {layers} layers", ropes.len())));
        }
        let mut made = LayerRopes::default();
        for (layer, rope) in ropes.iter().enumerate() {
            if rope.pairs != self.append.rotation() || rope.inv_freq.len() != self.inv_freq.len() {
                let why = format!("layer {layer} has {} pairs, {:?}", rope.inv_freq.len(), rope.pairs);
                let wanted = format!("{why}; the cache has {}, {:?}", self.inv_freq.len(), self.append.rotation());
                return Err(ErrorKind::argument("ropes", wanted));
            }
            let known = made.others.iter().position(|other| *other == rope.inv_freq).map(|at| at + 1);
            let number = if rope.inv_freq == self.inv_freq { Some(0) } else { known };
            made.of_layers.push(number.unwrap_or(made.others.len() + 1));
            if number.is_none() {
                made.others.push(rope.inv_freq.clone());
            }
        }
        self.layer_ropes = made;
        self.make_step_buffers(super::STEP_TOKENS)?;
        Ok(self)
    }

    /// The same with the rotations of another cache's layers.
    pub(super) fn with_same_layer_ropes(mut self, other: &Self) -> Result<Self> {
        self.layer_ropes = other.layer_ropes.clone();
        self.make_step_buffers(super::STEP_TOKENS)?;
        Ok(self)
    }
}
