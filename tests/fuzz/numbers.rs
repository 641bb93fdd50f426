//! Numbers that mostly fit, and what comes of the calls that get them.

use crate::common::Rng;
use latten::Error;
use std::collections::BTreeMap;
use std::fmt;

/// By call: how often it was answered, and how often refused.
#[derive(Default)]
pub struct Tally(BTreeMap<&'static str, (u64, u64)>);

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, (ok, err))| writeln!(f, "{ok:>9} ok {err:>9} refused  {name}"))
    }
}

impl Tally {
    /// Both happen often, and each call is answered: else nothing behind the checks, or none of them, was tried.
    pub fn check(&self) {
        let sum = |of: fn(&(u64, u64)) -> u64| self.0.values().map(of).sum::<u64>();
        let (ok, err) = (sum(|n| n.0), sum(|n| n.1));
        println!("{ok} calls answered, {err} refused");
        assert!(err * 20 > ok + err && ok * 4 > ok + err, "{ok} calls answered, {err} refused: too few of one");
        for (name, (ok, err)) in self.0.iter().filter(|(_, n)| n.0 + n.1 >= 100) {
            assert!(ok * 50 >= *err, "{name}: {ok} calls answered, {err} refused");
        }
    }
}

/// Draws numbers, and counts what comes of them.
pub struct Gen {
    rng: Rng,
    pub tally: Tally,
    trace: bool,
}

impl Gen {
    pub fn new(trace: bool) -> Self {
        Gen { rng: Rng(0), tally: Tally::default(), trace }
    }

    /// Begins a case.
    pub fn begin(&mut self, seed: u64) {
        // Spread, so that neighbours have nothing in common.
        self.rng = Rng(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x5851_f42d_4c95_7f2d);
    }

    fn told<T: fmt::Debug>(&self, what: &str, value: T) -> T {
        if self.trace {
            eprintln!("    {what} {value:?}");
        }
        value
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.rng.below(n)
    }

    /// One time in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn bits(&mut self) -> u64 {
        self.rng.next()
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Any number: small, a power of two or beside one, at the end of 32 or 64 bits.
    pub fn size(&mut self) -> usize {
        let size = match self.below(8) {
            0 => self.below(4),
            1 | 2 => self.below(40),
            3 | 4 => 1 << self.below(64),
            5 => (1usize << self.below(64)).wrapping_add(self.below(5)).wrapping_sub(2),
            6 => (u32::MAX as usize).wrapping_add(self.below(5)).wrapping_sub(2),
            _ => [usize::MAX, usize::MAX / 2, usize::MAX / 4][self.below(3)].wrapping_sub(self.below(4)),
        };
        self.told("size", size)
    }

    /// Mostly the one that fits.
    pub fn near(&mut self, good: usize) -> usize {
        let size = match self.below(24) {
            0 => self.size(),
            1 => good.wrapping_add(1),
            2 => good.saturating_sub(1),
            _ => good,
        };
        self.told("near", size)
    }

    /// [`Gen::near`], but nothing between `most` and 2^40: what could be had, at a cost.
    pub fn held(&mut self, good: usize, most: usize) -> usize {
        match self.near(good) {
            n if n <= most || n >= 1 << 40 => n,
            _ => self.told("held", good),
        }
    }

    /// The length of a slice that is really made.
    pub fn len(&mut self, good: usize) -> usize {
        match self.below(24) {
            0 => self.below(40),
            1 => good + 1,
            2 => good.saturating_sub(1),
            _ => good,
        }
    }

    pub fn word(&mut self) -> u32 {
        let n = self.size();
        if n > u32::MAX as usize {
            u32::MAX - (n % 4) as u32
        } else {
            n as u32
        }
    }

    /// Mostly ordinary, now and then no number or one without an end.
    pub fn float(&mut self, good: f64) -> f64 {
        let value = match self.below(16) {
            0 => self.pick(&[0.0, -0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
            1 => self.pick(&[f64::MAX, f64::MIN_POSITIVE, 1e-300, -1e30, 1e30, 5e-324]),
            _ => good,
        };
        self.told("float", value)
    }

    pub fn f64s(&mut self, len: usize) -> Vec<f64> {
        let (len, odd) = (self.len(len), self.one_in(50));
        (0..len).map(|i| if odd && i == 0 { f64::NAN } else { (i % 7) as f64 / 4.0 - 0.5 }).collect()
    }

    pub fn f32s(&mut self, len: usize) -> Vec<f32> {
        self.f64s(len).into_iter().map(|v| v as f32).collect()
    }

    /// Counts a call, and hands on what it gave.
    pub fn call<T>(&mut self, name: &'static str, result: Result<T, Error>) -> Option<T> {
        let count = self.tally.0.entry(name).or_default();
        if self.trace {
            eprintln!("{name}: {}", result.as_ref().err().map_or("ok".into(), Error::to_string));
        }
        match result {
            Ok(value) => {
                count.0 += 1;
                Some(value)
            }
            Err(error) => {
                // What the library should have refused itself, and a text that cannot be made.
                let kind = error.kind();
                assert!(!matches!(kind, latten::ErrorKind::Gpu { .. }), "{name}: {error}");
                assert!(!error.to_string().is_empty());
                count.1 += 1;
                None
            }
        }
    }
}
