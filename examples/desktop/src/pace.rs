//! How many tokens a step may have, so that it leaves time for the next frame.

use std::time::Duration;

/// Tokens of the first step, whose time is not known.
const FIRST: usize = 4;

/// Follows the time of steps. The device works on one step at a time, and a frame waits for the one that is under way.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    budget: Duration,
    tokens: usize,
    most: usize,
}

impl Pace {
    pub(crate) fn new(budget: Duration, most: usize) -> Self {
        Pace { budget, tokens: FIRST.min(most.max(1)), most: most.max(1) }
    }

    /// Tokens of the next step, at least one.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// A step of so many tokens took so long. Longer steps come by a half more at most: a step that has a new kernel would mislead
    /// for one turn only, and larger ones cost less a token.
    pub(crate) fn took(&mut self, tokens: usize, time: Duration) {
        let fits = tokens as f64 * self.budget.as_secs_f64() / time.as_secs_f64().max(1e-6);
        let grown = self.tokens + self.tokens.div_ceil(2);
        self.tokens = (fits as usize).clamp(1, grown.min(self.most));
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use std::time::Duration;

    /// Steps that take a fixed time and some per token.
    fn settled(fixed_us: u64, token_us: u64, budget_us: u64, most: usize) -> usize {
        let mut pace = Pace::new(Duration::from_micros(budget_us), most);
        for _ in 0..60 {
            pace.took(pace.tokens(), Duration::from_micros(fixed_us + token_us * pace.tokens() as u64));
        }
        pace.tokens()
    }

    #[test]
    fn steps_come_to_fit_the_budget() {
        assert_eq!(settled(0, 100, 6000, 512), 60);
        assert!((45..=55).contains(&settled(1000, 100, 6000, 512)));
        // Faster than any step that a session takes.
        assert_eq!(settled(0, 1, 6000, 512), 512);
    }

    #[test]
    fn one_token_is_the_least_and_a_slow_step_is_forgotten() {
        assert_eq!(settled(0, 50_000, 6000, 512), 1);
        let mut pace = Pace::new(Duration::from_millis(6), 512);
        pace.took(4, Duration::from_secs(2)); // compiled a kernel
        assert_eq!(pace.tokens(), 1);
        for _ in 0..20 {
            pace.took(pace.tokens(), Duration::from_micros(100 * pace.tokens() as u64));
        }
        assert_eq!(pace.tokens(), 60);
        pace.took(60, Duration::ZERO);
        assert_eq!(pace.tokens(), 90);
    }
}
