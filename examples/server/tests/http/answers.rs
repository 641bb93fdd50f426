//! What answers are, and that they are the library's.

use crate::client::{shared, Server};
use latten::model::{generate, Decoder, GenerateOptions, Session, SessionOptions};
use latten::{DType, Gpu, SplitPolicy};
use pollster::block_on;
use serde_json::{json, Value};
use std::ops::ControlFlow;
use std::path::Path;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn completion(prompt: &str, max_tokens: usize) -> Value {
    json!({ "prompt": prompt, "max_tokens": max_tokens, "temperature": 0 })
}

fn text(reply: &Value) -> String {
    reply["choices"][0]["text"].as_str().unwrap().into()
}

/// What `generate` makes, in a session of its own.
fn alone(decoder: &Decoder, prompt: &str, max_new_tokens: usize) -> String {
    let options = SessionOptions { cache_tokens: 1024, page_size: 16, ..SessionOptions::default() };
    let mut session = Session::new(decoder, options).unwrap().with_policy(SplitPolicy::FixedTokens(64));
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    let prompt: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let tokens = block_on(generate(&mut session, &prompt, options, |_| ControlFlow::Continue(()))).unwrap();
    String::from_utf8_lossy(&tokens.iter().map(|token| *token as u8).collect::<Vec<u8>>()).into_owned()
}

/// Twelve at once, in streams and whole, some with long prompts: greedy answers are those of each alone.
#[test]
fn greedy_answers_under_load_are_those_of_the_library_alone() {
    let server = shared();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/gla");
    let gpu = block_on(Gpu::new()).unwrap();
    let decoder = Decoder::load(&gpu, folder, DType::F16).unwrap();
    let long = "It was the best of times, it was the worst of times. ".repeat(9);
    let prompts = ["Once upon a time", "The ship", "a", "He said that", &long, &long[..300]];
    let got: Vec<(usize, String)> = std::thread::scope(|scope| {
        let ask = |i: usize| {
            let server = &server;
            let prompt = prompts[i % prompts.len()];
            let mut body = completion(prompt, 30 + i);
            scope.spawn(move || {
                if i.is_multiple_of(2) {
                    return (i, text(&server.post(TEXT, &body).json()));
                }
                body["stream"] = true.into();
                let events = server.open(TEXT, &body).rest();
                assert_eq!(events.last().unwrap(), "[DONE]");
                let parts = events[..events.len() - 1].iter().map(|event| text(&serde_json::from_str(event).unwrap()));
                (i, parts.collect())
            })
        };
        let all: Vec<_> = (0..12).map(ask).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (i, got) in got {
        assert_eq!(got, alone(&decoder, prompts[i % prompts.len()], 30 + i), "request {i}");
    }
}

#[test]
fn a_chat_is_answered_whole_and_in_events() {
    let server = shared();
    let mut body = json!({
        "model": "gla", "temperature": 0, "max_completion_tokens": 20, "user": "somebody", "n": 1,
        "messages": [
            {"role": "developer", "content": "Tell a story."},
            {"role": "user", "content": [{"type": "text", "text": "Once "}, {"type": "text", "text": "upon"}]},
        ],
    });
    let whole = server.post(CHAT, &body);
    assert_eq!(whole.status, 200, "{whole:?}");
    assert_eq!(whole.header("content-type"), Some("application/json"));
    let whole = whole.json();
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!("gla")));
    assert!(
        whole["id"].as_str().unwrap().starts_with("chatcmpl-") && whole["created"].as_u64().unwrap() > 1_700_000_000
    );
    let choice = &whole["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(choice["message"]["role"], "assistant");
    let prompt_tokens = "Tell a story.\nOnce upon\n".len();
    let usage = json!({ "prompt_tokens": prompt_tokens, "completion_tokens": 20, "total_tokens": prompt_tokens + 20 });
    assert_eq!(whole["usage"], usage);

    for include_usage in [false, true] {
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": include_usage });
        let reply = server.post(CHAT, &body);
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        let events = reply.events();
        let (done, events) = events.split_last().unwrap();
        assert_eq!(done, "[DONE]");
        let mut events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        if include_usage {
            let last = events.pop().unwrap();
            assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &usage));
        }
        let first = &events[0]["choices"][0];
        assert_eq!(first["delta"], json!({ "role": "assistant", "content": "" }));
        for event in &events {
            for key in ["id", "created", "model", "object", "system_fingerprint"] {
                assert_eq!(event[key], events[0][key], "{key}");
            }
            assert_eq!(event["object"], "chat.completion.chunk");
            // Null where it was asked for, and else not there.
            assert_eq!(event.get("usage"), include_usage.then_some(&Value::Null));
        }
        let content = |event: &Value| event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_string();
        let said: String = events.iter().map(content).collect();
        assert_eq!(choice["message"]["content"], said);
        let reasons: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
        let (last, before) = reasons.split_last().unwrap();
        assert!(*last == "length" && before.iter().all(|reason| reason.is_null()), "{reasons:?}");
    }
}

#[test]
fn each_event_tells_of_the_tokens_where_that_is_asked_for() {
    let mut body = completion("Once", 5);
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true, "continuous_usage_stats": true });
    let events = shared().post(TEXT, &body).events();
    let events = events[..events.len() - 1].iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
    let counts: Vec<u64> = events.map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 2, 3, 4, 5, 5]);
}

#[test]
fn choices_prompts_seeds_and_stops() {
    let server = shared();
    // Several prompts, several answers each: by prompt, then by answer.
    let prompt = "Once upon a time there was a little ";
    let body = json!({ "prompt": [prompt, "The"], "n": 3, "max_tokens": 12, "seed": 7, "temperature": 1.0 });
    let texts = |reply: Value| -> Vec<String> {
        let choices = reply["choices"].as_array().unwrap().clone();
        assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i));
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_string()).collect()
    };
    let first = server.post(TEXT, &body).json();
    assert_eq!(first["usage"]["completion_tokens"], 6 * 12);
    let (first, again) = (texts(first), texts(server.post(TEXT, &body).json()));
    assert_eq!(first, again);
    assert!(first[0] != first[1] && first[1] != first[2] && first[3] != first[4], "{first:?}");
    // The second answer of a seed is the first of the next.
    let next = json!({ "prompt": prompt, "max_tokens": 12, "seed": 8, "temperature": 1.0 });
    assert_eq!(texts(server.post(TEXT, &next).json()), [first[1].clone()]);
    let random = json!({ "prompt": prompt, "max_tokens": 24, "temperature": 1.0 });
    assert_ne!(texts(server.post(TEXT, &random).json()), texts(server.post(TEXT, &random).json()));

    // Tokens as a prompt, and what ends a text.
    let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let greedy = text(&server.post(TEXT, &completion(prompt, 40)).json());
    let of_tokens = json!({ "prompt": tokens, "max_tokens": 40, "temperature": 0 });
    assert_eq!(text(&server.post(TEXT, &of_tokens).json()), greedy);
    let stop = &greedy[10..13];
    let before = &greedy[..greedy.find(stop).unwrap()];
    for stops in [json!(stop), json!(["\u{1f600}", stop])] {
        let mut body = completion(prompt, 40);
        body["stop"] = stops;
        let reply = server.post(TEXT, &body).json();
        assert_eq!((text(&reply).as_str(), &reply["choices"][0]["finish_reason"]), (before, &json!("stop")));
    }
    let mut body = completion(prompt, 40);
    body["stop_token_ids"] = json!([greedy.as_bytes()[3]]);
    let reply = server.post(TEXT, &body).json();
    let at = greedy.bytes().position(|byte| byte == greedy.as_bytes()[3]).unwrap();
    assert_eq!((text(&reply).as_str(), &reply["choices"][0]["finish_reason"]), (&greedy[..at], &json!("stop")));
    // Without a number a text has 16 tokens.
    assert_eq!(text(&server.post(TEXT, &json!({ "prompt": prompt, "temperature": 0 })).json()), greedy[..16]);
}

#[test]
fn tokens_and_texts() {
    let server = shared();
    let tokens = server.post("/tokenize", &json!({ "prompt": "aé" })).json();
    assert_eq!(tokens, json!({ "count": 3, "max_model_len": 1024, "tokens": [97, 195, 169] }));
    let chat = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    assert_eq!(server.post("/tokenize", &chat).json()["tokens"], json!([104, 105, 10]));
    let text = server.post("/detokenize", &json!({ "tokens": [97, 195, 169] })).json();
    assert_eq!(text, json!({ "prompt": "aé" }));
}

#[test]
fn what_is_served_and_how_it_is_described() {
    let server = shared();
    let models = server.get("/v1/models").unwrap().json();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["max_model_len"]), (&json!("gla"), &json!(1024)));
    assert_eq!(server.get("/health").unwrap().json(), json!({ "status": "ok", "model": "gla" }));
    let openapi = server.get("/openapi.json").unwrap().json();
    for path in ["/v1/models", CHAT, TEXT, "/health", "/metrics", "/tokenize", "/detokenize"] {
        assert!(openapi["paths"][path].is_object(), "{path}");
    }
    let page = server.get("/").unwrap();
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let page = String::from_utf8(page.body).unwrap();
    assert!(page.contains("<title>latten</title>") && !page.contains("http://www.w3.org/1999"), "{page}");
    // Nothing is fetched from elsewhere: the one address in it is a name of SVG's.
    assert_eq!(page.matches("://").count(), page.matches("http://www.w3.org/2000/svg").count());

    assert_eq!(server.metric("latten_requests_total{outcome=\"gone\"}"), 0.0);
    server.post(TEXT, &completion("a", 5));
    for (name, least) in [
        ("latten_generated_tokens_total", 5.0),
        ("latten_time_to_first_token_seconds_count", 1.0),
        ("latten_inter_token_seconds_count", 4.0),
        ("latten_cache_pages", 64.0),
        ("latten_steps_total", 5.0),
    ] {
        assert!(server.metric(name) >= least, "{name}");
    }
}

/// Prompts that begin alike are computed once for one key, and again for another.
#[test]
fn prompts_are_shared_within_a_key() {
    let server = Server::start(&["--allow-origin", "https://a.example"]);
    let body = completion(&"A story about a fox. ".repeat(8), 2).to_string();
    let hits = |key: &str| {
        let before = server.metric("latten_cache_hits_total");
        let headers = format!("authorization: Bearer {key}\r\n");
        assert_eq!(server.post_bytes(TEXT, &headers, body.as_bytes()).unwrap().status, 200);
        // The thread takes down what it counts after it has answered.
        std::thread::sleep(std::time::Duration::from_millis(50));
        server.metric("latten_cache_hits_total") - before
    };
    assert_eq!([hits("one"), hits("two")], [0.0, 0.0]);
    assert_eq!([hits("one"), hits("two")], [10.0, 10.0]);
    // Pages of one origin may ask, those of others may not.
    let origin = |origin: &str| {
        let ask = format!("OPTIONS {CHAT} HTTP/1.1\r\nhost: a\r\nconnection: close\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\r\n");
        server.raw(ask.as_bytes()).unwrap().header("access-control-allow-origin").map(str::to_string)
    };
    assert_eq!(origin("https://a.example").as_deref(), Some("https://a.example"));
    assert_eq!(origin("https://b.example"), None);
}

/// By the library's own log-probabilities: of the tokens that it draws alone.
#[test]
fn log_probabilities_are_the_librarys() {
    let server = shared();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/gla");
    let decoder = Decoder::load(&block_on(Gpu::new()).unwrap(), folder, DType::F16).unwrap();
    let prompt = "Once upon a time";
    let (mut want, mut tokens) = (Vec::new(), prompt.bytes().map(u32::from).collect::<Vec<_>>());
    for _ in 0..6 {
        let options = SessionOptions { cache_tokens: 128, page_size: 16, ..SessionOptions::default() };
        let mut session = Session::new(&decoder, options).unwrap();
        let id = session.insert();
        let logits = block_on(session.logits(&[(id, &tokens)])).unwrap().remove(0);
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let mut likely: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(token, logit)| (token as u32, f64::from(*logit) - sum.ln())).collect();
        likely.sort_by(|a, b| b.1.total_cmp(&a.1));
        tokens.push(likely[0].0);
        want.push(likely[..3].to_vec());
    }
    let mut body = completion(prompt, 6);
    body["logprobs"] = 3.into();
    let near = |got: &Value, want: f64| assert!((got.as_f64().unwrap() - want).abs() < 0.02, "{got}, wanted {want}");
    let name = |token: u32| String::from_utf8_lossy(&[token as u8]).into_owned();
    let whole = server.post(TEXT, &body).json()["choices"][0]["logprobs"].clone();
    for (i, want) in want.iter().enumerate() {
        assert_eq!((&whole["tokens"][i], &whole["text_offset"][i]), (&json!(name(want[0].0)), &json!(i)));
        near(&whole["token_logprobs"][i], want[0].1);
        assert_eq!(whole["top_logprobs"][i].as_object().unwrap().len(), 3);
        want.iter().for_each(|(token, value)| near(&whole["top_logprobs"][i][name(*token)], *value));
    }
    body["stream"] = true.into();
    let events = server.post(TEXT, &body).events();
    let events: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let told = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["token_logprobs"][0].as_f64());
    let wanted = whole["token_logprobs"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap());
    assert!(told.zip(wanted).filter(|(told, wanted)| (told - wanted).abs() < 0.02).count() == 6, "{events:?}");

    let chat = json!({ "messages": [{ "role": "user", "content": prompt }], "max_tokens": 4, "temperature": 0,
        "logprobs": true, "top_logprobs": 2 });
    let content = server.post(CHAT, &chat).json()["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(content.as_array().unwrap().len(), 4);
    for token in content.as_array().unwrap() {
        assert_eq!(
            (&token["top_logprobs"][0]["token"], &token["top_logprobs"][0]["logprob"]),
            (&token["token"], &token["logprob"])
        );
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn what_an_answer_may_be() {
    let server = shared();
    let ask = |format: Value, more: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "Once upon" }], "max_tokens": 200, "seed": 3,
            "response_format": format });
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        let reply = server.post(CHAT, &body);
        assert_eq!(reply.status, 200, "{body}: {reply:?}");
        let choice = reply.json()["choices"][0].clone();
        (choice["message"]["content"].as_str().unwrap().to_string(), choice["finish_reason"].clone())
    };
    let schema = json!({ "type": "object", "additionalProperties": false, "required": ["mood", "age"],
        "properties": { "mood": { "enum": ["glad", "sad"] }, "age": { "type": "integer", "minimum": 1, "maximum": 99 } } });
    for seed in 0..3 {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "a", "strict": true, "schema": schema } });
        let (text, end) = ask(format, json!({ "seed": seed }));
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(["glad", "sad"].contains(&value["mood"].as_str().unwrap()) && end == "stop", "{text}");
        assert!((1..=99).contains(&value["age"].as_i64().unwrap()) && value.as_object().unwrap().len() == 2);
    }
    let (text, end) = ask(json!({ "type": "regex", "regex": "[0-9]{3}-[a-f]{4}" }), json!({}));
    let (digits, letters) = text.split_once('-').unwrap();
    assert!(digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    assert!(letters.len() == 4 && letters.bytes().all(|byte| (b'a'..=b'f').contains(&byte)) && end == "stop", "{text}");
    let (text, _) = ask(json!({ "type": "lark", "lark": "start: \"yes\" | \"no\"" }), json!({}));
    assert!(["yes", "no"].contains(&text.as_str()), "{text}");
    assert!(ask(json!({ "type": "json_object" }), json!({})).0.starts_with('{'));

    // Biases and penalties: a token that is as likely as can be, and one that may not come twice.
    let (text, _) =
        ask(json!({ "type": "text" }), json!({ "logit_bias": { "113": 100 }, "max_tokens": 5, "temperature": 0 }));
    assert_eq!(text, "qqqqq");
    let more = json!({ "logit_bias": { "113": 30 }, "frequency_penalty": 2, "max_tokens": 60, "temperature": 0 });
    let (text, _) = ask(json!({ "type": "text" }), more);
    assert!(text.starts_with("qqq") && text.bytes().any(|byte| byte != b'q'), "{text}");
    let (text, _) = ask(json!({ "type": "text" }), json!({ "top_k": 1, "max_tokens": 20 }));
    assert_eq!(text, ask(json!({ "type": "text" }), json!({ "temperature": 0, "max_tokens": 20 })).0);
    assert_eq!(text, ask(json!({ "type": "text" }), json!({ "min_p": 1, "max_tokens": 20, "top_k": -1 })).0);
}
