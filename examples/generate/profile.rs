//! `--profile`: what each kernel takes of a token.

use super::{Args, Stop};
use latten::model::{generate, GenerateOptions, Session};
use latten::{DispatchTime, Gpu};
use std::io::{self, Write};
use std::ops::ControlFlow;

/// Tokens whose dispatches are timed.
const PROFILED: usize = 40;

/// The dispatches of some tokens after the first.
pub(crate) async fn profiled(
    gpu: &Gpu,
    session: &mut Session,
    prompt: &[u32],
    args: &Args,
) -> Result<(Vec<DispatchTime>, usize), Stop> {
    let options = GenerateOptions { max_new_tokens: PROFILED.min(args.options().max_new_tokens), ..args.options() };
    let (mut started, mut tokens) = (None, 0);
    let on_token = |_| {
        match started {
            None => started = Some(gpu.start_profile()),
            Some(_) => tokens += 1,
        }
        ControlFlow::Continue(())
    };
    generate(session, prompt, options, on_token).await?;
    started.transpose()?;
    Ok((gpu.take_profile().await?, tokens))
}

/// By kernel, the dearest first.
pub(crate) fn print_profile(out: &mut impl Write, (times, tokens): &(Vec<DispatchTime>, usize)) -> io::Result<()> {
    let mut kernels: Vec<(&str, usize, f64)> = Vec::new();
    for time in times {
        match kernels.iter_mut().find(|kernel| kernel.0 == time.kernel) {
            Some(kernel) => (kernel.1, kernel.2) = (kernel.1 + 1, kernel.2 + time.us),
            None => kernels.push((time.kernel, 1, time.us)),
        }
    }
    kernels.sort_by(|a, b| b.2.total_cmp(&a.2));
    let (all, tokens) = (kernels.iter().map(|kernel| kernel.2).sum::<f64>(), *tokens as f64);
    writeln!(out, "  kernel            per token   us each  us per token  share")?;
    for (name, count, us) in kernels {
        let (each, per_token, share) = (us / count as f64, us / tokens, 100.0 * us / all);
        writeln!(out, "  {name:<16} {:>10.1} {each:>9.2} {per_token:>13.1} {share:>5.1}%", count as f64 / tokens)?;
    }
    writeln!(out, "  {:<16} {:>10.1} {:>9} {:>13.1}", "all", times.len() as f64 / tokens, "", all / tokens)
}
