//! Where the time of a decode step goes, of host and device: `generate --profile` and the tool `prefill_table` print it.

use latten::{DispatchTime, SubmitTimes};
use serde::Serialize;
use std::io::{self, Write};

/// Means of some steps (microseconds a step).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Breakdown {
    pub steps: usize,
    /// By the host's clock, from token to token.
    pub step_us: f64,
    /// Host: planning, uploads, recording.
    pub record_us: f64,
    /// Host: ending encoders.
    pub finish_us: f64,
    pub submit_us: f64,
    /// Host: waiting for tokens.
    pub wait_us: f64,
    /// Host: what is left of the step.
    pub other_us: f64,
    pub dispatches: f64,
    /// None where the device has no timestamps.
    pub passes: Option<Passes>,
    /// None where single dispatches were not timed.
    pub timed: Option<Timed>,
}

/// The device's time, by timestamps at both ends of a step's pass.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Passes {
    /// From a step's first dispatch to the end of its last.
    pub first_to_last_us: f64,
    /// From there to the next step's first: the device is idle.
    pub idle_us: f64,
}

/// The device's time in other steps, with a timestamp before and after each dispatch, which costs by itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timed {
    /// In dispatches.
    pub busy_us: f64,
    /// Between them.
    pub gaps_us: f64,
    /// The dispatches of a step in their order, each the median over the steps. Empty where the steps differed in theirs.
    pub order: Vec<Dispatch>,
}

/// One dispatch of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dispatch {
    pub kernel: &'static str,
    pub us: f64,
}

impl Breakdown {
    /// Of `steps` steps, which took so many seconds and spent `times`. None of no steps.
    pub fn new(steps: usize, seconds: f64, times: &SubmitTimes) -> Option<Self> {
        if steps == 0 {
            return None;
        }
        let each = |us: f64| us / steps as f64;
        let [record_us, finish_us, submit_us, wait_us] =
            [times.record, times.finish, times.submit, times.wait].map(|spent| each(1e6 * spent.as_secs_f64()));
        let step_us = each(1e6 * seconds);
        let ends = |i: usize| times.passes[i].from_us + times.passes[i].us;
        let idle = (1..times.passes.len()).map(|i| (times.passes[i].from_us - ends(i - 1)).max(0.0)).sum();
        let busy = times.passes.iter().map(|pass| pass.us).sum();
        let passes = Passes { first_to_last_us: each(busy), idle_us: each(idle) };
        Some(Breakdown {
            steps,
            step_us,
            record_us,
            finish_us,
            submit_us,
            wait_us,
            other_us: (step_us - record_us - finish_us - submit_us - wait_us).max(0.0),
            dispatches: each(times.dispatches as f64),
            passes: (!times.passes.is_empty()).then_some(passes),
            timed: None,
        })
    }

    /// With the dispatches of so many other steps.
    pub fn with_dispatches(self, times: &[DispatchTime], steps: usize) -> Self {
        if times.is_empty() || steps == 0 {
            return self;
        }
        let gap = |pair: &[DispatchTime]| (pair[1].from_us - pair[0].from_us - pair[0].us).max(0.0);
        let each = |us: f64| us / steps as f64;
        let timed = Timed {
            busy_us: each(times.iter().map(|time| time.us).sum()),
            gaps_us: each(times.windows(2).map(gap).sum()),
            order: in_order(times, steps),
        };
        Breakdown { timed: Some(timed), ..self }
    }

    /// Two or three lines; `what` names the steps.
    pub fn print(&self, out: &mut impl Write, what: &str) -> io::Result<()> {
        let Breakdown { steps, step_us, record_us, finish_us, submit_us, wait_us, other_us, dispatches, .. } = self;
        writeln!(
            out,
            "  {what}, of {steps} steps: {step_us:.1} us a step, {dispatches:.1} dispatches\n    host: record {record_us:.1}, \
             finish {finish_us:.1}, submit {submit_us:.1}, wait {wait_us:.1}, other {other_us:.1}"
        )?;
        if let Some(Passes { first_to_last_us, idle_us }) = &self.passes {
            writeln!(
                out,
                "    device: first dispatch to last {first_to_last_us:.1}, then idle until the next step {idle_us:.1}"
            )?;
        }
        if let Some(Timed { busy_us, gaps_us, order }) = &self.timed {
            writeln!(out, "    device, with each dispatch timed: busy {busy_us:.1}, gaps {gaps_us:.1}")?;
            let block = a_block(order).iter().map(|at| format!("{} {:.1}", at.kernel, at.us)).collect::<Vec<_>>();
            if !block.is_empty() {
                writeln!(out, "    a block: {}", block.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Medians by place in a step, if all steps have the same dispatches.
fn in_order(times: &[DispatchTime], steps: usize) -> Vec<Dispatch> {
    let count = times.len() / steps;
    let same = |step: &[DispatchTime]| step.iter().zip(times).all(|(a, b)| a.kernel == b.kernel);
    if count == 0 || !times.len().is_multiple_of(steps) || !times.chunks(count).all(same) {
        return Vec::new();
    }
    let median = |i: usize| {
        let mut all: Vec<f64> = times.chunks(count).map(|step| step[i].us).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    (0..count).map(|i| Dispatch { kernel: times[i].kernel, us: median(i) }).collect()
}

/// Those of a block in the middle: the shortest run of kernels that comes three times there. Empty where none does.
fn a_block(order: &[Dispatch]) -> &[Dispatch] {
    let from = order.len() / 2;
    let rest = &order[from..];
    let repeats = |run: &usize| (0..2 * run).all(|i| rest[i].kernel == rest[i + run].kernel);
    let run = (2..=rest.len() / 3).find(repeats).unwrap_or(0);
    &rest[..run]
}
