//! What the planner is told of the kernels and the device. Pure.

use super::work::SplitPolicy;
use crate::error::{ErrorKind, Result};

/// Most tokens of a tile, and most rows: far more than any kernel has, and few enough to count with.
const MOST_OF_TILE: usize = 1 << 16;

/// Which of its kernels a class takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum KernelForm {
    /// The one that every class has.
    #[default]
    Usual,
    /// Squads share the tokens of an item: for few items.
    Squads,
    /// For few items of few tokens.
    Short,
}

/// What the planner knows of the kernels and the device.
#[derive(Debug, Clone)]
pub(crate) struct PlanShape {
    /// Query heads that read one state (rows per query token).
    pub heads_per_group: usize,
    /// States per token.
    pub groups: usize,
    /// Width of the value (elements).
    pub v_dim: usize,
    /// What one group reads per cached token: its state and the whole rope key, in the cache's dtype (bytes).
    pub bytes_per_token: usize,
    /// The rope key's part of that, which groups of one workgroup share (bytes).
    pub rope_bytes: usize,
    /// Heights of the kernels that may be chosen (rows), strictly ascending.
    pub row_tiles: Vec<usize>,
    /// For each of them the groups that one workgroup takes; divisors of `groups`.
    pub groups_per_workgroup: Vec<usize>,
    /// For each of them how many ordinary workgroups one takes the room of (workgroups).
    pub room: Vec<usize>,
    /// For each of them the squads that share an item's tokens in its second form, for few items, whose workgroups take one
    /// group each; 1 where it has none (squads).
    pub squads: Vec<usize>,
    /// For each of them the most tokens of an item in its third form, for few items of few tokens; 0 where it has none (tokens).
    pub short_tokens: Vec<u64>,
    /// For each of them the workgroups of an item in its third form (workgroups).
    pub short_workgroups: Vec<usize>,
    /// For each of them the most tokens that Auto gives an item, whatever else speaks for more (tokens).
    pub most_tokens: Vec<u64>,
    /// Ordinary workgroups that fill the device (workgroups).
    pub target_workgroups: usize,
    /// Chunks start at multiples of this from the tile's first visible token (tokens); a power of two.
    pub token_tile: usize,
    /// Tokens that a query token sees at most, its own included (tokens); 0 for all.
    pub window: u32,
    /// And the first ones that it sees beside those (tokens).
    pub keep_first: u32,
}

impl PlanShape {
    /// Workgroups of one item of a class.
    pub(crate) fn workgroups(&self, class: usize) -> usize {
        self.groups / self.groups_per_workgroup[class]
    }

    /// The same in one of its forms.
    pub(crate) fn workgroups_of(&self, class: usize, form: KernelForm) -> usize {
        match form {
            KernelForm::Usual => self.workgroups(class),
            KernelForm::Squads => self.groups,
            KernelForm::Short => self.short_workgroups[class],
        }
    }

    /// Workgroups of a class that fill the device.
    pub(crate) fn slots(&self, class: usize) -> usize {
        (self.target_workgroups / self.room[class]).max(1)
    }

    /// Most items of a class in its third form: each of its workgroups takes the room of four. Measured on an H200 (MLA, 16 heads, one
    /// sequence, a step of 24 layers): 4,096 tokens, 256 workgroups, 2.21 ms, 2.54 without; 16,384, four times as many, 3.02 and 2.63.
    pub(crate) fn most_short(&self, class: usize) -> usize {
        self.target_workgroups / (4 * self.short_workgroups[class].max(1))
    }

    /// How much longer a class's second form takes for a token: its workgroups, of one group each, do not share the rope key.
    pub(crate) fn shared_stretch(&self, class: usize) -> f64 {
        let together = self.groups_per_workgroup[class] as f64;
        let rope = self.rope_bytes as f64;
        let bytes = self.bytes_per_token as f64;
        bytes / (bytes - rope + rope / together)
    }

    /// Workgroups of a class's second form that fill the device.
    pub(crate) fn shared_slots(&self, class: usize) -> usize {
        (self.target_workgroups / self.squads[class]).max(1)
    }

    /// Errors: [`ErrorKind::Argument`] for numbers that make no plan.
    pub(crate) fn check(&self, policy: SplitPolicy) -> Result<()> {
        let counts = [
            ("heads_per_group", self.heads_per_group),
            ("groups", self.groups),
            ("v_dim", self.v_dim),
            ("bytes_per_token", self.bytes_per_token),
            ("target_workgroups", self.target_workgroups),
        ];
        for (name, count) in counts {
            if count == 0 {
                return Err(ErrorKind::argument(name, "must not be 0"));
            }
        }
        if !self.token_tile.is_power_of_two() || self.token_tile > MOST_OF_TILE {
            let why = format!("{} is not a power of two up to {MOST_OF_TILE}", self.token_tile);
            return Err(ErrorKind::argument("token_tile", why));
        }
        let ascending = self.row_tiles.windows(2).all(|pair| pair[0] < pair[1]);
        let in_range = |tile: Option<&usize>| tile.is_some_and(|&tile| tile > 0 && tile <= MOST_OF_TILE);
        if !ascending || !in_range(self.row_tiles.first()) || !in_range(self.row_tiles.last()) {
            let why = format!("{:?} are not ascending heights of 1..={MOST_OF_TILE}", self.row_tiles);
            return Err(ErrorKind::argument("row_tiles", why));
        }
        let divides = |n: &usize| *n > 0 && self.groups.is_multiple_of(*n);
        if self.groups_per_workgroup.len() != self.row_tiles.len() || !self.groups_per_workgroup.iter().all(divides) {
            let (got, groups) = (&self.groups_per_workgroup, self.groups);
            let why = format!("{got:?} are not {} divisors of {groups} groups", self.row_tiles.len());
            return Err(ErrorKind::argument("groups_per_workgroup", why));
        }
        if self.room.len() != self.row_tiles.len() || self.room.contains(&0) {
            let why = format!("{:?} are not {} counts of workgroups", self.room, self.row_tiles.len());
            return Err(ErrorKind::argument("room", why));
        }
        if self.squads.len() != self.row_tiles.len() || self.squads.contains(&0) {
            let why = format!("{:?} are not {} counts of squads", self.squads, self.row_tiles.len());
            return Err(ErrorKind::argument("squads", why));
        }
        if self.short_tokens.len() != self.row_tiles.len() || self.short_workgroups.len() != self.row_tiles.len() {
            let why = format!("{:?} and {:?} are not of the classes", self.short_tokens, self.short_workgroups);
            return Err(ErrorKind::argument("short_tokens", why));
        }
        if self.most_tokens.len() != self.row_tiles.len() || self.most_tokens.contains(&0) {
            let why = format!("{:?} are not {} counts of tokens", self.most_tokens, self.row_tiles.len());
            return Err(ErrorKind::argument("most_tokens", why));
        }
        match policy {
            SplitPolicy::FixedTokens(0) => Err(ErrorKind::argument("split", "FixedTokens(0): a part needs tokens")),
            SplitPolicy::Count(0) => Err(ErrorKind::argument("split", "Count(0): a sequence needs a part")),
            _ => Ok(()),
        }
    }
}
