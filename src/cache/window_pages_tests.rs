use super::*;

const PAGE: usize = 4;
const WINDOW: usize = 6;

/// What stands for a token's row: it hangs on all tokens before it.
fn row(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0xcbf2_9ce4_8422_2325, |hash, token| {
        (hash ^ u64::from(*token + 1)).wrapping_mul(0x0100_0000_01b3).rotate_left(17)
    })
}

/// A table and its places, and what a device's memory would hold in them.
struct Simulated {
    table: SeqTable,
    pages: WindowPages,
    rows: HashMap<(u32, usize), u64>,
    /// Each sequence, its tokens, and whether those are told.
    sequences: Vec<(SeqId, Vec<u32>, bool)>,
}

impl Simulated {
    fn new(places: usize) -> Self {
        Self::with_pages(64, places)
    }

    fn with_pages(pages: usize, places: usize) -> Self {
        let (table, pages) = (SeqTable::new(pages, PAGE).unwrap(), WindowPages::new(WINDOW, places));
        Simulated { table, pages, rows: HashMap::new(), sequences: Vec::new() }
    }

    fn try_reserve(&mut self, wanted: &[(SeqId, usize)], at_once: bool) -> Result<()> {
        let copies = self.table.reserve_each(wanted)?;
        let before: HashMap<u32, (u32, u64)> = self.pages.places.clone();
        let wanted_places = PlacesWanted { sequences: wanted, copies: &copies, at_once };
        match self.pages.reserve(&self.table, wanted_places) {
            Ok(copied) => {
                // No place is both read and written, and each is one page's.
                for PageCopy { source, target } in copied {
                    assert_ne!(source, target);
                    for at in 0..PAGE {
                        self.rows.remove(&(target, at));
                        let row = self.rows.get(&(source, at)).copied();
                        row.map(|row| self.rows.insert((target, at), row));
                    }
                }
                Ok(())
            }
            Err(error) => {
                assert_eq!(self.pages.places, before, "what fails changes nothing");
                self.table.undo_reserve(wanted, &copies);
                Err(error)
            }
        }
    }

    /// A step of one sequence: the rows of its new tokens are written, and it sees those of its window.
    fn feed(&mut self, index: usize, new: &[u32]) -> Result<()> {
        let (id, tokens, known) = self.sequences[index].clone();
        self.try_reserve(&[(id, new.len())], false)?;
        let all = [&tokens[..], new].concat();
        let pages = self.table.page_table(id).unwrap().to_vec();
        for at in tokens.len()..all.len() {
            let place = self.pages.place(pages[at / PAGE]).expect("a new token has a place");
            self.rows.insert((place, at % PAGE), row(&all[..=at]));
        }
        let (gap, places) = self.pages.seen(&self.table, id).unwrap();
        assert!(
            gap <= (tokens.len() + 1).saturating_sub(WINDOW) && gap + PAGE > (tokens.len() + 1).saturating_sub(WINDOW)
        );
        for at in gap.max((tokens.len() + 1).saturating_sub(WINDOW))..all.len() {
            let place = places[(at - gap) / PAGE];
            assert_eq!(self.rows.get(&(place, at % PAGE)), Some(&row(&all[..=at])), "token {at} of {id}");
        }
        let open = WindowPages::between(&pages, tokens.len()..all.len(), PAGE);
        match known {
            true => self.table.commit_tokens(&[(id, new)]).unwrap(),
            false => self.table.commit(&[id], new.len()).unwrap(),
        }
        let now = self.table.page_table(id).unwrap().to_vec();
        for (from, to) in open.into_iter().zip(WindowPages::between(&now, tokens.len()..all.len(), PAGE)) {
            if from != to {
                self.pages.joined(&self.table, from, to);
            }
        }
        self.sequences[index].1 = all;
        Ok(())
    }

    /// A sequence whose tokens come at once, as one that is loaded: it has rows of its last pages alone.
    fn load(&mut self, count: usize) -> Result<()> {
        let (id, tokens) = (self.table.insert(), (0..count as u32).map(|i| i * i % 7).collect::<Vec<u32>>());
        if let Err(error) = self.try_reserve(&[(id, count)], true) {
            self.table.remove(id).unwrap();
            return Err(error);
        }
        let pages = self.table.page_table(id).unwrap().to_vec();
        let seen = self.pages.first(count, PAGE, true);
        for at in 0..count {
            let place = self.pages.place(pages[at / PAGE]).filter(|_| at / PAGE >= seen);
            place.map(|place| self.rows.insert((place, at % PAGE), row(&tokens[..=at])));
        }
        self.table.commit(&[id], count).unwrap();
        self.sequences.push((id, tokens, false));
        Ok(())
    }

    fn check(&self) {
        let mut taken: Vec<u32> = self.pages.places.values().map(|(place, _)| *place).collect();
        taken.extend(&self.pages.free);
        taken.sort_unstable();
        assert!(taken.iter().enumerate().all(|(at, place)| at as u32 == *place), "each place is one page's, or free");
        for (id, tokens, _) in &self.sequences {
            assert_eq!(self.table.len(*id).unwrap(), tokens.len());
            self.pages.seen(&self.table, *id).expect("who is in use sees its window");
        }
    }
}

/// Random growth, forks, cuts, prefixes and removals: whoever is in use finds the rows of its window, whatever lost its place.
#[test]
fn sequences_find_the_rows_of_their_windows() {
    let mut state = 7u64;
    let mut draw = move |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let (mut full, mut refused, mut cut_short, mut reused) = (0, 0, 0, 0);
    for round in 0..40 {
        let mut all = Simulated::new(9 + round % 12);
        for _ in 0..120 {
            let count = all.sequences.len();
            let pick = draw(count.max(1));
            match draw(10) {
                0 if count < 4 => {
                    let id = all.table.insert();
                    all.sequences.push((id, Vec::new(), false));
                }
                1 | 2 if count < 4 => {
                    // One of few texts, so that they begin alike.
                    let text: Vec<u32> = (0..draw(40) as u32).map(|i| i * i % 7).collect();
                    let id = all.table.match_prefix(&text, 0);
                    let found = all.table.page_table(id).unwrap().to_vec();
                    let usable = all.pages.usable(&found, PAGE);
                    cut_short += usize::from(usable < found.len() * PAGE);
                    reused += usize::from(usable > 0);
                    all.table.truncate(id, usable).unwrap();
                    all.sequences.push((id, text[..usable].to_vec(), true));
                }
                6 if count < 4 && draw(3) == 0 => full += usize::from(all.load(1 + draw(110)).is_err()),
                3 if count > 0 && count < 4 => {
                    let (id, tokens, known) = all.sequences[pick].clone();
                    let fork = all.table.fork(id).unwrap();
                    all.sequences.push((fork, tokens, known));
                }
                4 if count > 0 => {
                    let (id, tokens, _) = all.sequences[pick].clone();
                    let len = draw(tokens.len() + 1);
                    match all.pages.check_cut(&all.table, id, len) {
                        Ok(()) => {
                            all.table.truncate(id, len).unwrap();
                            all.sequences[pick].1.truncate(len);
                        }
                        Err(_) => refused += 1,
                    }
                }
                5 if count > 0 => {
                    let (id, ..) = all.sequences.swap_remove(pick);
                    all.table.remove(id).unwrap();
                }
                _ if count > 0 => {
                    let len = all.sequences[pick].1.len();
                    let new: Vec<u32> = (len..len + 1 + draw(9)).map(|i| (i * i % 7) as u32).collect();
                    match all.feed(pick, &new) {
                        Ok(()) => {}
                        Err(error) => {
                            assert!(matches!(error.kind(), ErrorKind::CacheFull { .. }), "{error}");
                            full += 1;
                        }
                    }
                }
                _ => {}
            }
            all.check();
        }
    }
    assert!([full, refused, cut_short, reused].iter().all(|n| *n > 10), "{full} {refused} {cut_short} {reused}");
}

/// What is promised to so many sequences: their windows, as many tokens back, and a step.
#[test]
fn so_many_sequences_have_room() {
    let chunk = 12;
    let mut all = Simulated::with_pages(1000, WindowPages::needed(WINDOW, 3, chunk, PAGE));
    let ids = [0, 1, 2].map(|_| all.table.insert());
    let mut len = 0;
    for step in [1, 3, 4, 2, 4, 4, 1, 3, 4, 4, 4] {
        // As a call of several steps does: forks that it goes back to.
        let forks = ids.map(|id| all.table.fork(id).unwrap());
        for _ in 0..3 {
            all.try_reserve(&ids.map(|id| (id, step)), false).unwrap();
            all.table.commit(&ids, step).unwrap();
            len += step;
        }
        for (id, fork) in ids.into_iter().zip(forks) {
            all.pages.seen(&all.table, fork).unwrap();
            all.table.remove(fork).unwrap();
            all.pages.seen(&all.table, id).unwrap();
        }
    }
    for id in ids {
        for back in [0, 1, 40, CUT_BACK] {
            all.pages.check_cut(&all.table, id, len - back).unwrap();
        }
    }
}

/// The same of windows longer than what may be cut back to: that of a call's begin and that of its end, neither at the ends of pages.
#[test]
fn windows_that_lie_apart_have_room() {
    let (window, chunk) = (101, 12);
    for len in 201..204 {
        let places = WindowPages::needed(window, 3, chunk, PAGE);
        let mut all = Simulated::with_pages(1000, 0);
        all.pages = WindowPages::new(window, places);
        let ids = [0, 1, 2].map(|_| all.table.insert());
        for step in std::iter::repeat_n(4, len / 4).chain([len % 4]) {
            all.try_reserve(&ids.map(|id| (id, step)), false).unwrap();
            all.table.commit(&ids, step).unwrap();
        }
        let forks = ids.map(|id| all.table.fork(id).unwrap());
        for _ in 0..40 {
            all.try_reserve(&ids.map(|id| (id, 4)), false).unwrap();
            all.table.commit(&ids, 4).unwrap();
        }
        ids.into_iter().chain(forks).for_each(|id| drop(all.pages.seen(&all.table, id).unwrap()));
        assert!(all.pages.used() <= places, "{} of {places}", all.pages.used());
    }
}

/// Tokens that come at once want places for the last window alone, and take none from others.
#[test]
fn tokens_at_once_need_no_more_than_their_window() {
    let mut all = Simulated::new(24);
    let id = all.table.insert();
    all.try_reserve(&[(id, 200)], true).unwrap();
    let used = (WINDOW + CUT_BACK) / PAGE + 1;
    assert!((used..=used + 1).contains(&all.pages.used()), "{}", all.pages.used());
    all.table.commit(&[id], 200).unwrap();
    all.pages.seen(&all.table, id).unwrap();
    all.pages.check_cut(&all.table, id, 200 - CUT_BACK).unwrap();
    assert!(all.pages.check_cut(&all.table, id, 100).is_err());
    assert_eq!(all.pages.all(all.table.page_table(id).unwrap(), 99)[..5], [99; 5]);
}

/// What was a page of another sequence has rows of that one: a page that comes without rows has no place.
#[test]
fn pages_without_rows_have_no_places() {
    let mut all = Simulated::with_pages(30, 40);
    let old = all.table.insert();
    all.try_reserve(&[(old, 100)], false).unwrap();
    all.table.commit(&[old], 100).unwrap();
    all.table.remove(old).unwrap();
    let id = all.table.insert();
    all.try_reserve(&[(id, 120)], true).unwrap();
    all.table.commit(&[id], 120).unwrap();
    assert!(all.pages.check_cut(&all.table, id, 30).is_err());
    let pages = all.table.page_table(id).unwrap();
    assert!(pages[..12].iter().all(|page| all.pages.place(*page).is_none()));
}

/// Pages that nobody holds but that are kept go before those that a sequence may be cut back to, however old these are.
#[test]
fn what_may_be_cut_back_to_goes_last() {
    let mut all = Simulated::with_pages(100, 24);
    let id = all.table.insert();
    let text: Vec<u32> = (0..40).collect();
    for at in 0..10 {
        all.try_reserve(&[(id, PAGE)], false).unwrap();
        all.table.commit(&[id], PAGE).unwrap();
        assert_eq!(all.table.len(id).unwrap(), PAGE * (at + 1));
    }
    let kept = all.table.match_prefix(&text, 3);
    all.try_reserve(&[(kept, 40)], false).unwrap();
    all.table.commit_tokens(&[(kept, &text)]).unwrap();
    all.table.remove(kept).unwrap();
    let next = all.table.insert();
    all.try_reserve(&[(next, 4 * 12)], false).unwrap();
    all.table.commit(&[next], 4 * 12).unwrap();
    all.pages.check_cut(&all.table, id, 1).unwrap();
}
