//! A server whose model two devices compute.

use crate::client::{shared, Server};
use serde_json::json;

#[test]
fn two_devices_answer_as_one() {
    let alone = shared();
    let server = Server::start(&["--ranks", "2", "--by-context", "--no-warm-up"]);
    // Several at once, in prompts of more than a page, so that both devices have tokens of each.
    for prompt in ["ROMEO:\n", "What light through yonder window breaks? It is the east, and"] {
        let body = json!({ "prompt": [prompt, "To be"], "temperature": 0, "max_tokens": 20 });
        let text = |server: &Server| {
            let reply = server.post("/v1/completions", &body);
            assert_eq!(reply.status, 200, "{reply:?}");
            let texts = [0, 1].map(|choice| reply.json()["choices"][choice]["text"].as_str().unwrap().to_string());
            assert!(texts.iter().all(|text| text.len() >= 20), "{texts:?}");
            texts
        };
        assert_eq!(text(&server), text(&alone));
    }
    // Both end with the program.
    server.signal("TERM");
    assert!(server.end().success(), "{}", server.log.lock().unwrap());
}

#[test]
fn ranks_that_cannot_be_end_the_server_with_the_numbers() {
    let cases = [
        (&["--ranks", "3"][..], "q_heads: 8 cannot be divided among 3 ranks"),
        (&["--ranks", "2", "--by-context", "--page-size", "1"], "page_size: 1 cannot be divided among 2 ranks"),
        (
            &["--ranks", "2", "--by-context", "--window", "64"],
            "a window of 64 tokens where ranks divide sequences by context",
        ),
    ];
    for (args, why) in cases {
        let server = Server::listening(args);
        assert!(!server.end().success());
        server.wait_for("reason", || server.log.lock().unwrap().contains(why));
    }
}
