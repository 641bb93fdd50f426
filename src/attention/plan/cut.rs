//! How the tokens of one tile are cut into parts, by a policy. Pure.

use super::balance::{Cutter, Load, Parts};
use super::shape::KernelForm;
use super::work::{PlanShape, SplitPolicy, Tile};

/// How a tile's tokens are cut: some parts of a fixed length, then near-equal runs of whole units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// First token of the tile.
    first: u32,
    /// Tokens of the tile, and of a unit; the last unit may be short.
    tokens: u64,
    unit: u64,
    /// How many parts, the first `long` of them `chunk` tokens each; one or more.
    pub(super) parts: u64,
    long: u64,
    chunk: u64,
}

impl Cut {
    fn even(tile: &Tile, unit: u64, parts: u64) -> Self {
        let (first, tokens) = (tile.first, tile.tokens());
        Cut { first, tokens, unit, parts: parts.max(1), long: 0, chunk: 0 } // max: what sees nothing still has its zeros to write
    }

    /// Start of part `part`, and end of the one before.
    pub(super) fn boundary(&self, part: u64) -> u32 {
        let first = part.min(self.long) * self.chunk;
        let (part, parts) = (part - part.min(self.long), self.parts - self.long);
        let units = self.tokens.saturating_sub(first).div_ceil(self.unit);
        let token = first + (part * units).checked_div(parts).unwrap_or(0) * self.unit;
        self.first + token.min(self.tokens) as u32 // no truncation, and no overflow: both came from tokens of a u32
    }
}

/// How [`SplitPolicy::Auto`] cuts the tiles of a class, and for which of its forms; [`KernelForm::Usual`] for other policies, which do not
/// ask this.
#[derive(Debug, Clone)]
pub(super) struct Auto {
    pub(super) cutter: Cutter,
    form: KernelForm,
    /// Whether the tiles, whole, leave some of the device idle.
    few: bool,
}

impl Auto {
    /// The form for so many items, the longest of them of so many tokens.
    pub(super) fn form(&self, (items, longest): (usize, u64), shape: &PlanShape, class: usize) -> KernelForm {
        match self.few && longest <= shape.short_tokens[class] && items <= shape.most_short(class) {
            true => KernelForm::Short,
            false => self.form,
        }
    }
}

/// Of the tiles of a class.
pub(super) fn auto(tiles: &[Tile], class: usize, shape: &PlanShape, policy: SplitPolicy) -> Auto {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let wanted = if policy == SplitPolicy::Auto { tiles } else { &[] };
    for tile in wanted {
        match runs.last_mut() {
            Some(run) if run.0 == tile.tokens() => run.1 += 1,
            _ => runs.push((tile.tokens(), 1)),
        }
    }
    let rows = wanted.iter().map(|tile| tile.rows).max().unwrap_or(0);
    let load = Load {
        runs,
        slots: shape.slots(class),
        workgroups: shape.workgroups(class),
        squads: 1,
        stretch: 1.0,
        token_tile: shape.token_tile as u64,
        // A partial is written and read as f32; groups of one workgroup count on both sides.
        merge_tokens: 2.0 * 4.0 * f64::from(rows) * shape.v_dim as f64 / shape.bytes_per_token as f64,
    };
    let few = load.leaves_room();
    let longest = load.runs.iter().map(|run| run.0).max().unwrap_or(0);
    if few && longest <= shape.short_tokens[class] && tiles.len() <= shape.most_short(class) {
        return Auto { cutter: Cutter::whole(), form: KernelForm::Short, few };
    }
    let (alone, cost) = load.choose();
    if shape.squads[class] == 1 || !few {
        return Auto { cutter: alone, form: KernelForm::Usual, few };
    }
    let (slots, squads) = (shape.shared_slots(class), shape.squads[class]);
    let stretch = shape.shared_stretch(class);
    let (shared, less) = Load { slots, workgroups: shape.groups, squads, stretch, ..load }.choose();
    match less < cost {
        true => Auto { cutter: shared, form: KernelForm::Squads, few },
        false => Auto { cutter: alone, form: KernelForm::Usual, few },
    }
}

/// The parts of a class's next tile.
pub(super) fn cut(tile: &Tile, (shape, most): (&PlanShape, u64), policy: SplitPolicy, auto: &mut Cutter) -> Cut {
    let tokens = tile.tokens();
    let token_tile = shape.token_tile as u64;
    match policy {
        SplitPolicy::Off => Cut::even(tile, token_tile, 1),
        SplitPolicy::Count(parts) => Cut::even(tile, token_tile, tokens.div_ceil(token_tile).min(parts as u64)),
        SplitPolicy::FixedTokens(tokens_per_part) => {
            let unit = (tokens_per_part as u64).min(u64::from(u32::MAX)).next_multiple_of(token_tile);
            Cut::even(tile, unit, tokens.div_ceil(unit))
        }
        SplitPolicy::Auto => {
            let Parts { parts, long, chunk } = auto.next(tokens);
            let longest = if long > 0 { chunk } else { tokens.div_ceil(parts.max(1)) };
            if longest > most {
                return Cut::even(tile, token_tile, tokens.div_ceil((most - most % token_tile).max(token_tile)));
            }
            Cut { first: tile.first, tokens, unit: token_tile, parts, long, chunk }
        }
    }
}
