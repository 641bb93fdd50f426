//! What was measured, as text and as JSON.

use super::measure::Step;
use super::Args;
use crate::common::breakdown::Breakdown;
use crate::common::ceilings::Ceilings;
use crate::common::cold_start::ColdStart;
use crate::common::facts::Facts;
use latten::{DispatchTime, Gpu};
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// All that a run found; what `--json` writes.
#[derive(Debug, Serialize)]
pub struct Table {
    pub adapter: String,
    #[serde(flatten)]
    pub facts: Facts,
    pub tier: String,
    pub weights: String,
    #[serde(flatten)]
    pub ceilings: Ceilings,
    pub size: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    /// Opening the device, with the self-test of its kernels.
    pub open_ms: f64,
    pub cold_start: Option<ColdStartRow>,
    pub prefill: Vec<PrefillRow>,
    pub break_even: Vec<BreakEvenRow>,
    pub decode: Vec<DecodeRow>,
}

/// Of the first variant and form of a run.
#[derive(Debug, Serialize)]
pub struct ColdStartRow {
    pub variant: String,
    pub path: &'static str,
    #[serde(flatten)]
    pub cold_start: ColdStart,
}

#[derive(Debug, Serialize)]
pub struct PrefillRow {
    pub variant: String,
    pub path: &'static str,
    pub tokens: usize,
    pub chunk: usize,
    pub ms: f64,
    pub tokens_per_s: f64,
    pub tflop: f64,
    pub tflops: f64,
    /// Of the matrix units, or of f32 multiply-adds where there are none.
    pub percent: f64,
}

/// New tokens from which on the explicit form is better, if it ever is.
#[derive(Debug, Serialize)]
pub struct BreakEvenRow {
    pub variant: String,
    pub by_flop: Option<usize>,
    pub measured: Option<usize>,
}

#[derive(Debug, Serialize)]
pub struct DecodeRow {
    pub variant: String,
    pub batch: usize,
    /// What was asked for, and did not fit if it is more.
    pub wanted_batch: usize,
    pub length: usize,
    pub bytes_per_token_and_layer: usize,
    /// Of a streamed step.
    pub ms: f64,
    /// Of one whose tokens are on the host before the next begins.
    pub one_by_one_ms: f64,
    pub tokens_per_s: f64,
    pub gbps: f64,
    pub read_percent: f64,
    /// Where the time of a streamed step goes, and of one by one. With `--json` or `--profile`.
    pub breakdown: Option<[Breakdown; 2]>,
}

impl PrefillRow {
    pub fn new(
        table: &Table,
        (variant, path): (&str, &'static str),
        (tokens, chunk): (usize, usize),
        (flop, seconds): (f64, f64),
    ) -> Self {
        let tflops = flop / seconds / 1e12;
        let percent = 100.0 * tflops / table.ceilings.matmul_tflops.unwrap_or(table.ceilings.fma_tflops);
        let (ms, tokens_per_s) = (1e3 * seconds, tokens as f64 / seconds);
        PrefillRow {
            variant: variant.into(),
            path,
            tokens,
            chunk,
            ms,
            tokens_per_s,
            tflop: flop / 1e12,
            tflops,
            percent,
        }
    }
}

impl DecodeRow {
    pub fn new(
        table: &Table,
        variant: &str,
        (batch, wanted_batch): (usize, usize),
        (length, bytes_per_token_and_layer): (usize, usize),
        (bytes, step): (usize, Step),
    ) -> Self {
        let seconds = step.streamed;
        let gbps = bytes as f64 / seconds / 1e9;
        DecodeRow {
            variant: variant.into(),
            batch,
            wanted_batch,
            length,
            bytes_per_token_and_layer,
            ms: 1e3 * seconds,
            one_by_one_ms: 1e3 * step.one_by_one,
            tokens_per_s: batch as f64 / seconds,
            gbps,
            read_percent: 100.0 * gbps / table.ceilings.read_gbps,
            breakdown: None,
        }
    }
}

impl Table {
    pub fn new(gpu: &Gpu, args: &Args, ceilings: Ceilings, open: Duration) -> Self {
        let size = &args.model_size();
        Table {
            adapter: gpu.capabilities().adapter.clone(),
            facts: Facts::default(),
            tier: format!("{:?}", gpu.capabilities().tier),
            weights: args.weights.to_string(),
            ceilings,
            size: size.name,
            layers: size.layers,
            hidden: size.hidden,
            heads: size.heads,
            head_dim: size.head_dim,
            ffn: size.ffn(),
            vocab: size.vocab,
            open_ms: 1e3 * open.as_secs_f64(),
            cold_start: None,
            prefill: Vec::new(),
            break_even: Vec::new(),
            decode: Vec::new(),
        }
    }

    pub fn print_head(&self, out: &mut impl Write) -> io::Result<()> {
        let Ceilings { read_gbps, fma_tflops, matmul_tflops } = self.ceilings;
        let matmul = matmul_tflops.map_or("none".into(), |t| format!("{t:.0} TFLOP/s"));
        writeln!(out, "adapter: {}, tier {}, opened in {:.0} ms", self.adapter, self.tier, self.open_ms)?;
        writeln!(
            out,
            "ceilings: streaming read {read_gbps:.0} GB/s, f32 fma {fma_tflops:.2} TFLOP/s, f16 matrices {matmul}"
        )?;
        writeln!(
            out,
            "model: {} layers of {}, {} heads of {}, SwiGLU {}, {} tokens, matrices in {}",
            self.layers, self.hidden, self.heads, self.head_dim, self.ffn, self.vocab, self.weights
        )
    }

    pub fn add_prefill(&mut self, row: PrefillRow, out: &mut impl Write) -> io::Result<()> {
        let PrefillRow { variant, path, tokens, chunk, ms, tokens_per_s, tflop, tflops, percent } = &row;
        writeln!(
            out,
            "\n{variant:<6} prefill {path:<9} {tokens:>6} tokens in steps of {chunk:<6} {ms:>10.2} ms \
             {tokens_per_s:>9.0} tokens/s {tflop:>7.3} TFLOP {tflops:>8.3} TFLOP/s {percent:>5.1}%"
        )?;
        self.prefill.push(row);
        Ok(())
    }

    /// Keeps it, and prints it where there is somewhere to.
    pub fn add_cold_start(
        &mut self,
        variant: &str,
        path: &'static str,
        cold_start: ColdStart,
        out: Option<&mut impl Write>,
    ) -> io::Result<()> {
        out.map_or(Ok(()), |out| cold_start.print(out))?;
        self.cold_start = Some(ColdStartRow { variant: variant.into(), path, cold_start });
        Ok(())
    }

    pub fn add_break_even(&mut self, row: BreakEvenRow, out: &mut impl Write) -> io::Result<()> {
        let text = |tokens: Option<usize>| tokens.map_or("never".into(), |n| format!("from {n} tokens on"));
        let (by_flop, measured) = (text(row.by_flop), text(row.measured));
        writeln!(out, "{:<6} explicit has fewer FLOP {by_flop}, is faster {measured}", row.variant)?;
        self.break_even.push(row);
        Ok(())
    }

    pub fn add_decode(&mut self, row: DecodeRow, out: &mut impl Write) -> io::Result<()> {
        let DecodeRow { variant, batch, wanted_batch, length, bytes_per_token_and_layer: bytes, .. } = &row;
        let cut = if batch < wanted_batch { format!(" (of {wanted_batch})") } else { String::new() };
        writeln!(
            out,
            "{variant:<6} decode  L {length:<6} B {:<10} {bytes:>5} bytes/token/layer {:>9.3} ms ({:>9.3}) {:>9.1} tokens/s \
             {:>7.1} GB/s {:>5.1}% of read",
            format!("{batch}{cut}"),
            row.ms,
            row.one_by_one_ms,
            row.tokens_per_s,
            row.gbps,
            row.read_percent
        )?;
        if let Some([streamed, one_by_one]) = &row.breakdown {
            streamed.print(out, "streamed")?;
            one_by_one.print(out, "one by one")?;
        }
        self.decode.push(row);
        Ok(())
    }

    pub fn write(&self, path: &str) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{path}: {e}"))
    }
}

/// By kernel, the dearest first; and each kernel's longest dispatch.
pub fn print_profile(out: &mut impl Write, times: &[DispatchTime]) -> io::Result<()> {
    let mut kernels: Vec<(&str, usize, f64, f64)> = Vec::new();
    for time in times {
        match kernels.iter_mut().find(|kernel| kernel.0 == time.kernel) {
            Some((_, count, all, most)) => (*count, *all, *most) = (*count + 1, *all + time.us, most.max(time.us)),
            None => kernels.push((time.kernel, 1, time.us, time.us)),
        }
    }
    kernels.sort_by(|a, b| b.2.total_cmp(&a.2));
    let all: f64 = kernels.iter().map(|kernel| kernel.2).sum();
    writeln!(out, "  kernel           dispatches       us each    longest us   us in all  share")?;
    for (name, count, us, most) in kernels {
        let (each, share) = (us / count as f64, 100.0 * us / all);
        writeln!(out, "  {name:<16} {count:>10} {each:>13.1} {most:>13.1} {us:>11.0} {share:>5.1}%")?;
    }
    Ok(())
}
