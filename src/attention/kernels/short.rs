//! The kernel for few items of few tokens (`shaders/attention/decode_short.wgsl`): its numbers, from the layout and the device. Pure.

use crate::kv::layout::StateLayout;

/// Lanes of a workgroup, and tokens of a tile.
const THREADS: usize = 256;
/// Lanes that share a token's scores.
const TEAM: usize = 8;
/// Tokens of the value that a lane has on their way at once.
const AT_ONCE: usize = 4;
/// More rows than this are other kernels': their parts would read the cache as often.
const MAX_ROWS: usize = 16;
/// Up to so many tokens few items are not cut, and parts of so many are this kernel's.
pub(crate) const SHORT_TOKENS: u64 = 256;

/// Constants of one variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ShortShape {
    /// Rows of a workgroup: 1, 2 or 4.
    pub(crate) rows: usize,
    /// Workgroups that share the rows of an item.
    pub(crate) row_parts: usize,
    /// Lanes that share a token's value.
    pub(crate) value_lanes: usize,
    /// Most subgroups of a workgroup.
    pub(crate) subgroups: usize,
}

impl ShortShape {
    /// For tiles of `rows` rows, on a device whose subgroups have at least `subgroup` lanes; none where there is no such kernel.
    pub(crate) fn choose(
        layout: &StateLayout,
        rows: usize,
        (subgroup, workgroup_bytes): (usize, usize),
    ) -> Option<Self> {
        let of_part = [4, 2, 1].into_iter().find(|n| rows.is_multiple_of(*n))?;
        let shape = ShortShape {
            rows: of_part,
            row_parts: rows / of_part,
            value_lanes: layout.value_words.next_power_of_two(),
            subgroups: THREADS.div_ceil(subgroup.max(1)),
        };
        let fits = rows <= MAX_ROWS
            && subgroup >= TEAM
            && shape.value_lanes <= THREADS
            && shape.workgroup_bytes(layout) <= workgroup_bytes;
        fits.then_some(shape)
    }

    pub(crate) const fn threads(&self) -> usize {
        THREADS
    }

    pub(crate) const fn team(&self) -> usize {
        TEAM
    }

    pub(crate) const fn at_once(&self) -> usize {
        AT_ONCE
    }

    /// Words of a token's key and rope key that a lane of a team takes.
    pub(crate) fn slots(&self, layout: &StateLayout) -> (usize, usize) {
        (layout.key_words.div_ceil(TEAM), layout.rope_words.div_ceil(TEAM))
    }

    /// Blocks of rows that queries take, and after them the sums of half the lanes.
    pub(crate) fn area(&self, layout: &StateLayout) -> usize {
        let (key, rope) = self.slots(layout);
        (TEAM * (key * layout.elems_per_word + rope * layout.rope_elems())).max(4 * THREADS / 2)
    }

    pub(crate) fn workgroup_bytes(&self, layout: &StateLayout) -> usize {
        // A block of 3 would take the room of 4; there is none.
        4 * self.rows * (self.area(layout) + THREADS + self.subgroups) + 4 * THREADS
    }

    /// Rows of an item, all parts together.
    pub(crate) fn item_rows(&self) -> usize {
        self.rows * self.row_parts
    }
}
