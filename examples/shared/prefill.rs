//! The forms that prompts may be asked for in, of several examples.

use latten::model::PrefillPath;

pub const FORMS: [(&str, PrefillPath); 3] =
    [("absorbed", PrefillPath::Absorbed), ("explicit", PrefillPath::Explicit), ("auto", PrefillPath::Auto)];

/// What `--prefill` is followed by.
#[allow(dead_code)] // not all have it
pub fn prefill_path(name: &str) -> Result<PrefillPath, String> {
    let form = FORMS.iter().find(|(known, _)| *known == name);
    form.map(|(_, path)| *path).ok_or_else(|| format!("--prefill {name}: not absorbed, explicit or auto"))
}
