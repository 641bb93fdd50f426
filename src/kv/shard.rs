//! Which heads of a layout a rank has. Pure.

use super::HeadLayout;
use crate::error::{ErrorKind, Result};
use crate::parallel::Shard;
use std::ops::Range;

/// The heads of one rank, by their numbers in the whole layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadShard {
    /// Query heads.
    pub q_heads: Range<usize>,
    /// The groups that they read: all of none but these are cached by the rank.
    pub groups: Range<usize>,
    /// What the rank's kernels and cache know: that many heads and groups, all else as in the whole.
    pub layout: HeadLayout,
}

impl HeadLayout {
    /// The heads of one rank. Query heads are divided in order, and each rank caches the groups that its heads read: of GQA, GTA and
    /// GLA `1 / size` of them. Where there are fewer groups than ranks (MQA, MLA) several ranks hold the same group, each for its
    /// own query heads: their caches are no smaller. A rope key that all groups share is on every rank. Of a shard
    /// [by context](Shard::by_context) every rank has all heads.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where query heads cannot be divided equally, or groups and ranks cannot be divided by one another.
    pub fn shard(&self, shard: Shard) -> Result<HeadShard> {
        if shard.is_by_context() {
            return Ok(HeadShard { q_heads: 0..self.q_heads, groups: 0..self.groups, layout: *self });
        }
        let q_heads = shard.part("q_heads", self.q_heads)?;
        let size = shard.size();
        if !self.groups.is_multiple_of(size) && !size.is_multiple_of(self.groups) {
            let why = format!("{} groups and {size} ranks: neither divides the other", self.groups);
            return Err(ErrorKind::argument("groups", why));
        }
        // Where the ranks of a group are `size / groups`, they divide its heads: both follow from `q_heads`.
        let per_group = self.heads_per_group().max(1);
        let groups = q_heads.start / per_group..q_heads.end.div_ceil(per_group);
        let rope_dim = match self.wide_dim {
            0 => self.rope_dim,
            wide => groups.len().saturating_mul(wide),
        };
        let layout = HeadLayout { q_heads: q_heads.len(), groups: groups.len(), rope_dim, ..*self };
        Ok(HeadShard { q_heads, groups, layout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Gla, Gqa, Gta, Mla};

    fn shards(layout: HeadLayout, size: usize) -> Vec<HeadShard> {
        (0..size).map(|rank| layout.shard(Shard::new(rank, size).unwrap()).unwrap()).collect()
    }

    #[test]
    fn groups_are_divided_in_order() {
        let layouts = [
            HeadLayout::gqa(Gqa { q_heads: 8, kv_heads: 4, head_dim: 16 }).unwrap(),
            HeadLayout::mha(8, 16).unwrap(),
            HeadLayout::gta(Gta { q_heads: 8, kv_heads: 4, head_dim: 16, rope_dim: 8 }).unwrap(),
            HeadLayout::gla(Gla { q_heads: 8, latent_heads: 4, latent_dim: 32, rope_dim: 8 }).unwrap(),
        ];
        for layout in layouts {
            for size in [1, 2, 4] {
                for (rank, shard) in shards(layout, size).into_iter().enumerate() {
                    let (heads, groups) = (8 / size, layout.groups() / size);
                    assert_eq!(shard.q_heads, rank * heads..(rank + 1) * heads);
                    assert_eq!(shard.groups, rank * groups..(rank + 1) * groups);
                    assert_eq!((shard.layout.q_heads(), shard.layout.groups()), (heads, groups));
                    assert_eq!(shard.layout.heads_per_group(), layout.heads_per_group());
                    assert_eq!(shard.layout.remade(), Some(shard.layout), "a constructor makes it, too");
                    assert_eq!(shard.layout.rope_dim(), layout.rope_dim());
                }
            }
        }
    }

    #[test]
    fn fewer_groups_than_ranks_are_held_by_several() {
        let mla = HeadLayout::mla(Mla { q_heads: 8, latent_dim: 32, rope_dim: 8 }).unwrap();
        let mqa = HeadLayout::mqa(8, 16).unwrap();
        for layout in [mla, mqa] {
            for (rank, shard) in shards(layout, 4).into_iter().enumerate() {
                assert_eq!((shard.q_heads, shard.groups), (2 * rank..2 * rank + 2, 0..1));
                assert_eq!(shard.layout.kv_dim(), layout.kv_dim());
            }
        }
        let gqa = HeadLayout::gqa(Gqa { q_heads: 8, kv_heads: 2, head_dim: 16 }).unwrap();
        let groups: Vec<_> = shards(gqa, 4).into_iter().map(|shard| (shard.q_heads, shard.groups)).collect();
        assert_eq!(groups, [(0..2, 0..1), (2..4, 0..1), (4..6, 1..2), (6..8, 1..2)]);
    }

    #[test]
    fn by_context_every_rank_has_all_heads() {
        let mla = HeadLayout::mla(Mla { q_heads: 7, latent_dim: 32, rope_dim: 8 }).unwrap();
        for rank in 0..3 {
            let shard = mla.shard(Shard::new(rank, 3).unwrap().by_context()).unwrap();
            assert_eq!((shard.q_heads, shard.groups, shard.layout), (0..7, 0..1, mla));
        }
        assert_eq!(Shard::whole().by_context(), Shard::whole(), "one rank has all tokens");
    }

    #[test]
    fn wide_channels_are_those_of_the_groups() {
        let wide = HeadLayout::gqa_wide(Gqa { q_heads: 8, kv_heads: 4, head_dim: 16 }, 4).unwrap();
        for shard in shards(wide, 2) {
            let want = HeadLayout::gqa_wide(Gqa { q_heads: 4, kv_heads: 2, head_dim: 16 }, 4).unwrap();
            assert_eq!(shard.layout, want);
        }
    }

    #[test]
    fn sizes_that_do_not_divide_are_errors_with_the_numbers() {
        let shard = |rank, size| Shard::new(rank, size).unwrap();
        let gqa = HeadLayout::gqa(Gqa { q_heads: 12, kv_heads: 4, head_dim: 16 }).unwrap();
        let cases = [
            (5, "q_heads: 12 cannot be divided among 5 ranks"),
            (3, "groups: 4 groups and 3 ranks: neither divides the other"),
        ];
        for (size, want) in cases {
            assert_eq!(gqa.shard(shard(0, size)).unwrap_err().to_string(), want);
        }
        assert_eq!(
            gqa.shard(shard(1, 6)).unwrap_err().to_string(),
            "groups: 4 groups and 6 ranks: neither divides the other"
        );
        for (rank, size) in [(0, 0), (2, 2), (0, 1025)] {
            assert!(Shard::new(rank, size).is_err());
        }
    }
}
