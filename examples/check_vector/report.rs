//! Errors against their bounds, one line each.

use latten::{DType, ErrorKind, Result};
use std::io::Write;

/// What an output may be off by, against f64 on the same rounded inputs: all arithmetic is in f32, whatever the cache
/// holds. The numbers are for inputs of order 1, which the oracle's are; scores of some hundreds cannot keep them.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Mean square of the error relative to that of the wanted values.
    pub nmse: f64,
    /// Largest absolute error.
    pub absolute: f64,
}

impl Bound {
    /// Of a kernel's outputs, which are means of values of order 1.
    pub fn out(dtype: DType) -> Self {
        Bound { nmse: if dtype == DType::F32 { 1e-10 } else { 1e-9 }, absolute: 2e-5 }
    }

    /// Of log-sum-exps, which may be near 0.
    pub fn lse() -> Self {
        Bound { nmse: f64::INFINITY, absolute: 1e-5 }
    }

    /// The same, its absolute error relative to the size of the wanted values where that is above 1.
    pub fn relative_to(self, want: &[f64]) -> Self {
        let square = want.iter().map(|w| w * w).sum::<f64>() / want.len().max(1) as f64;
        Bound { absolute: self.absolute * square.sqrt().max(1.0), ..self }
    }
}

/// Prints lines and keeps in mind whether all were within their bounds.
pub struct Report<'a> {
    out: &'a mut dyn Write,
    all_within: bool,
}

impl<'a> Report<'a> {
    pub fn new(out: &'a mut dyn Write) -> Self {
        Report { out, all_within: true }
    }

    pub fn all_within(&self) -> bool {
        self.all_within
    }

    /// A line of its own.
    pub fn say(&mut self, line: &str) {
        // A reader that has gone away still gets the exit code.
        let _ = writeln!(self.out, "{line}");
    }

    /// Says that a dtype cannot hold the vector. That is no fault of the vector's, unless not even f32 can.
    pub fn not_run(&mut self, dtype: DType, what: &str) -> Result<()> {
        if dtype == DType::F32 {
            let why = format!("{what} is beyond f32, so that nothing can be run");
            return Err(ErrorKind::Argument { name: "vector", why }.into());
        }
        self.say(&format!("  {dtype}: not run, {what} is beyond {dtype}"));
        Ok(())
    }

    /// Compares one output. `run` says what was run (dtype, policy), `against` with what it is compared.
    pub fn compare(&mut self, output: &str, run: &str, against: &str, (got, want): (&[f64], &[f64]), bound: Bound) {
        let error = Error::of(got, want);
        let within = error.misplaced.is_none() && error.nmse <= bound.nmse && error.absolute <= bound.absolute;
        self.all_within &= within;
        let nmse = format!("NMSE {:.1e}{}", error.nmse, limit(bound.nmse));
        let absolute = format!("max {:.1e}{}", error.absolute, limit(bound.absolute));
        let verdict = if within { "ok" } else { "FAIL" };
        self.say(&format!("  {output:<4} {run:<45} {nmse:<27} {absolute:<26} {verdict:<4}  against {against}"));
        if let Some(i) = error.misplaced {
            self.say(&format!("       element {i} is {}, wanted {}", got[i], want[i]));
        }
    }
}

fn limit(bound: f64) -> String {
    if bound.is_finite() {
        format!(" (bound {bound:.0e})")
    } else {
        String::new()
    }
}

struct Error {
    nmse: f64,
    absolute: f64,
    /// The first element that is infinite or no number on one side alone.
    misplaced: Option<usize>,
}

impl Error {
    fn of(got: &[f64], want: &[f64]) -> Self {
        let same = |g: f64, w: f64| (g.is_finite() && w.is_finite()) || g == w;
        let pairs = || got.iter().zip(want).map(|(&g, &w)| (g, w));
        let misplaced = pairs().position(|(g, w)| !same(g, w));
        let (mut error, mut size, mut absolute) = (0.0, 0.0, 0.0f64);
        for (g, w) in pairs().filter(|(g, w)| g.is_finite() && w.is_finite()) {
            error += (g - w) * (g - w);
            size += w * w;
            absolute = absolute.max((g - w).abs());
        }
        let nmse = if size > 0.0 { error / size } else { error };
        Error { nmse, absolute, misplaced }
    }
}
