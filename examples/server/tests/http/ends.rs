//! How answers end that do not end by themselves, and how the server does.

use crate::client::Server;
use serde_json::{json, Value};
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// As long as the model has positions: seconds.
fn endless() -> Value {
    json!({ "messages": [{ "role": "user", "content": "Once" }], "stream": true, "ignore_eos": true })
}

fn last_reason(events: &[String]) -> String {
    assert_eq!(events.last().unwrap(), "[DONE]");
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    last["choices"][0]["finish_reason"].as_str().unwrap_or_else(|| panic!("{last}")).into()
}

#[test]
fn a_client_that_goes_away_cancels_its_request_at_once() {
    let server = Server::start(&[]);
    let mut stream = server.open(CHAT, &endless());
    (0..3).for_each(|_| assert!(stream.next().is_some()));
    assert_eq!(server.metric("latten_requests_running"), 1.0);
    let begun = Instant::now();
    drop(stream);
    server.wait_for("cancellation", || server.metric("latten_requests_running") == 0.0);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    server.wait_for("record of it", || server.log.lock().unwrap().contains("\"outcome\":\"gone\""));
    // So does one that says that it has nothing more to say, and one that waits for a whole answer.
    let stream = server.open(CHAT, &endless());
    server.wait_for("start", || server.metric("latten_requests_running") == 1.0);
    stream.half_close();
    server.wait_for("cancellation", || server.metric("latten_requests_running") == 0.0);
    let mut whole = endless();
    whole["stream"] = false.into();
    let waiting = server.open(CHAT, &whole);
    server.wait_for("start", || server.metric("latten_requests_running") == 1.0);
    drop(waiting);
    server.wait_for("cancellation", || server.metric("latten_requests_running") == 0.0);
    assert!(server.metric("latten_generated_tokens_total") < 1000.0);
    assert_eq!(server.metric("latten_cache_pages_used"), 0.0);
}

#[test]
fn a_full_queue_is_told_at_once() {
    let server = Server::start(&["--max-batch", "1", "--max-queue", "1"]);
    let mut first = server.open(CHAT, &endless());
    assert!(first.next().is_some());
    let second = server.open(CHAT, &endless());
    server.wait_for("second request", || server.metric("latten_requests_waiting") == 1.0);
    for body in [endless(), json!({ "messages": [{ "role": "user", "content": "a" }] })] {
        let reply = server.post(CHAT, &body);
        assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")), "{reply:?}");
        assert_eq!(reply.json()["error"]["code"], "queue_full");
    }
    // More than there ever is room for is no matter of waiting.
    let reply = server.post(TEXT, &json!({ "prompt": "a", "n": 3 }));
    assert_eq!((reply.status, reply.json()["error"]["param"].clone()), (400, json!("n")));
    drop(first);
    let mut second = second;
    assert!(second.next().is_some());
    drop(second);
    server.wait_for("end", || server.post(TEXT, &json!({ "prompt": "a", "max_tokens": 1 })).status == 200);
}

#[test]
fn times_that_are_up_are_a_reason() {
    let server = Server::start(&["--request-timeout", "0.4"]);
    let events = server.open(CHAT, &endless()).rest();
    assert_eq!(last_reason(&events), "timeout");
    assert!(events.len() > 4, "{events:?}");
    let mut whole = endless();
    whole["stream"] = false.into();
    let whole = server.post(CHAT, &whole).json();
    assert_eq!(whole["choices"][0]["finish_reason"], "timeout");
    assert!(!whole["choices"][0]["message"]["content"].as_str().unwrap().is_empty());

    let server = Server::start(&["--max-batch", "1", "--first-token-timeout", "0.3"]);
    let mut first = server.open(CHAT, &endless());
    assert!(first.next().is_some());
    let begun = Instant::now();
    let reply = server.post(TEXT, &json!({ "prompt": "a" }));
    assert_eq!((reply.status, reply.json()["error"]["code"].clone()), (503, json!("timeout")));
    assert!(reply.header("retry-after").is_some() && begun.elapsed() < Duration::from_secs(5));
    assert!(first.next().is_some());
}

/// SIGTERM while answers are made: those that end in time do so, the others end with a reason, and so does the program.
#[test]
fn a_server_that_is_asked_to_end_ends_well() {
    for (grace, reason) in [("0", "abort"), ("30", "length")] {
        let server = Server::start(&["--grace", grace]);
        let mut body = endless();
        body["max_tokens"] = 60.into();
        if grace == "0" {
            body = endless();
        }
        let mut streams: Vec<_> = (0..3).map(|_| server.open(CHAT, &body)).collect();
        streams.iter_mut().for_each(|stream| assert!(stream.next().is_some()));
        server.signal("TERM");
        if reason == "length" {
            server.wait_for("refusal", || server.get("/health").is_none_or(|reply| reply.status == 503));
        }
        for stream in streams {
            assert_eq!(last_reason(&stream.rest()), reason, "grace {grace}");
        }
        let status = server.end();
        assert_eq!(status.code(), Some(0), "{}", server.log.lock().unwrap());
    }
}

/// A server that is killed leaves nothing behind that the next would have to repair, its port least of all; and one that is asked to
/// end before its model is loaded does so.
#[test]
fn a_server_that_is_killed_can_be_started_again() {
    let server = Server::start(&[]);
    let mut stream = server.open(CHAT, &endless());
    assert!(stream.next().is_some());
    server.signal("KILL");
    server.end();
    let port = server.port.to_string();
    let again = Server::listening(&["--port", &port]);
    // Until the model is there.
    let early = again.get("/health").unwrap();
    if early.status != 200 {
        assert_eq!((early.status, early.json()["error"]["code"].clone()), (503, json!("loading")));
    }
    again.signal("TERM");
    assert_eq!(again.end().code(), Some(0));
}

#[test]
fn what_cannot_be_served_is_told() {
    for (args, words) in [
        (vec!["--model", "no/such/folder"], "no/such/folder"),
        (vec!["--cache-bytes", "1000"], "1000"),
        (vec!["--page-size", "3"], "page_size"),
        (vec!["--chat-template", "no.jinja"], "no.jinja"),
        (vec!["--window", "100000"], "max_position_embeddings"),
    ] {
        let server = Server::listening(&args);
        assert_eq!(server.end().code(), Some(1), "{args:?}");
        std::thread::sleep(Duration::from_millis(50)); // its last words are on the way
        let log = server.log.lock().unwrap();
        assert!(log.contains(words), "{args:?}: {log}");
    }
}
