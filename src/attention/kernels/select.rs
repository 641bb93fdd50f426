//! Which kernels a layout gets on a device: the one predicate for planner, scratch and dispatch. Pure.

use super::matrix;
use super::matrix::MatrixShape;
use super::rows;
use super::rows::RowShape;
use super::short::ShortShape;
use super::tile::{DecodeShape, ShapeLimits};
use crate::error::Result;
use crate::gpu::{Capabilities, DType, Tier};
use crate::kv::layout::StateLayout;
use crate::kv::HeadLayout;

/// A decode kernel of one tile height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum KernelShape {
    /// Few rows, by subgroups: `shaders/attention/decode_rows.wgsl`.
    Rows(RowShape),
    /// Many rows, by cooperative matrices: `shaders/attention/decode_matrix.wgsl`.
    Matrix(MatrixShape),
    /// Any rows, through workgroup memory: `shaders/attention/decode_tile.wgsl`.
    Tile(DecodeShape),
    /// Few rows and tokens, by subgroups: `shaders/attention/decode_short.wgsl`. Never the only kernel of a class.
    Short(ShortShape),
}

/// What a choice depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device {
    pub(crate) limits: ShapeLimits,
    pub(crate) tier: Tier,
    /// Fewest lanes of a subgroup.
    pub(crate) subgroup_min: usize,
}

impl Device {
    pub(crate) fn of(capabilities: &Capabilities) -> Self {
        Self {
            limits: ShapeLimits {
                workgroup_bytes: capabilities.workgroup_storage_bytes as usize,
                subgroup_size: capabilities.subgroup_size as usize,
            },
            tier: capabilities.tier,
            subgroup_min: capabilities.subgroup_min_size as usize,
        }
    }
}

/// Most classes of a plan; its header has room for no more.
pub(crate) const MAX_CLASSES: usize = 6;

impl KernelShape {
    /// The kernels of a layout, one per tile height, ascending; at most [`MAX_CLASSES`]. All take all options.
    ///
    /// Errors: as [`DecodeShape::all`].
    pub(crate) fn all(heads: &HeadLayout, dtype: DType, device: &Device) -> Result<Vec<Self>> {
        let layout = &StateLayout::of_decode(heads, dtype);
        let mut shapes: Vec<Self> = Vec::new();
        if device.tier >= Tier::Subgroup {
            let per_group = heads.heads_per_group();
            // One query token, and as many as the row kernel takes.
            for rows in [per_group, rows::MAX_ROWS / per_group.max(1) * per_group] {
                let tallest = shapes.last().map_or(0, Self::rows);
                let shape = RowShape::choose(heads, layout, rows, device.subgroup_min);
                shapes.extend(shape.filter(|s| s.rows() > tallest).map(Self::Rows));
            }
        }
        if device.tier >= Tier::Matrix && dtype == DType::F16 {
            for rows in [16, 32, matrix::MAX_ROWS] {
                let tallest = shapes.last().map_or(0, Self::rows);
                let shape = MatrixShape::choose(heads, layout, rows, device.limits.workgroup_bytes);
                shapes.extend(shape.filter(|s| s.rows() > tallest).map(Self::Matrix));
            }
            if matches!(shapes.last(), Some(Self::Matrix(_))) {
                return Ok(shapes);
            }
        }
        let tallest = shapes.last().map_or(0, Self::rows);
        let tiles = DecodeShape::all(heads, layout, device.limits)?;
        shapes.extend(tiles.into_iter().filter(|s| s.rows() > tallest).map(Self::Tile));
        Ok(shapes)
    }

    /// The kernel for the most rows of a layout whose groups have a head each, so that rows are query tokens.
    ///
    /// Errors: as [`DecodeShape::all`].
    pub(crate) fn tallest(heads: &HeadLayout, dtype: DType, device: &Device) -> Result<Self> {
        let layout = &StateLayout::of_decode(heads, dtype);
        let matrices = device.tier >= Tier::Matrix && dtype == DType::F16;
        let matrix = [matrix::MAX_ROWS, 32, 16]
            .into_iter()
            .filter(|_| matrices)
            .find_map(|rows| MatrixShape::choose(heads, layout, rows, device.limits.workgroup_bytes));
        match matrix {
            Some(shape) => Ok(Self::Matrix(shape)),
            None => DecodeShape::tallest(heads, layout, device.limits).map(Self::Tile),
        }
    }

    /// Query rows of a tile.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Rows(s) => s.rows(),
            Self::Matrix(s) => s.rows(),
            Self::Tile(s) => s.rows(),
            Self::Short(s) => s.item_rows(),
        }
    }

    /// Tokens that a workgroup takes at once, a power of two: chunks start at multiples of it.
    pub(crate) fn tokens(&self) -> usize {
        match self {
            Self::Rows(s) => s.tokens * s.teams,
            Self::Matrix(s) => s.tokens(),
            Self::Tile(s) => s.tokens,
            Self::Short(_) => 1,
        }
    }

    /// How many workgroups of the ordinary kind one takes the room of, on a device that runs so many side by side.
    pub(crate) fn room(&self) -> usize {
        match self {
            Self::Rows(s) => s.groups_per_workgroup * s.squads,
            // The registers of a multiprocessor that would run eight others.
            Self::Matrix(_) => 8,
            Self::Tile(_) | Self::Short(_) => 1,
        }
    }

    /// The same kernel for items that are too few to fill the device, where there is one: several squads share an item's
    /// tokens.
    fn shared(&self, heads: &HeadLayout, device: &Device) -> Option<Self> {
        match self {
            Self::Rows(s) => s.shared(heads, device.limits.workgroup_bytes).map(Self::Rows),
            Self::Matrix(_) | Self::Tile(_) | Self::Short(_) => None,
        }
    }

    /// The kernels for few items, and for few items of few tokens. Not both: squads are as fast where the tokens are few, and faster
    /// where they are not (GQA on an H200).
    pub(crate) fn for_few(&self, heads: &HeadLayout, dtype: DType, device: &Device) -> (Option<Self>, Option<Self>) {
        let squads = self.shared(heads, device);
        (squads, if squads.is_some() { None } else { self.short(heads, dtype, device) })
    }

    /// The kernel for few items of few tokens, where there can be one.
    fn short(&self, heads: &HeadLayout, dtype: DType, device: &Device) -> Option<Self> {
        let limits = (device.subgroup_min, device.limits.workgroup_bytes);
        let shape = ShortShape::choose(&StateLayout::of_decode(heads, dtype), self.rows(), limits);
        shape.filter(|_| device.tier >= Tier::Subgroup).map(Self::Short)
    }

    /// Workgroups that share the rows of an item.
    pub(crate) fn row_parts(&self) -> usize {
        match self {
            Self::Short(s) => s.row_parts,
            Self::Rows(_) | Self::Matrix(_) | Self::Tile(_) => 1,
        }
    }

    /// Squads that share the tokens of an item.
    pub(crate) fn squads(&self) -> usize {
        match self {
            Self::Rows(s) => s.squads,
            Self::Matrix(_) | Self::Tile(_) | Self::Short(_) => 1,
        }
    }

    /// Groups that one workgroup takes; they divide the layout's groups.
    pub(crate) fn groups_per_workgroup(&self) -> usize {
        match self {
            Self::Rows(s) => s.groups_per_workgroup,
            Self::Matrix(_) | Self::Tile(_) | Self::Short(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{MATRIX_WORKGROUP_BYTES, PORTABLE_WORKGROUP_BYTES};
    use crate::kv::{Gla, Gqa, Gta, Mla};
    #[test]
    fn heights_ascend_and_lanes_suffice() {
        for (per_group, groups) in [(1, 8), (2, 3), (3, 4), (4, 8), (8, 2), (9, 1), (16, 2), (64, 2)] {
            for dim in [8, 20, 32, 64, 100, 128, 256, 512] {
                let q_heads = per_group * groups;
                for heads in [
                    HeadLayout::gqa(Gqa { q_heads, kv_heads: groups, head_dim: dim }).unwrap(),
                    HeadLayout::gta(Gta { q_heads, kv_heads: groups, head_dim: dim, rope_dim: dim / 2 }).unwrap(),
                    HeadLayout::gla(Gla { q_heads, latent_heads: groups, latent_dim: dim, rope_dim: 32 }).unwrap(),
                    HeadLayout::mla(Mla { q_heads, latent_dim: dim, rope_dim: 64 }).unwrap(),
                ] {
                    for (dtype, subgroup) in [
                        (DType::F16, 32),
                        (DType::F32, 8),
                        (DType::F16, 64),
                        (DType::F32, 4),
                        (DType::I8, 8),
                        (DType::I8, 32),
                        (DType::I4, 8),
                        (DType::I4, 32),
                    ] {
                        check(&heads, dtype, subgroup);
                    }
                }
            }
        }
    }

    fn check(heads: &HeadLayout, dtype: DType, subgroup: usize) {
        let layout = StateLayout::of_decode(heads, dtype);
        let limits = ShapeLimits { workgroup_bytes: PORTABLE_WORKGROUP_BYTES, subgroup_size: subgroup };
        let device = Device { limits, tier: Tier::Subgroup, subgroup_min: subgroup };
        let shapes = KernelShape::all(heads, dtype, &device).unwrap();
        assert!(!shapes.is_empty() && shapes.len() <= MAX_CLASSES);
        assert!(shapes.windows(2).all(|s| s[0].rows() < s[1].rows()), "{shapes:?}");
        for shape in shapes {
            assert!(shape.tokens().is_power_of_two() && heads.groups().is_multiple_of(shape.groups_per_workgroup()));
            if let KernelShape::Rows(s) = shape {
                let slots = s.slots(&layout);
                assert!(s.threads() <= 256 && s.team * s.teams <= subgroup, "{s:?}");
                if let Some(shared) = s.shared(heads, limits.workgroup_bytes) {
                    assert!(shared.squads > 1 && shared.groups_per_workgroup == 1, "{shared:?}");
                    assert!(shared.threads() <= 256 && shared.workgroup_bytes(heads) <= limits.workgroup_bytes);
                }
                assert!(s.team * slots.state >= layout.state_words && s.team * slots.rope >= layout.rope_words);
                assert!((slots.value_first + slots.value) * s.team >= layout.value_first + layout.value_words);
                assert!(slots.value_first + slots.value <= slots.state, "{slots:?}");
            }
        }
    }

    #[test]
    fn few_rows_are_the_row_kernels_where_there_are_subgroups() {
        let gta = HeadLayout::gta(Gta { q_heads: 32, kv_heads: 8, head_dim: 128, rope_dim: 64 }).unwrap();
        let limits = ShapeLimits { workgroup_bytes: MATRIX_WORKGROUP_BYTES, subgroup_size: 32 };
        let all = |tier| {
            let device = Device { limits, tier, subgroup_min: 32 };
            KernelShape::all(&gta, DType::F16, &device).unwrap()
        };
        assert!(matches!(all(Tier::Subgroup)[0], KernelShape::Rows(s) if s.rows() == 4 && s.groups_per_workgroup == 8));
        assert!(all(Tier::Portable).iter().all(|s| matches!(s, KernelShape::Tile(_))));
    }
}
