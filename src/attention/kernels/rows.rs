//! Which row kernel: how lanes share a token, chosen once from the layout and the device. Pure.
//!
//! For few query rows, on devices with subgroup operations (`shaders/attention/decode_rows.wgsl`). A lane keeps its share of the
//! queries, of the sums and of two steps of tokens in registers, and so many must fit.

use crate::kv::layout::StateLayout;
use crate::kv::HeadLayout;

/// Registers of a lane for what it holds across steps, under the 255 of NVIDIA.
const MAX_REGISTERS: usize = 240;
/// And where it has one token a step: past it the tile kernel is faster (H100, GLA-2 of 16 heads: 541 us, 748 with 232
/// registers), since memory answers too late.
const MAX_REGISTERS_OF_ONE: usize = 208;
/// More rows than this are the tile kernel's: every lane works on all of them.
pub(crate) const MAX_ROWS: usize = 8;
/// Lanes of a workgroup, at most; more groups than fit take several workgroups.
const MAX_THREADS: usize = 256;

/// Constants of one variant of the row kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RowShape {
    pub(crate) rows_per_block: usize,
    pub(crate) row_blocks: usize,
    /// Lanes that share a token.
    pub(crate) team: usize,
    /// Teams of a group, together at most a subgroup.
    pub(crate) teams: usize,
    /// Tokens of a team per step.
    pub(crate) tokens: usize,
    /// Groups of a workgroup, each with a squad (the teams of a group) of its own; 1 where there are several squads.
    pub(crate) groups_per_workgroup: usize,
    /// Squads that share the tokens of a group.
    pub(crate) squads: usize,
}

impl RowShape {
    pub(crate) fn rows(&self) -> usize {
        self.rows_per_block * self.row_blocks
    }

    /// The shape for `rows` rows on a device whose subgroups have at least `subgroup` lanes, or none where the registers
    /// or lanes do not suffice.
    pub(crate) fn choose(heads: &HeadLayout, layout: &StateLayout, rows: usize, subgroup: usize) -> Option<Self> {
        let rows_per_block = match rows {
            1 => 1,
            2 => 2,
            3..=MAX_ROWS => 4,
            _ => return None,
        };
        let row_blocks = rows.div_ceil(rows_per_block);
        // The fewest lanes per token: shuffles cost per lane and step, whatever they carry.
        for team in [8, 16, 32].into_iter().filter(|team| *team <= subgroup) {
            for tokens in [4, 2, 1] {
                let shape = Self {
                    rows_per_block,
                    row_blocks,
                    team,
                    teams: subgroup.min(64) / team,
                    tokens,
                    groups_per_workgroup: 1,
                    squads: 1,
                };
                let most = if tokens == 1 { MAX_REGISTERS_OF_ONE } else { MAX_REGISTERS };
                if shape.registers(layout) <= most {
                    return Some(Self { groups_per_workgroup: shape.groups_that_fit(heads.groups()), ..shape });
                }
            }
        }
        None
    }

    /// The same with as many squads for a group as a workgroup has room for: for items that are too few to fill the device.
    /// None where that is one.
    pub(crate) fn shared(&self, heads: &HeadLayout, workgroup_bytes: usize) -> Option<Self> {
        [8, 4, 2]
            .into_iter()
            .map(|squads| Self { squads, groups_per_workgroup: 1, ..*self })
            .find(|shape| shape.threads() <= MAX_THREADS && shape.workgroup_bytes(heads) <= workgroup_bytes)
    }

    /// What squads join in: of each row its maximum, total and sums.
    pub(crate) fn workgroup_bytes(&self, heads: &HeadLayout) -> usize {
        if self.squads == 1 {
            0
        } else {
            4 * self.squads * self.rows() * (heads.v_dim() + 2)
        }
    }

    /// Whether reads of the pool must stay where they are written, ahead of a step's arithmetic. Measured on an H100: GTA
    /// 475 us, 537 without; MHA 365 and 393; two query tokens of GQA 935 and 1,245, one in i8 562 and 589; but one in f16 863
    /// and 752.
    pub(crate) fn ordered(&self, layout: &StateLayout) -> bool {
        let one_token = self.rows_per_block == 4 && self.row_blocks == 1;
        let plain_gqa = one_token && layout.value_first > 0 && layout.spans == 0;
        !plain_gqa
    }

    /// Whether a step's pages are looked up together where they are one. Measured on an H100, with and without: GTA 436 us
    /// and 465, in i8 514 and 626; but GQA 756 and 744, in i8 574 and 531. It is the order of the driver's instructions
    /// that this changes more than their number.
    pub(crate) fn joint_pages(&self, layout: &StateLayout) -> bool {
        layout.rope_words > 0
    }

    /// Scores of a team in a step, a power of two.
    pub(crate) fn scores(&self) -> usize {
        self.tokens * self.rows()
    }

    /// How often a lane passes on half of its scores while they are summed (log2 of lanes with scores of their own).
    /// Measured on an H100: GTA 622 us without, 471, 436 and 443 with one to three; in i8 591, 533, 515, 565.
    pub(crate) fn halvings(&self, layout: &StateLayout) -> usize {
        let most = if self.joint_pages(layout) { 2 } else { 5 };
        (self.team.min(self.scores()).ilog2() as usize).min(most)
    }

    /// Groups whose teams make a workgroup; they divide the groups.
    fn groups_that_fit(&self, groups: usize) -> usize {
        let most = MAX_THREADS / (self.team * self.teams);
        (1..=most.min(groups)).rev().find(|n| groups.is_multiple_of(*n)).unwrap_or(1)
    }

    pub(crate) fn threads(&self) -> usize {
        self.team * self.teams * self.groups_per_workgroup * self.squads
    }

    /// Words of a lane: of the key without position, of the rope key, of a state, of the value; and the first of those.
    pub(crate) fn slots(&self, layout: &StateLayout) -> Slots {
        let value_first = layout.value_first / self.team;
        Slots {
            key: layout.key_words.div_ceil(self.team),
            rope: layout.rope_words.div_ceil(self.team),
            state: layout.state_words.div_ceil(self.team),
            value: (layout.value_first + layout.value_words).div_ceil(self.team) - value_first,
            value_first,
        }
    }

    fn registers(&self, layout: &StateLayout) -> usize {
        let slots = self.slots(layout);
        let elems = (slots.key + slots.value) * layout.elems_per_word + slots.rope * layout.rope_elems();
        let fetched = layout.word_bytes / 4 * (slots.state + slots.rope) + layout.spans;
        elems * self.rows() + 2 * self.tokens * fetched + 3 * self.rows()
    }
}

/// See [`RowShape::slots`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots {
    pub(crate) key: usize,
    pub(crate) rope: usize,
    pub(crate) state: usize,
    pub(crate) value: usize,
    pub(crate) value_first: usize,
}
