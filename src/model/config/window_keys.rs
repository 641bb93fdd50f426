//! Keys of a `config.json` that say which layers have a window. Pure.

use super::families::{Family, FamilyWindow};
use super::keys::Keys;
use crate::error::Result;

/// The window of a model, and the layers that have it.
pub(super) struct LayerWindows {
    window: Option<usize>,
    layers: Vec<bool>,
}

const WINDOW: &str = "sliding_window";
const LIST: &str = "layer_types";

impl LayerWindows {
    fn of(window: Option<usize>, layers: Vec<bool>) -> Self {
        LayerWindows { window: window.filter(|_| layers.contains(&true)), layers }
    }

    /// The same without a window past the model's positions, which hides nothing.
    pub(super) fn visible(self, max_positions: usize) -> Self {
        LayerWindows { window: self.window.filter(|window| *window < max_positions), ..self }
    }

    /// The window of every layer, if they have one.
    pub(super) fn of_all(&self) -> Option<usize> {
        self.window.filter(|_| !self.layers.contains(&false))
    }

    /// That of some, if not all have it.
    pub(super) fn of_some(&self) -> Option<usize> {
        self.window.filter(|_| self.layers.contains(&false))
    }

    /// Whether a layer is one of those that have it by their kind.
    pub(super) fn in_layer(&self, layer: usize) -> bool {
        self.layers.get(layer).copied().unwrap_or(false)
    }
}

/// Errors: [`ErrorKind::Config`](crate::ErrorKind::Config), naming the key and its value.
pub(super) fn windows(keys: &Keys<'_>, family: &Family, layers: usize) -> Result<LayerWindows> {
    let size = || keys.size(WINDOW, u32::MAX as usize).map(Some);
    let usual: Vec<bool> = match family.window {
        FamilyWindow::All if !keys.is_null(WINDOW) => {
            uniform(keys, "sliding_attention")?;
            return Ok(LayerWindows::of(size()?, vec![true; layers]));
        }
        FamilyWindow::Asked if keys.flag_or("use_sliding_window", false)? && keys.has(WINDOW) => {
            let first = keys.count("max_window_layers", 1 << 10)?;
            (0..layers).map(|layer| layer >= first).collect()
        }
        FamilyWindow::Listed if keys.has(WINDOW) => vec![true; layers],
        FamilyWindow::Every(usual) if keys.has(WINDOW) => {
            const PATTERN: &str = "sliding_window_pattern";
            let every = if keys.has(PATTERN) { keys.size(PATTERN, 1 << 10)? } else { usual };
            (1..=layers).map(|layer| !layer.is_multiple_of(every)).collect()
        }
        _ => {
            uniform(keys, "full_attention")?;
            return Ok(LayerWindows::of(None, vec![false; layers]));
        }
    };
    let listed = match keys.has(LIST) {
        true => keys.words(LIST, &["full_attention", "sliding_attention"])?,
        false => return Ok(LayerWindows::of(size()?, usual)),
    };
    if listed.len() != layers {
        return Err(keys.bad(LIST, &format!("has {} words, of num_hidden_layers = {layers}", listed.len())));
    }
    Ok(LayerWindows::of(size()?, listed.iter().map(|kind| *kind == "sliding_attention").collect()))
}

/// Refuses layers that are listed as another kind.
fn uniform(keys: &Keys<'_>, kind: &str) -> Result<()> {
    match keys.is_mixed(LIST, kind) {
        true => Err(keys.bad(LIST, &format!("is not supported, all layers must have \"{kind}\""))),
        false => Ok(()),
    }
}
