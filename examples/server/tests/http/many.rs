//! A thousand connections at once.

use crate::client::{request, Server};
use serde_json::{json, Value};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Asks, and returns status and body.
async fn ask(port: u16, body: Value) -> (u16, String) {
    let bytes = request("/v1/completions", "", body.to_string().as_bytes());
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    let got = String::from_utf8(got).unwrap();
    (got.split(' ').nth(1).unwrap().parse().unwrap(), got)
}

async fn all(port: u16, count: usize, tokens: usize) -> Vec<(u16, String)> {
    let mut tasks = JoinSet::new();
    for i in 0..count {
        let prompt = format!("Story number {i}: ");
        tasks.spawn(ask(
            port,
            json!({ "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": i % 2 == 0 }),
        ));
    }
    tasks.join_all().await
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// None fails, and the third thousand takes no memory that the second did not: buffers and the adapter's kernels are made by then.
#[test]
fn a_thousand_connections_at_once() {
    let server = Server::start(&["--max-batch", "32", "--max-queue", "1000"]);
    let (before, mut after) = (server.resident(), Vec::new());
    for round in 0..3 {
        let begun = Instant::now();
        let replies = runtime().block_on(all(server.port, 1000, 8));
        for (status, got) in &replies {
            assert_eq!(*status, 200, "{got}");
            assert!(got.contains("\"finish_reason\":\"length\""), "{got}");
        }
        server.wait_for("end of all", || {
            server.metric("latten_requests_running") + server.metric("latten_requests_waiting") == 0.0
        });
        server.wait_for("end of connections", || server.metric("latten_connections") <= 1.0);
        after.push(server.resident());
        println!(
            "round {round}: {:.1} s, {:.0} MiB resident ({:.0} before all)",
            begun.elapsed().as_secs_f64(),
            after[round] as f64 / f64::from(1 << 20),
            before as f64 / f64::from(1 << 20)
        );
    }
    assert!(after[2] < after[1] + (16 << 20), "{before} bytes before, then {after:?}");
    assert_eq!(server.metric("latten_cache_pages_used"), 0.0);
}

/// With places for 16, whoever has none is told so, and nobody else is harmed.
#[test]
fn whoever_has_no_place_is_told_so() {
    let server = Server::start(&["--max-batch", "8", "--max-queue", "8"]);
    let begun = Instant::now();
    let replies = runtime().block_on(all(server.port, 300, 30));
    let of = |wanted: u16| replies.iter().filter(|(status, _)| *status == wanted).count();
    assert_eq!(of(200) + of(429), 300);
    assert!(of(200) >= 16 && of(429) > 50, "{} answered, {} refused", of(200), of(429));
    let refused = replies.iter().filter(|(status, _)| *status == 429);
    refused.for_each(|(_, got)| {
        assert!(got.to_lowercase().contains("retry-after: 1") && got.contains("queue_full"), "{got}")
    });
    assert!(begun.elapsed() < Duration::from_secs(60));
}
