//! How [`SplitPolicy::Auto`](super::work::SplitPolicy) cuts: the candidate that keeps the device's slots evenly busy. Pure.
//!
//! The tiles of a class are one dispatch, whose workgroups a device takes up in order, the next when one is done:
//! longest first, which is list scheduling. A candidate says how tiles are cut; its cost is the modelled time of the
//! busiest slot, in tokens, with what each workgroup costs beside its tokens, and with the merge of what was cut. The
//! cheapest candidate wins, the first of equals, and one that cuts must beat the uncut by a margin.
//! Linear in the tiles: lengths are counted into a fixed number of bins before they are scheduled.

/// What a workgroup costs beside its tokens: queries, the first fetch, the last writes (tokens).
const ITEM_TOKENS: f64 = 24.0;
/// And what squads that share tokens cost to join (tokens).
const JOIN_TOKENS: f64 = 8.0;
/// What a merge dispatch costs beside its traffic (tokens).
const MERGE_TOKENS: f64 = 48.0;
/// A cut must save this much of the time.
const WORTH: f64 = 0.97;
/// A candidate this close to the lower bound is taken at once.
const GOOD: f64 = 1.03;
/// Lengths of items are told apart to one in this many of the longest, where schedules are modelled.
const BINS: usize = 16;
/// More lengths of tiles than this are told apart to one in this many, where cuts are compared.
const KINDS: usize = 24;
/// Cuts that are compared again, then by all lengths.
const FINALISTS: usize = 4;
/// Partial slots that a class may use: this many per workgroup that the device takes at once.
const SLOTS_PER_WORKGROUP: usize = 2;

/// The tiles of one class, and what the planner knows of kernel and device.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// `(tokens, how many tiles of that length in a row)`, in the batch's order.
    pub runs: Vec<(u64, u64)>,
    /// Workgroups of this class that the device takes at once, and workgroups per tile.
    pub slots: usize,
    pub workgroups: usize,
    /// Squads of a workgroup that share an item's tokens.
    pub squads: usize,
    /// How much longer a token takes than where this is 1.
    pub stretch: f64,
    /// Parts are multiples of this (tokens).
    pub token_tile: u64,
    /// Cached tokens whose traffic equals that of writing and reading one partial.
    pub merge_tokens: f64,
}

/// A way to cut the tiles of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AutoCut {
    /// Length of a part (tokens).
    chunk: u64,
    /// No part is shorter, unless its tile is (tokens).
    shortest: u64,
    /// 0: near-equal parts up to `chunk`. Else whole chunks, and what is left in parts of up to a `tails`th of one.
    tails: u64,
    /// So many of the longest tiles stay whole, but none that is longer than `limit` (tokens).
    keep: u64,
    limit: u64,
}

/// Parts of a tile: `long` of `chunk` tokens each, then `parts - long` near-equal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub parts: u64,
    pub long: u64,
    pub chunk: u64,
}

impl Parts {
    pub(crate) const WHOLE: Parts = Parts { parts: 1, long: 0, chunk: 0 };
}

/// Gives the tiles of a class their parts, in the batch's order.
#[derive(Debug, Clone)]
pub(crate) struct Cutter {
    cut: AutoCut,
    /// What is longer than `above` stays whole, and the next `left` tiles of that length.
    above: u64,
    left: u64,
}

impl Cutter {
    /// Cuts nothing.
    pub(crate) fn whole() -> Self {
        Cutter { cut: AutoCut::WHOLE, above: u64::MAX, left: 0 }
    }

    /// Parts of the next `count` tiles of this length: of the first so many of them, and of the rest.
    fn run(&mut self, tokens: u64, count: u64) -> [(Parts, u64); 2] {
        let mut kept = if tokens > self.above { count } else { 0 };
        if tokens == self.above {
            kept = self.left.min(count);
            self.left -= kept;
        }
        if tokens > self.cut.limit {
            kept = 0;
        }
        let cut = if kept < count { self.cut.parts(tokens) } else { Parts::WHOLE };
        [(Parts::WHOLE, kept), (cut, count - kept)]
    }

    /// Parts of the next tile, which has this length.
    pub(crate) fn next(&mut self, tokens: u64) -> Parts {
        let [(whole, kept), (parts, _)] = self.run(tokens, 1);
        if kept > 0 {
            whole
        } else {
            parts
        }
    }
}

impl AutoCut {
    const WHOLE: AutoCut = AutoCut { chunk: u64::MAX, shortest: 1, tails: 0, keep: 0, limit: 0 };

    /// Parts of a tile that does not stay whole.
    fn parts(&self, tokens: u64) -> Parts {
        let chunk = self.chunk;
        if tokens <= chunk || tokens < 2 * self.shortest {
            return Parts::WHOLE;
        }
        let most = tokens / self.shortest;
        let (long, rest) = (tokens / chunk, tokens % chunk);
        let even = |parts: u64| Parts { parts: parts.clamp(1, most), long: 0, chunk };
        if self.tails == 0 {
            return even(long + u64::from(rest > 0));
        }
        if rest < self.shortest {
            return even(long);
        }
        let tail = (chunk / self.tails).max(self.shortest);
        let short = rest.div_ceil(tail).min(rest / self.shortest);
        Parts { parts: long + short, long, chunk }
    }
}

/// Partial slots that a class never exceeds under Auto; each holds all groups (slots).
pub(crate) fn most_slots(slots: usize, workgroups: usize) -> usize {
    SLOTS_PER_WORKGROUP.saturating_mul(slots).div_ceil(workgroups)
}

impl Load {
    /// The shortest part where there is work for all slots: merging stays under a tenth of reading.
    fn shortest(&self) -> u64 {
        ((10.0 * self.merge_tokens).ceil() as u64).clamp(128.max(self.token_tile), u64::from(u32::MAX))
    }

    /// Where there is not, bandwidth idles, and merging may take up to half of what reading takes.
    fn shortest_idle(&self) -> u64 {
        ((2.0 * self.merge_tokens).ceil() as u64).clamp(64.max(self.token_tile), self.shortest())
    }

    /// Whether the tiles, whole, leave some of the device idle.
    pub(crate) fn leaves_room(&self) -> bool {
        let tiles: u64 = self.runs.iter().map(|run| run.1).sum();
        tiles > 0 && tiles.saturating_mul(self.workgroups as u64) < self.slots as u64
    }

    /// What a workgroup costs beside its tokens (tokens).
    fn item_tokens(&self) -> f64 {
        ITEM_TOKENS + if self.squads > 1 { JOIN_TOKENS } else { 0.0 }
    }

    /// The cheapest cut, ready for the tiles in their order, and its modelled time (tokens of a squad).
    pub(crate) fn choose(&self) -> (Cutter, f64) {
        let (slots, workgroups) = (self.slots as f64, self.workgroups as f64);
        let tiles: u64 = self.runs.iter().map(|run| run.1).sum();
        let tokens: f64 = self.runs.iter().map(|run| run.0 as f64 * run.1 as f64).sum();
        let share = tokens * workgroups / slots;
        let bound = share * self.stretch / self.squads as f64
            + self.item_tokens() * (tiles as f64 * workgroups / slots).max(1.0);
        let whole = (self.cost(AutoCut::WHOLE).unwrap_or(0.0) * WORTH, AutoCut::WHOLE);
        if whole.0 <= GOOD * bound {
            return (self.cutter(whole.1), whole.0);
        }
        // Compared by bins of lengths, which is fast; then the best of them by the lengths themselves.
        let binned = self.binned();
        let longest = self.runs.iter().map(|run| run.0).max().unwrap_or(0);
        let cuts_any = |cut: &AutoCut| match cut.keep {
            0 => cut.chunk < longest,
            keep => keep < tiles || cut.limit < longest,
        };
        let mut best: Vec<(f64, AutoCut)> = Vec::new();
        for cut in binned.candidates(share, tiles).filter(cuts_any) {
            let Some(cost) = binned.cost(cut) else { continue };
            best.insert(best.partition_point(|other| other.0 <= cost), (cost, cut));
            best.truncate(FINALISTS);
            // Bins of a few lengths can make a cut look better than it is: what ends the search is asked again.
            let good = |cost: f64| cost <= GOOD * bound;
            if good(cost) && (binned.runs == self.runs || self.cost(cut).is_some_and(good)) {
                break;
            }
        }
        let exact =
            |(cost, cut): (f64, AutoCut)| Some((if binned.runs == self.runs { cost } else { self.cost(cut)? }, cut));
        let cheaper = |a: (f64, AutoCut), b: (f64, AutoCut)| if b.0 < a.0 { b } else { a };
        let mut known: Vec<(f64, AutoCut)> = best.iter().copied().filter_map(exact).collect();
        if known.is_empty() && !best.is_empty() {
            // By the lengths themselves all of these have too many partials. That is rare, so all cuts are asked then.
            let exact = |cut| Some((self.cost(cut)?, cut));
            known = binned.candidates(share, tiles).filter(cuts_any).filter_map(exact).collect();
        }
        let (cost, cut) = known.into_iter().fold(whole, cheaper);
        (self.cutter(cut), cost)
    }

    /// The same with at most [`KINDS`] lengths: near ones are taken for their mean.
    fn binned(&self) -> Load {
        if self.runs.len() <= KINDS {
            return self.clone();
        }
        let longest = self.runs.iter().map(|run| run.0).max().unwrap_or(0);
        let mut bins = vec![(0u64, 0u64); KINDS]; // tokens in all, tiles
        for &(tokens, tiles) in &self.runs {
            let bin = &mut bins[(tokens * KINDS as u64 / (longest + 1)) as usize];
            *bin = (bin.0 + tokens * tiles, bin.1 + tiles);
        }
        let runs = bins.into_iter().rev().filter(|bin| bin.1 > 0).map(|(tokens, tiles)| (tokens / tiles, tiles));
        Load { runs: runs.collect(), ..*self }
    }

    /// Ways to cut, the likelier first.
    fn candidates(&self, share: f64, tiles: u64) -> impl Iterator<Item = AutoCut> + '_ {
        let rounds = (tiles as f64 * self.workgroups as f64 / self.slots as f64).floor();
        let last_cut = [rounds, rounds - 1.0].into_iter().filter(|rounds| *rounds >= 1.0);
        let last_cut = last_cut.flat_map(move |rounds| self.last_round_cut(share, rounds));
        last_cut.chain(self.all_cut(share)).chain(self.longest_cut(share, tiles))
    }

    /// Where the tiles are several rounds of the device: so many rounds stay whole, the rest is cut.
    fn last_round_cut(&self, share: f64, rounds: f64) -> impl Iterator<Item = AutoCut> + '_ {
        let keep = (rounds * self.slots as f64 / self.workgroups as f64) as u64;
        let rest = share - rounds * self.cutter(AutoCut { keep, ..AutoCut::WHOLE }).above as f64;
        let parts = [1.0, 1.05, 1.15, 1.34, 0.55, 0.36, 0.25].map(|part| rest * part);
        parts
            .into_iter()
            .chain([share / 3.0, share / 4.0, share / 6.0, share / 8.0])
            .map(move |chunk| self.keep(keep, share, chunk))
    }

    /// A few are longer than a slot's share: they fill what the others, whole, leave over.
    fn longest_cut(&self, share: f64, tiles: u64) -> impl Iterator<Item = AutoCut> + '_ {
        [1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0]
            .into_iter()
            .map(move |parts| self.keep(tiles, share, share / parts))
    }

    /// The `keep` longest stay whole, but for those that would take longer than all should.
    fn keep(&self, keep: u64, share: f64, chunk: f64) -> AutoCut {
        AutoCut { keep, limit: (1.1 * share) as u64, ..self.cut(chunk, self.shortest(), 0) }
    }

    /// Tiles longer than a chunk are cut: into near-equal parts, or into chunks and what is left, which fills gaps.
    fn all_cut(&self, share: f64) -> impl Iterator<Item = AutoCut> + '_ {
        let (full, idle) = (self.shortest(), self.shortest_idle());
        let (chunks, shortest): (Vec<f64>, u64) = if share >= full as f64 {
            let stretches = [1.0, 1.03, 1.06, 1.1, 1.15, 1.2, 1.34, 1.5, 2.0];
            (stretches.map(|stretch| share * stretch).to_vec(), full)
        } else {
            // Too little work: shorter parts, as long as merging them does not cost more than it saves.
            let shrunk = (0..12).map(|i| full as f64 * 0.5f64.powf(f64::from(i) / 2.0));
            let least = share.max(idle as f64);
            (shrunk.filter(|chunk| *chunk > least).chain([least]).collect(), idle)
        };
        chunks.into_iter().flat_map(move |chunk| [0, 1, 2].map(|tails| self.cut(chunk, shortest, tails)))
    }

    /// A uniform cut, in whole token tiles.
    fn cut(&self, chunk: f64, shortest: u64, tails: u64) -> AutoCut {
        let chunk = (chunk.ceil().max(1.0) as u64).max(shortest).next_multiple_of(self.token_tile);
        AutoCut { chunk, shortest, tails, ..AutoCut::WHOLE }
    }

    /// Finds the length above which tiles stay whole.
    fn cutter(&self, cut: AutoCut) -> Cutter {
        if cut.keep == 0 {
            return Cutter { cut, above: u64::MAX, left: 0 };
        }
        let mut lengths = self.runs.clone();
        let (mut keep, mut slice) = (cut.keep, lengths.as_mut_slice());
        // Halves of the runs, never a full sort.
        while slice.len() > 1 {
            let middle = slice.len() / 2;
            slice.select_nth_unstable_by(middle, |a, b| b.0.cmp(&a.0));
            let (longer, shorter) = slice.split_at_mut(middle);
            let tiles: u64 = longer.iter().map(|run| run.1).sum();
            slice = if keep <= tiles { longer } else { shorter };
            keep -= if keep <= tiles { 0 } else { tiles };
        }
        // Runs of one length may be apart: `left` counts over all of them.
        let above = slice.first().map_or(u64::MAX, |run| run.0);
        let longer: u64 = self.runs.iter().filter(|run| run.0 > above).map(|run| run.1).sum();
        Cutter { cut, above, left: cut.keep.saturating_sub(longer) }
    }

    /// Modelled tokens of the busiest slot, merging included; none where the partials would be too many.
    fn cost(&self, cut: AutoCut) -> Option<f64> {
        let workgroups = self.workgroups as f64;
        let longest = self.runs.iter().map(|run| run.0).max()?.max(1);
        let longest = longest.min(cut.chunk.saturating_mul(2).max(cut.limit));
        let bins_per_token = BINS as f64 / longest as f64;
        let mut bins = [(0.0f64, 0.0f64); BINS]; // items, their tokens
        let mut count = |tokens: f64, items: f64| {
            let bin = &mut bins[((tokens * bins_per_token) as usize).min(BINS - 1)];
            *bin = (bin.0 + items, bin.1 + items * tokens);
        };
        let (mut cutter, mut partials) = (self.cutter(cut), 0.0);
        for &(tokens, tiles) in &self.runs {
            for (p, tiles) in cutter.run(tokens, tiles) {
                let (tiles, short) = (tiles as f64 * workgroups, (p.parts - p.long) as f64);
                if tiles == 0.0 {
                    continue;
                }
                let rest = tokens - p.long * p.chunk.min(tokens);
                if p.long > 0 {
                    count(p.chunk as f64, tiles * p.long as f64);
                }
                if short > 0.0 {
                    count(rest as f64 / short, tiles * short);
                }
                if p.parts > 1 {
                    partials += tiles * p.parts as f64;
                }
            }
        }
        if partials > (most_slots(self.slots, self.workgroups) * self.workgroups) as f64 {
            return None;
        }
        let merge = if partials > 0.0 { MERGE_TOKENS + partials * self.merge_tokens / self.slots as f64 } else { 0.0 };
        let items = bins.iter().rev().filter(|bin| bin.0 > 0.0).map(|bin| {
            let tokens = bin.1 / bin.0 * self.stretch / self.squads as f64;
            (tokens + self.item_tokens(), bin.0)
        });
        Some(merge + makespan(items, self.slots as f64))
    }
}

/// Load of the busiest of `slots` when items, given as `(cost, count)` with the costliest first, each go to the slot
/// that is free first. Slots of equal load are handled together, and rounds of equal items at once.
fn makespan(items: impl Iterator<Item = (f64, f64)>, slots: f64) -> f64 {
    let mut loads = vec![(0.0f64, slots)]; // load, slots; the least loaded last
    for (cost, mut count) in items {
        while count > 0.0 {
            // Slots that all get one item before any of them gets two, and the load that bounds this from above.
            let (least, n) = loads[loads.len() - 1];
            let near = loads.partition_point(|load| load.0 >= least + cost);
            let slots: f64 = loads[near..].iter().map(|load| load.1).sum();
            if count >= slots {
                let room = if near == 0 { f64::INFINITY } else { (loads[near - 1].0 - loads[near].0) / cost };
                let rounds = (count / slots).floor().min(room.floor() + 1.0);
                loads[near..].iter_mut().for_each(|load| load.0 += rounds * cost);
                count -= rounds * slots;
                loads.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
            } else {
                let taken = count.min(n);
                loads.pop();
                if count < n {
                    loads.push((least, n - count));
                }
                count -= taken;
                let at = loads.partition_point(|other| other.0 > least + cost);
                loads.insert(at, (least + cost, taken));
            }
        }
    }
    loads[0].0
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
