//! Connections: how many there are, how long they may take to say what they want, and how they end.

use crate::app::App;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// Bytes of a request's head at most.
const HEAD_BYTES: usize = 64 << 10;
/// How long connections have to take what was written to them, once the server ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// After the system has refused a connection (too many open files, say) it is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// The task that takes connections.
pub struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    pub fn start(listener: TcpListener, router: axum::Router, app: &Arc<App>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, router, app.clone(), stopped));
        Server { stop, task }
    }

    /// Takes no more connections, and lets those that are there end what they are at.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

async fn accept(listener: TcpListener, router: axum::Router, app: Arc<App>, mut stopped: oneshot::Receiver<()>) {
    let (places, graceful) =
        (Arc::new(Semaphore::new(app.args.max_connections.min(Semaphore::MAX_PERMITS))), GracefulShutdown::new());
    let next = async || {
        let place = places.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, place)),
                Err(error) => {
                    warn!(%error, "a connection was not taken");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    loop {
        tokio::select! {
            got = next() => match got {
                Some((stream, place)) => connect(stream, place, &router, &app, &graceful),
                None => break, // the places are never closed
            },
            _ = &mut stopped => break,
        }
    }
    if tokio::time::timeout(LAST_WORDS, graceful.shutdown()).await.is_err() {
        debug!("some connections did not take their last words");
    }
}

fn connect(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    router: &axum::Router,
    app: &Arc<App>,
    graceful: &GracefulShutdown,
) {
    // Tokens are small, and are not to wait for more.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.args.read_timeout)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
    let (connection, open) = (graceful.watch(connection), app.metrics.connections.clone());
    open.inc();
    tokio::spawn(async move {
        let _place = place;
        if let Err(error) = connection.await {
            debug!(%error, "a connection ended");
        }
        open.dec();
    });
}
