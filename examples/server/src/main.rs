//! A server of latten's models over HTTP: `./dev serve`, or `cargo run --release -p latten-server -- --model model.gguf`.
//!
//! One thread owns the scheduler and makes its steps (`engine`); handlers on tokio's threads put requests into its channel, and each
//! gets what its request gives through a channel of its own. What it takes and gives: `docs/serving.md`, or `/openapi.json`.

mod api;
mod app;
mod args;
mod engine;
mod errors;
mod http;
mod metrics;
mod model;
#[path = "../../shared/random_models.rs"]
mod random_models;
#[path = "../../shared/ranks.rs"]
mod ranks;
#[path = "../../shared/arguments.rs"]
mod shared_arguments;
#[path = "../../shared/repository.rs"]
mod shared_repository;

use app::App;
use args::Args;
use clap::Parser;
use engine::{Command, Engine};
use http::Server;
use metrics::Metrics;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{signal, Signal, SignalKind};
use tokio::sync::oneshot::{self, error::RecvError, Receiver};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,latten_server=info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format.as_str() {
        "json" => log.json().init(),
        _ => log.init(),
    }
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            error!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: Args) -> Result<(), String> {
    let metrics = Metrics::new().map_err(|e| e.to_string())?;
    let app = Arc::new(App::new(args, metrics));
    let router = api::router(&app)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    let result = runtime.block_on(run(app, router));
    // What still runs there, as the encoding of a long text, is not waited for.
    runtime.shutdown_background();
    result
}

async fn run(app: Arc<App>, router: axum::Router) -> Result<(), String> {
    let address = (app.args.host.as_str(), app.args.port);
    let listener = TcpListener::bind(address).await.map_err(|e| format!("{}:{}: {e}", address.0, address.1))?;
    let local = listener.local_addr().map_err(|e| e.to_string())?;
    if !local.ip().is_loopback() && app.args.api_key.is_none() {
        warn!(%local, "others can reach this address, and there is no --api-key");
    }
    info!(%local, "listening; the model is being loaded");
    let mut signals = Signals::new().map_err(|e| format!("signals: {e}"))?;
    let mut ended = start(&app);
    let server = Server::start(listener, router, &app);
    let result = tokio::select! {
        ended = &mut ended => result_of(ended),
        () = signals.next() => {
            info!("going down: answers may go on for {:?}", app.args.grace);
            app.close();
            let most = app.args.max_batch.saturating_add(app.args.max_queue);
            let idle = async {
                while app.places.available_permits() < most {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                () = idle => {}
                () = tokio::time::sleep(app.args.grace) => {}
                () = signals.next() => {}
            }
            match app.command(Command::Stop) {
                true => result_of(ended.await),
                false => Ok(()), // the model was not loaded yet
            }
        }
    };
    app.close();
    server.stop().await;
    info!("ended");
    result
}

/// What asks a program to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Starts the thread that loads the model and runs it. How it ends comes through the channel.
fn start(app: &Arc<App>) -> Receiver<Result<(), String>> {
    let (tell, ended) = oneshot::channel();
    let app = app.clone();
    std::thread::spawn(move || {
        let run = || {
            let begun = Instant::now();
            // Those that follow end when the session of the engine does.
            let (_followers, served, scheduler) = model::load(&app.args)?;
            let (commands, taken) = std::sync::mpsc::channel();
            let (name, context) = (served.name.clone(), served.context);
            let pages = scheduler.session().cache().pages().count;
            let gpu = scheduler.session().decoder().gpu().capabilities().adapter.clone();
            info!(name, context, pages, gpu, seconds = begun.elapsed().as_secs_f32(), "ready");
            app.open(served, commands);
            Engine::new(scheduler, taken, app.metrics.clone()).run().map_err(|error| error.to_string())
        };
        let _ = tell.send(run()); // where nobody listens the program has ended
    });
    ended
}

/// A thread that tells nothing has panicked.
fn result_of(told: Result<Result<(), String>, RecvError>) -> Result<(), String> {
    told.unwrap_or_else(|_| Err("the thread that runs the model has panicked".into()))
}
