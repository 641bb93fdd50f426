//! Times decode steps of models that two devices compute, beside one device, and the exchange between them.
//!
//!     cargo run --release -p latten-tools -- shard_table --help
//!
//! The models are those of `prefill_table`, with random weights in f16 and caches in f16. Ranks are threads. Where there is one
//! adapter, two devices of it are taken, which says nothing about two GPUs. Tables:
//!
//! - Exchange: 2,048 to 1,048,576 f32 from the device, summed over both, and back (`Gpu::exchange`); the median.
//! - Decode: a step of `--batch` sequences of `--lengths` tokens on one device and on two; the bytes of a sequence's cached rows on each
//!   device; what the model of docs/sharding.md predicts for two, from the step of one device and this run's exchanges:
//!   `step (bytes of a rank / bytes of one device) + 2 layers exchange`. A batch that `--memory` does not hold on a device is cut to
//!   what it holds, and marked. `--by-context`: each device has all heads and half of the tokens.

mod measure;

use crate::common::arguments::{count, Checked, TierName};
use crate::prefill_table::models::{Weights, SIZES, VARIANTS};
use latten::parallel::Transfer;
use latten::{Gpu, GpuOptions};
use measure::{exchanges, step_on_one, step_on_two, Case, Exchanges, Step};
use pollster::block_on;

/// Times of decode steps of models that two devices compute, and of what they exchange
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Take the GPUs whose description contains this
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Of the kernels
    #[arg(long, default_value = "matrix")]
    tier: TierName,
    /// The paper's models
    #[arg(long, default_value = "1471m", value_parser = SIZES.map(|size| size.name))]
    size: String,
    /// Without it those of the size
    #[arg(long, value_name = "N", value_parser = count)]
    layers: Option<usize>,
    /// Variants of attention
    #[arg(long, value_name = "V,..", value_delimiter = ',', default_values = VARIANTS, value_parser = VARIANTS)]
    variants: Vec<String>,
    /// Tokens of each sequence
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "8192,65536,131072", value_parser = count)]
    lengths: Vec<usize>,
    /// Sequences
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,16,64", value_parser = count)]
    batch: Vec<usize>,
    /// Memory of each device for its cache (GiB)
    #[arg(long, value_name = "N", default_value = "64", value_parser = count)]
    memory: usize,
    /// Divide attention by the tokens of each sequence, not by heads
    #[arg(long)]
    by_context: bool,
    /// Send what is added to the stream in 16 bits
    #[arg(long)]
    halves: bool,
    /// Steps and exchanges that are timed; without it 50, or 3 of software GPUs
    #[arg(long, value_name = "N", value_parser = count)]
    repeats: Option<usize>,
}

/// Tokens of a sequence at least: those of the steps that are timed.
const LEAST_LENGTH: usize = 256;

impl Checked for Args {
    fn check(&self) -> Result<(), String> {
        match self.lengths.iter().find(|length| **length < LEAST_LENGTH) {
            Some(length) => Err(format!("--lengths: {length} is less than {LEAST_LENGTH}")),
            None => Ok(()),
        }
    }
}

/// Two devices, and whether they are two adapters.
fn devices(args: &Args) -> Result<([Gpu; 2], bool), String> {
    let device = |number| {
        let options = GpuOptions {
            adapter: args.adapter.clone(),
            tier: Some(latten::Tier::from(args.tier)),
            number,
            ..Default::default()
        };
        block_on(Gpu::with_options(options)).map_err(|e| e.to_string())
    };
    let first = device(0)?;
    match device(1) {
        Ok(second) => Ok(([first, second], true)),
        Err(_) => Ok(([first, device(0)?], false)),
    }
}

pub(crate) fn main(args: &Args) -> Result<(), String> {
    let (gpus, two) = devices(args)?;
    let adapter = &gpus[0].capabilities().adapter;
    println!(
        "{} {adapter}, {:?}",
        if two { "two adapters, the first" } else { "two devices of one adapter" },
        latten::Tier::from(args.tier)
    );
    let repeats = args.repeats.unwrap_or(if gpus[0].capabilities().is_software() { 3 } else { 50 });
    let exchanges = exchanges(&gpus, repeats)?;
    println!("\n| f32 numbers | exchange, us | without the sum, us |\n|---|---|---|");
    for (numbers, both, alone) in &exchanges.rows {
        println!("| {numbers} | {:.0} | {:.0} |", 1e6 * both, 1e6 * alone);
    }
    let size = SIZES.into_iter().find(|size| size.name == args.size).ok_or("no such size")?;
    let size = crate::prefill_table::models::Size { layers: args.layers.unwrap_or(size.layers), ..size };
    let weights = Weights::new(&size);
    let transfer = if args.halves { Transfer::F16 } else { Transfer::F32 };
    let how = if args.by_context { "by context" } else { "by heads" };
    println!("\n{}, {} layers, attention {how}, exchanges in {transfer:?}\n", size.name, size.layers);
    println!("| variant | tokens | batch | one device, ms | tokens/s | two, ms | tokens/s | predicted, ms | exchanges, ms | KiB of a token: one, two |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for variant in &args.variants {
        for length in &args.lengths {
            for batch in &args.batch {
                let case = Case {
                    size,
                    variant,
                    length: *length,
                    batch: *batch,
                    transfer,
                    by_context: args.by_context,
                    repeats,
                    memory: (args.memory as u64) << 30,
                };
                let one = step_on_one(&gpus[0], &weights, &case)?;
                let two = step_on_two(&gpus, &weights, &case)?;
                println!("{}", row(&case, &exchanges, &one, &two));
            }
        }
    }
    Ok(())
}

fn row(case: &Case<'_>, exchanges: &Exchanges, one: &Step, two: &Step) -> String {
    let of_layer: f64 = two.exchanged.iter().map(|numbers| exchanges.seconds(two.batch * numbers)).sum();
    let exchanged = case.size.layers as f64 * of_layer;
    // Of the batch that two hold, by what one takes for its own.
    let bytes = |step: &Step, batch: usize| step.weight_bytes + (batch * case.length) as f64 * step.token_bytes;
    let predicted = one.seconds * bytes(two, two.batch) / bytes(one, one.batch) + exchanged;
    let cut = |step: &Step| if step.batch < case.batch { format!(" ({} fit)", step.batch) } else { String::new() };
    format!(
        "| {} | {} | {} | {:.2}{} | {:.0} | {:.2}{} | {:.0} | {:.2} | {:.2} | {:.1}, {:.1} |",
        case.variant,
        case.length,
        case.batch,
        1e3 * one.seconds,
        cut(one),
        one.batch as f64 / one.seconds,
        1e3 * two.seconds,
        cut(two),
        two.batch as f64 / two.seconds,
        1e3 * predicted,
        1e3 * exchanged,
        one.token_bytes / 1024.0,
        two.token_bytes / 1024.0,
    )
}
