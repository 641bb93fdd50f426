//! How long frames take while the model works.

use std::fmt;
use std::time::{Duration, Instant};

/// What a frame of a smooth window may take.
pub(crate) const GOAL: Duration = Duration::from_nanos(16_666_667);

/// Times of frames that followed each other while the model was at work.
#[derive(Debug, Default, Clone)]
pub(crate) struct Frames {
    last: Option<Instant>,
    /// From one frame's start to the next one's, and the part of it that the window's own thread was busy or waited for the device.
    intervals: Vec<Duration>,
    busy: Vec<Duration>,
}

impl Frames {
    /// A frame begins. `busy`: what the one before took of this thread's time.
    pub(crate) fn frame(&mut self, now: Instant, at_work: bool, busy: Option<f32>) {
        if let (true, Some(last)) = (at_work, self.last) {
            self.intervals.push(now - last);
            self.busy.push(Duration::from_secs_f32(busy.unwrap_or_default().max(0.0)));
        }
        self.last = at_work.then_some(now);
    }

    pub(crate) fn clear(&mut self) {
        *self = Frames::default();
    }

    pub(crate) fn longest(&self) -> Option<Duration> {
        self.intervals.iter().max().copied()
    }

    /// The share of the frames that began within twice the goal: none was left out at 60 a second.
    fn smooth(&self) -> f64 {
        let smooth = self.intervals.iter().filter(|interval| **interval < 2 * GOAL).count();
        smooth as f64 / self.intervals.len().max(1) as f64
    }
}

/// Milliseconds: middle, 99th of a hundred, longest.
fn quantiles(times: &[Duration]) -> [f64; 3] {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)));
    [0.5, 0.99, 1.0].map(|share| at(share).map_or(0.0, |time| 1e3 * time.as_secs_f64()))
}

impl fmt::Display for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([middle, most, longest], [busy, _, busiest]) = (quantiles(&self.intervals), quantiles(&self.busy));
        write!(
            f,
            "{} frames: every {middle:.1} ms, 99% within {most:.1}, longest {longest:.1}; of these the window's thread {busy:.1}, \
             longest {busiest:.1}; {:.1}% within two sixtieths of a second",
            self.intervals.len(),
            100.0 * self.smooth()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Frames;
    use std::time::{Duration, Instant};

    #[test]
    fn only_frames_under_work_count() {
        let (mut frames, start) = (Frames::default(), Instant::now());
        let mut at = start;
        for (pause, at_work) in
            [(16, false), (500, false), (16, true), (20, true), (40, true), (700, false), (16, true)]
        {
            at += Duration::from_millis(pause);
            frames.frame(at, at_work, Some(0.004));
        }
        assert_eq!(frames.longest(), Some(Duration::from_millis(40)));
        let text = frames.to_string();
        assert!(text.starts_with("2 frames: every 40.0 ms"), "{text}");
        assert!(text.ends_with("50.0% within two sixtieths of a second"), "{text}");
        frames.clear();
        assert_eq!(frames.longest(), None);
    }
}
