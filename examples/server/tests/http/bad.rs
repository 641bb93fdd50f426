//! Requests that no client should send: each has an answer with a reason, or none where there is nobody to answer, and the server
//! lives on.

use crate::client::{request, shared, Reply, Server};
use latten::model::SplitMix64;
use serde_json::{json, Value};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// The body of an error, whose fields are all there.
fn error(reply: &Reply) -> (u16, String, Option<String>) {
    let body = reply.json();
    let error = &body["error"];
    let kinds =
        ["invalid_request_error", "authentication_error", "not_found_error", "rate_limit_error", "server_error"];
    assert!(
        kinds.contains(&error["type"].as_str().unwrap()) && !error["message"].as_str().unwrap().is_empty(),
        "{body}"
    );
    (reply.status, error["code"].as_str().unwrap().into(), error["param"].as_str().map(str::to_string))
}

#[test]
fn fields_that_cannot_be_are_named() {
    let server = shared();
    let text = |name: &str, value: Value| {
        let mut body = json!({ "prompt": "a", "max_tokens": 2 });
        body[name] = value;
        (TEXT, body, name.to_string())
    };
    let chat = |name: &str, value: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 2 });
        body[name] = value;
        (CHAT, body, name.to_string())
    };
    let long = "x".repeat(2000);
    for (path, body, param) in [
        text("prompt", json!("")),
        text("prompt", json!([])),
        text("prompt", json!([[]])),
        text("prompt", json!([256])),
        text("prompt", json!(vec!["a"; 129])),
        text("prompt", json!(long)),
        text("prompt", json!({})),
        text("max_tokens", json!(0)),
        text("max_tokens", json!(1025)),
        text("max_tokens", json!(-1)),
        text("max_tokens", json!(1.5)),
        text("max_tokens", json!(u64::MAX)),
        text("temperature", json!(-0.1)),
        text("temperature", json!(2.1)),
        text("temperature", json!("hot")),
        text("top_p", json!(0)),
        text("top_p", json!(1.01)),
        text("n", json!(0)),
        text("n", json!(17)),
        text("stop", json!("")),
        text("stop", json!([""])),
        text("stop", json!(vec!["a"; 17])),
        text("stop", json!(long)),
        text("stop_token_ids", json!([256])),
        text("seed", json!("a")),
        text("stream", json!(1)),
        text("stream_options", json!({ "include_usage": true })),
        text("top_k", json!(-2)),
        text("min_p", json!(1.5)),
        text("typical_p", json!(0)),
        text("frequency_penalty", json!(2.5)),
        text("presence_penalty", json!(-2.5)),
        text("repetition_penalty", json!(0)),
        text("logit_bias", json!({ "a": 1 })),
        text("logit_bias", json!({ "256": 1 })),
        text("logit_bias", json!({ "1": 101 })),
        text("logit_bias", json!({ "1": 1, "01": 2 })),
        text("logprobs", json!(21)),
        text(
            "response_format",
            json!({ "type": "json_schema", "json_schema": { "schema": { "type": "no such type" } } }),
        ),
        text("response_format", json!({ "type": "regex", "regex": "(" })),
        text("response_format", json!({ "type": "lark", "lark": "start: nothing_of_the_kind" })),
        text("echo", json!(true)),
        text("best_of", json!(2)),
        text("suffix", json!("a")),
        text("anything", json!(null)),
        chat("messages", json!([])),
        chat("messages", json!("a")),
        chat("max_completion_tokens", json!(3)),
        chat("top_logprobs", json!(3)),
        chat("tools", json!([])),
        chat("functions", json!([])),
    ] {
        let reply = server.post(path, &body);
        let (status, code, named) = error(&reply);
        assert_eq!((status, named.as_deref()), (400, Some(param.as_str())), "{body}: {code}");
    }
    let parts = json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] });
    assert_eq!(error(&server.post(CHAT, &parts)).0, 400);
    let format = json!({ "prompt": "a", "response_format": { "type": "xml" } });
    assert_eq!(error(&server.post(TEXT, &format)).2.as_deref(), Some("response_format.type"));
    let other = json!({ "model": "other", "prompt": "a" });
    assert_eq!(error(&server.post(TEXT, &other)), (404, "model_not_found".into(), Some("model".into())));
    assert_eq!(error(&server.post("/detokenize", &json!({ "tokens": [256] }))).0, 400);
    assert_eq!(error(&server.post("/tokenize", &json!({}))).0, 400);
    assert_eq!(server.post(TEXT, &json!({ "prompt": "a", "max_tokens": 2, "top_p": 1e-300 })).status, 200);
}

#[test]
fn bytes_that_are_no_request() {
    let server = Server::start(&["--max-body-bytes", "64KiB", "--read-timeout", "2"]);
    let deep = format!("{{\"prompt\": {}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
    for (body, wanted) in [
        (&b""[..], 400),
        (b"{", 400),
        (b"null", 400),
        (b"[]", 400),
        (b"{\"prompt\": \"\xff\xfe\"}", 400),
        (b"{\"prompt\": \"\\ud800\"}", 400),
        (b"{\"prompt\": \"a\"} {}", 400),
        (b"{\"prompt\": \"a\", \"prompt\": \"b\"}", 400),
        (b"{\"prompt\": NaN}", 400),
        (b"{\"prompt\": \"a\", \"temperature\": 1e999}", 400),
        (deep.as_bytes(), 400),
        (&[b' '; 70_000], 413),
    ] {
        let reply = server.post_bytes(TEXT, "", body).unwrap();
        assert_eq!(error(&reply).0, wanted, "{:?}", String::from_utf8_lossy(&body[..body.len().min(80)]));
    }
    // More than it says, in chunks.
    let chunk = [format!("{:x}\r\n", 70_000).as_bytes(), &[b' '; 70_000], b"\r\n0\r\n\r\n"].concat();
    let head = format!("POST {TEXT} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n");
    let chunked = [head.as_bytes(), b"transfer-encoding: chunked\r\n\r\n", &chunk].concat();
    // It answers without having read all, so the connection may break before the answer is read.
    assert!(server.raw(&chunked).is_none_or(|reply| error(&reply).0 == 413));
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""] {
        let reply = server.post_bytes(TEXT, &format!("content-type: {kind}\r\n"), b"{}").unwrap();
        assert_eq!(error(&reply).0, 415, "{kind}");
    }
    assert_eq!(error(&server.get("/nothing").unwrap()).0, 404);
    assert_eq!(error(&server.get(TEXT).unwrap()).0, 405);
    assert_eq!(error(&server.raw(b"DELETE /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap()).0, 405);
    for bytes in [
        &b"\r\n\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let reply = server.raw(bytes);
        assert!(reply.as_ref().is_none_or(|reply| (400..600).contains(&reply.status)), "{bytes:?}: {reply:?}");
    }
    let huge = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(1_000_000));
    assert!(server.raw(huge.as_bytes()).is_none_or(|reply| reply.status == 431));
    let wrong_length = format!("{head}content-length: -1\r\n\r\n");
    assert!(server.raw(wrong_length.as_bytes()).is_none_or(|reply| reply.status == 400));
    assert_eq!(server.get("/health").unwrap().status, 200);
}

/// Heads and bodies that do not come, or come a byte at a time.
#[test]
fn slow_clients_are_not_waited_for() {
    let server = Server::start(&["--read-timeout", "1"]);
    let begun = Instant::now();
    let mut head = server.connect();
    head.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n").unwrap();
    let mut body = server.connect();
    body.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 40\r\n\r\n").unwrap();
    for _ in 0..14 {
        let _ = body.write_all(b" ");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut got = String::new();
    let _ = body.read_to_string(&mut got);
    assert!(got.starts_with("HTTP/1.1 408 ") && got.contains("body_timeout"), "{got}");
    let mut got = String::new();
    let _ = head.read_to_string(&mut got);
    assert!(got.is_empty() || got.starts_with("HTTP/1.1 408 "), "{got}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    server.wait_for("end of both", || server.metric("latten_connections") <= 1.0);
}

/// A body that ends before its length, with the client still reading.
#[test]
fn half_a_body_is_none() {
    let server = shared();
    let whole = request(TEXT, "", br#"{"prompt": "a", "max_tokens": 5}"#);
    for length in [whole.len() - 1, whole.len() - 20, 30] {
        let mut stream = server.connect();
        stream.write_all(&whole[..length]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = String::new();
        let _ = stream.read_to_string(&mut got);
        assert!(got.is_empty() || got.starts_with("HTTP/1.1 400 "), "{length}: {got}");
    }
    assert_eq!(server.get("/health").unwrap().status, 200);
}

#[test]
fn a_key_that_is_wanted_is_wanted_everywhere_but_for_health_and_the_page() {
    let server = Server::start(&["--api-key", "the right one"]);
    let right = "authorization: Bearer the right one\r\n";
    let body = br#"{"prompt": "a", "max_tokens": 2}"#;
    for headers in ["", "authorization: Bearer wrong\r\n", "authorization: Basic the right one\r\n"] {
        let reply = server.post_bytes(TEXT, headers, body).unwrap();
        assert_eq!(error(&reply), (401, "invalid_api_key".into(), None), "{headers}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    for path in ["/v1/models", "/metrics"] {
        assert_eq!(error(&server.get(path).unwrap()).0, 401, "{path}");
    }
    for path in [CHAT, "/tokenize", "/detokenize"] {
        assert_eq!(error(&server.post(path, &json!({}))).0, 401, "{path}");
    }
    for path in ["/health", "/", "/openapi.json"] {
        assert_eq!(server.get(path).unwrap().status, 200, "{path}");
    }
    assert_eq!(server.post_bytes(TEXT, right, body).unwrap().status, 200);
    assert!(!server.log.lock().unwrap().contains("the right one"));
}

/// JSON bodies that are changed at random, byte by byte and value by value: an answer of a known status and form each, and the server
/// goes on. LATTEN_MUTATIONS says how many.
#[test]
fn bodies_that_are_changed_at_random() {
    let server = Server::start(&["--context", "48"]);
    let count: usize = std::env::var("LATTEN_MUTATIONS").map_or(1500, |count| count.parse().unwrap());
    let seeds = [
        (
            CHAT,
            json!({ "model": "gla", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 2, "temperature": 0.5,
            "top_p": 0.9, "n": 2, "stop": ["a", "b"], "seed": 1, "stream": true, "stream_options": { "include_usage": true },
            "logit_bias": {}, "user": "x", "response_format": { "type": "text" } }),
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "system", "content": [{ "type": "text", "text": "a" }] }], "max_completion_tokens": 1 }),
        ),
        (
            TEXT,
            json!({ "prompt": [1, 2, 3], "max_tokens": 2, "stop_token_ids": [5], "ignore_eos": true, "echo": false }),
        ),
        (TEXT, json!({ "prompt": ["a", "bc"], "max_tokens": 1, "presence_penalty": 0 })),
        ("/tokenize", json!({ "prompt": "some text" })),
        ("/detokenize", json!({ "tokens": [1, 2, 255] })),
    ];
    let threads = 4;
    let statuses = std::thread::scope(|scope| {
        let work = |thread: usize| {
            let (server, seeds) = (&server, &seeds);
            scope.spawn(move || {
                let mut random = SplitMix64::new(thread as u64);
                let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
                for _ in 0..count / threads {
                    let (path, body) = &seeds[random.next_u64() as usize % seeds.len()];
                    let body = mutated(body, &mut random);
                    let reply = server.post_bytes(path, "", &body);
                    let Some(reply) = reply else { panic!("no answer to {:?}", String::from_utf8_lossy(&body)) };
                    *statuses.entry(reply.status).or_default() += 1;
                    match reply.status {
                        200 => {
                            let text = String::from_utf8(reply.body.clone()).unwrap();
                            let whole = text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\"");
                            assert!(whole || reply.json().is_object(), "{text}");
                        }
                        400 | 404 => drop(error(&reply)),
                        other => panic!("{other} for {:?}: {reply:?}", String::from_utf8_lossy(&body)),
                    }
                }
                statuses
            })
        };
        let all: Vec<_> = (0..threads).map(work).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    let of = |status| statuses.iter().filter_map(|all| all.get(&status)).sum::<usize>();
    println!("{} answers of 200, {} of 400, {} of 404", of(200), of(400), of(404));
    assert!(of(200) > count / 50 && of(400) > count / 3, "{statuses:?}");
    assert_eq!(server.get("/health").unwrap().status, 200);
    server.wait_for("end of all requests", || server.metric("latten_requests_running") == 0.0);
    assert!(!server.log.lock().unwrap().contains("panicked"));
}

fn mutated(body: &Value, random: &mut SplitMix64) -> Vec<u8> {
    let mut below = |n: usize| random.next_u64() as usize % n.max(1);
    let mut body = body.clone();
    for _ in 0..1 + below(2) {
        let odd = [
            json!(null),
            json!(true),
            json!(-1),
            json!(0),
            json!(1e300),
            json!(u64::MAX),
            json!(0.1),
            json!(""),
            json!("\u{0}\u{ffff}"),
            json!("x".repeat(300)),
            json!([]),
            json!({}),
            json!([[[]]]),
            json!({ "a": 1 }),
            json!([null]),
            json!([-1, 300]),
        ];
        let value = odd[below(odd.len())].clone();
        let keys: Vec<String> = body.as_object().unwrap().keys().cloned().collect();
        let key = keys[below(keys.len())].clone();
        match below(5) {
            0 => drop(body.as_object_mut().unwrap().remove(&key)),
            1 => body[format!("{key}{}", below(10))] = value,
            2 if body[&key].is_array() => {
                let all = body[&key].as_array_mut().unwrap();
                let at = below(all.len() + 1);
                all.insert(at, value);
            }
            _ => body[key] = value,
        }
        if body.as_object().unwrap().is_empty() {
            break;
        }
    }
    let mut bytes = body.to_string().into_bytes();
    if below(3) == 0 {
        for _ in 0..1 + below(3) {
            let at = below(bytes.len());
            match below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, below(256) as u8),
                2 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
                _ if !bytes.is_empty() => drop(bytes.remove(at)),
                _ => {}
            }
        }
    }
    bytes
}
