//! From the loading of a model to its first token, and what is compiled on the way: `generate --profile` and the tool
//! `prefill_table` print it. Cold is only what no driver's cache and no model before it in the same process has compiled.

use latten::CompileTime;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// What passed until the first token (milliseconds).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ColdStart {
    /// Of `Decoder::load`.
    pub load_ms: f64,
    /// From the beginning of that to the first token of a prompt, on the host.
    pub first_token_ms: f64,
    /// Tokens of the prompt.
    pub prompt: usize,
    pub pipelines: usize,
    /// In which at least one pipeline was being compiled.
    pub compiling_ms: f64,
    /// Of all pipelines, which several threads compile at once.
    pub compiling_in_all_ms: f64,
    /// The dearest first.
    pub kernels: Vec<CompiledKernel>,
}

/// Pipelines of one kernel (milliseconds).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompiledKernel {
    pub kernel: &'static str,
    pub pipelines: usize,
    pub ms: f64,
    pub longest_ms: f64,
}

impl ColdStart {
    pub fn new(load: Duration, first_token: Duration, prompt: usize, times: &[CompileTime]) -> Self {
        let ms = |time: Duration| 1e3 * time.as_secs_f64();
        let mut kernels: Vec<CompiledKernel> = Vec::new();
        for time in times {
            let new =
                CompiledKernel { kernel: time.kernel, pipelines: 1, ms: ms(time.time), longest_ms: ms(time.time) };
            match kernels.iter_mut().find(|known| known.kernel == time.kernel) {
                Some(known) => {
                    known.pipelines += 1;
                    known.ms += new.ms;
                    known.longest_ms = known.longest_ms.max(new.ms);
                }
                None => kernels.push(new),
            }
        }
        kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        ColdStart {
            load_ms: ms(load),
            first_token_ms: ms(first_token),
            prompt,
            pipelines: times.len(),
            compiling_ms: ms(covered(times)),
            compiling_in_all_ms: kernels.iter().map(|kernel| kernel.ms).sum(),
            kernels,
        }
    }

    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let ColdStart { load_ms, first_token_ms, prompt, pipelines, compiling_ms, compiling_in_all_ms, kernels } = self;
        writeln!(
            out,
            "  cold start: {first_token_ms:.0} ms from loading to the first token of a prompt of {prompt}; of these loading \
             {load_ms:.0},\n    {pipelines} pipelines compiled in {compiling_ms:.0} ({compiling_in_all_ms:.0} one after the other)"
        )?;
        writeln!(out, "    kernel           pipelines       ms   longest")?;
        for CompiledKernel { kernel, pipelines, ms, longest_ms } in kernels {
            writeln!(out, "    {kernel:<16} {pipelines:>9} {ms:>8.1} {longest_ms:>9.1}")?;
        }
        Ok(())
    }
}

/// The time in which at least one was under way.
fn covered(times: &[CompileTime]) -> Duration {
    let mut times: Vec<(Duration, Duration)> = times.iter().map(|time| (time.from, time.from + time.time)).collect();
    times.sort();
    let (mut covered, mut end) = (Duration::ZERO, Duration::ZERO);
    for (from, to) in times {
        covered += to.saturating_sub(from.max(end));
        end = end.max(to);
    }
    covered
}
