//! `--profile`: where the time of a token goes, what each kernel takes of it, and what comes before the first.

use super::breakdown::Breakdown;
use super::cold_start::ColdStart;
use super::{Args, Stop};
use latten::model::{generate, Draw, GenerateOptions, Session};
use latten::{DispatchTime, Gpu};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Tokens whose dispatches are timed.
const PROFILED: usize = 40;
/// The same work before anything is timed, which brings a GPU's clocks up.
const WARM: Duration = Duration::from_millis(500);

/// What a token takes.
#[derive(Default)]
pub(crate) struct Profile {
    /// None of two tokens or fewer.
    breakdown: Option<Breakdown>,
    dispatches: Vec<DispatchTime>,
    /// Steps that these are of.
    steps: usize,
}

/// The first token of a prompt in a session that has fed nothing yet, and when its model began to be loaded and for how long.
pub(crate) async fn cold_start(
    session: &mut Session,
    prompt: &[u32],
    (begun, load): (Instant, Duration),
) -> Result<ColdStart, Stop> {
    let id = session.insert();
    session.next_tokens(&[(id, prompt)], &[Draw::default()]).await?;
    let first_token = begun.elapsed();
    session.remove(id)?;
    Ok(ColdStart::new(load, first_token, prompt.len(), &session.decoder().gpu().take_compile_times()))
}

/// Of some tokens after the first, generated again.
pub(crate) async fn profiled(gpu: &Gpu, session: &mut Session, prompt: &[u32], args: &Args) -> Result<Profile, Stop> {
    // When the first token comes, the step after the second is not yet recorded; and the last has none behind it.
    let made = args.options().max_new_tokens.min(PROFILED + 2);
    let (options, steps) = (GenerateOptions { max_new_tokens: made, ..args.options() }, made.saturating_sub(2));
    if steps == 0 {
        return Ok(Profile::default());
    }
    let warm = if gpu.capabilities().is_software() { Duration::ZERO } else { WARM };
    let start = Instant::now();
    while start.elapsed() < warm {
        generate(session, prompt, options, |_| ControlFlow::Continue(())).await?;
    }
    let seconds = between(session, prompt, (options, steps), || gpu.start_submit_times()).await?;
    let breakdown = Breakdown::new(steps, seconds, &gpu.take_submit_times().await?);
    between(session, prompt, (options, steps), || gpu.start_profile()).await?;
    let dispatches = gpu.take_profile().await?;
    let breakdown = breakdown.map(|breakdown| breakdown.with_dispatches(&dispatches, steps));
    Ok(Profile { breakdown, dispatches, steps })
}

/// Seconds of so many steps after the first token, at which `start` is called.
async fn between(
    session: &mut Session,
    prompt: &[u32],
    (options, steps): (GenerateOptions, usize),
    mut start: impl FnMut() -> latten::Result<()>,
) -> Result<f64, Stop> {
    let (mut started, mut tokens, mut from, mut to) = (Ok(()), 0, Instant::now(), Instant::now());
    let on_token = |_| {
        to = Instant::now();
        if tokens == 0 {
            started = start();
            from = Instant::now();
        }
        tokens += 1;
        if tokens > steps || started.is_err() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    generate(session, prompt, options, on_token).await?;
    started?;
    Ok((to - from).as_secs_f64())
}

/// Where the time goes; then by kernel, the dearest first.
pub(crate) fn print_profile(out: &mut impl Write, profile: &Profile) -> io::Result<()> {
    let Profile { breakdown, dispatches: times, steps } = profile;
    let Some(breakdown) = breakdown else { return Ok(()) };
    breakdown.print(out, "streamed")?;
    let mut kernels: Vec<(&str, usize, f64)> = Vec::new();
    for time in times {
        match kernels.iter_mut().find(|kernel| kernel.0 == time.kernel) {
            Some(kernel) => (kernel.1, kernel.2) = (kernel.1 + 1, kernel.2 + time.us),
            None => kernels.push((time.kernel, 1, time.us)),
        }
    }
    kernels.sort_by(|a, b| b.2.total_cmp(&a.2));
    let (all, tokens) = (kernels.iter().map(|kernel| kernel.2).sum::<f64>(), *steps as f64);
    writeln!(out, "  kernel            per token   us each  us per token  share")?;
    for (name, count, us) in kernels {
        let (each, per_token, share) = (us / count as f64, us / tokens, 100.0 * us / all);
        writeln!(out, "  {name:<16} {:>10.1} {each:>9.2} {per_token:>13.1} {share:>5.1}%", count as f64 / tokens)?;
    }
    writeln!(out, "  {:<16} {:>10.1} {:>9} {:>13.1}", "all", times.len() as f64 / tokens, "", all / tokens)
}
