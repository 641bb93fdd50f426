//! Tokenizers, templates and chats of GGUF files, which are made here.

use crate::written::GgufWriter;
use crate::Folder;
use latten::model::{
    AnswerEnd, Chat, ChatAnswer, ChatOptions, ChatTemplate, Decoder, LoadOptions, Message, Session, SessionOptions,
    Tokenizer, WeightBytes,
};
use latten::{DType, ErrorKind};
use pollster::block_on;

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if \
                        add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// How a vocabulary of words writes a byte.
fn written(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            let before = (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)).count();
            char::from_u32(0x100 + before as u32).unwrap()
        }
    }
}

/// All bytes, a few merges, and special tokens.
fn byte_level(file: &mut GgufWriter, rule: &str) {
    let mut tokens: Vec<String> = (0..=255).map(|byte| written(byte).to_string()).collect();
    let merges = ["h e", "l l", "he ll", "hell o", "\u{120} w", "1 2", "12 3", "' s"];
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let mut kinds = vec![1; tokens.len()];
    tokens.extend(specials.map(str::to_string));
    kinds.extend([3; 3]);
    tokens.push("  two".into());
    kinds.push(4);
    file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", rule);
    file.texts("tokenizer.ggml.tokens", &tokens).counts("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &merges);
    file.count("tokenizer.ggml.bos_token_id", 264).count("tokenizer.ggml.eos_token_id", 264);
    file.text("tokenizer.chat_template", TEMPLATE);
}

const VOCAB: usize = 268;

/// A Llama of one layer with these tokens, its numbers random.
pub(crate) fn model() -> GgufWriter {
    let mut file = GgufWriter::default();
    file.text("general.architecture", "llama").count("llama.block_count", 1).count("llama.context_length", 256);
    file.count("llama.embedding_length", 32).count("llama.feed_forward_length", 32);
    file.count("llama.attention.head_count", 4).count("llama.attention.head_count_kv", 2);
    file.number("llama.attention.layer_norm_rms_epsilon", 1e-5);
    byte_level(&mut file, "smollm");
    let mut random = latten::model::SplitMix64::new(3);
    let mut matrix = |file: &mut GgufWriter, name: &str, rows: usize| {
        let values: Vec<f32> = (0..rows * 32).map(|_| random.uniform() - 0.5).collect();
        file.floats(name, &[rows, 32], &values);
    };
    matrix(&mut file, "token_embd.weight", VOCAB);
    let rows = [("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32), ("ffn_gate", 32), ("ffn_up", 32)];
    for (name, rows) in rows.into_iter().chain([("ffn_down", 32)]) {
        matrix(&mut file, &format!("blk.0.{name}.weight"), rows);
    }
    for name in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"] {
        file.floats(&format!("{name}.weight"), &[32], &[1.0; 32]);
    }
    file
}

fn tokenizer(change: impl Fn(&mut GgufWriter)) -> latten::Result<Tokenizer> {
    let mut file = GgufWriter::default();
    file.text("general.architecture", "llama");
    change(&mut file);
    let folder = Folder::new("gguf", &[]);
    let path = folder.0.join("m.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    Tokenizer::from_folder(path)
}

#[test]
fn words_of_bytes_are_merged_by_their_rule() {
    let of = |rule: &str| tokenizer(|file| byte_level(file, rule)).unwrap();
    let smollm = of("smollm");
    let ids = smollm.encode("hello w123<|im_end|>").unwrap();
    assert_eq!(ids, [259, 260, u32::from(b'1'), u32::from(b'2'), u32::from(b'3'), 266]);
    assert_eq!(smollm.decode(&ids), "hello w123");
    assert_eq!(smollm.end_tokens(), [264, 266]);
    assert_eq!((smollm.token_bytes(260), smollm.token_bytes(266)), (b" w".to_vec(), Vec::new()));
    for text in ["na\u{ef}ve \u{20ac} \u{1f600}\r\n\t x's  two", "", " \n ", "\u{0}\u{ff}"] {
        for rule in [
            "default",
            "gpt-2",
            "llama-bpe",
            "qwen2",
            "smollm",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "tekken",
            "gpt-4o",
        ] {
            let ids = of(rule).encode_plain(text).unwrap();
            assert_eq!(of(rule).decode(&ids), text, "{rule}");
        }
    }
    // Digits: each by itself, three at a time, or all of them.
    let ids = |rule: &str| of(rule).encode_plain("123").unwrap();
    assert_eq!((ids("qwen2").len(), ids("gpt-2"), ids("llama-bpe")), (3, vec![262], vec![262]));
    assert_eq!(ids("gpt-4o"), [262]);
    // A user's token is text, and found before words are cut.
    assert_eq!(smollm.encode("a  two").unwrap(), [97, 267]);
    assert_eq!(smollm.decode(&[267]), "  two");
}

#[test]
fn a_text_begins_with_the_first_token_where_the_file_says_so() {
    let of = |rule: &str, add: Option<bool>| {
        tokenizer(|file| {
            byte_level(file, rule);
            add.iter().for_each(|add| file.flag("tokenizer.ggml.add_bos_token", *add).end());
        })
        .unwrap()
    };
    assert_eq!(of("smollm", None).encode("a").unwrap(), [97]);
    assert_eq!(of("smollm", Some(true)).encode("a").unwrap(), [264, 97]);
    assert_eq!(of("llama-bpe", None).encode("a").unwrap(), [264, 97]);
    assert_eq!(of("llama-bpe", Some(false)).encode("a").unwrap(), [97]);
    let begun = of("llama-bpe", None);
    // Once, and not in a text that goes on.
    assert_eq!(begun.encode("<|endoftext|>a").unwrap(), [264, 97]);
    assert_eq!(begun.encode_after(&[264, 97], "b").unwrap(), [98]);
    let ends = tokenizer(|file| {
        byte_level(file, "smollm");
        file.without("tokenizer.ggml.eos_token_id").counts("tokenizer.ggml.eos_token_ids", &[5, 6]).end();
        file.count("tokenizer.ggml.eot_token_id", 7).end();
    });
    assert_eq!(ends.unwrap().end_tokens(), [7, 5, 6, 266, 264]);
}

/// A vocabulary as SentencePiece's files have it.
fn pieces(file: &mut GgufWriter) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_string).into();
    let (mut kinds, mut scores) = (vec![2, 3, 3], vec![0.0; 3]);
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([6; 256]);
    scores.extend([0.0; 256]);
    for (i, piece) in ["\u{2581}", "a", "b", "c", "ab", "bc", "\u{2581}ab", "abc"].iter().enumerate() {
        tokens.push((*piece).into());
        kinds.push(1);
        scores.push(if piece.chars().count() > 1 { -(i as f32) } else { -100.0 });
    }
    file.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", &tokens);
    file.counts("tokenizer.ggml.token_type", &kinds).numbers("tokenizer.ggml.scores", &scores);
    file.count("tokenizer.ggml.bos_token_id", 1).count("tokenizer.ggml.eos_token_id", 2);
    file.count("tokenizer.ggml.unknown_token_id", 0);
}

#[test]
fn pieces_are_merged_by_their_scores() {
    let made = tokenizer(pieces).unwrap();
    // 259 is the space; "ab" has the best score, then "bc", the space with "ab", and "abc".
    assert_eq!(made.encode("ab").unwrap(), [1, 265]);
    assert_eq!(made.encode("abc").unwrap(), [1, 265, 262]);
    assert_eq!(made.encode("bc").unwrap(), [1, 259, 264]);
    assert_eq!(made.encode("\u{20ac}").unwrap(), [1, 259, 3 + 0xe2, 3 + 0x82, 3 + 0xac]);
    for text in ["abc ab", " a", "\u{20ac}b  c", "x\n"] {
        assert_eq!(made.decode(&made.encode(text).unwrap()), text);
    }
    assert_eq!((made.end_tokens(), made.token_bytes(265)), (&[2][..], b" ab".to_vec()));
    assert_eq!(made.encode_after(&[1, 265], "c").unwrap(), [262]);
    let plain = tokenizer(|file| {
        pieces(file);
        file.flag("tokenizer.ggml.add_space_prefix", false).flag("tokenizer.ggml.add_bos_token", false).end();
    });
    assert_eq!(plain.unwrap().encode("ab").unwrap(), [263]);
}

#[test]
fn tokenizers_that_are_not_read_are_named() {
    let refused = |change: &dyn Fn(&mut GgufWriter), words: &[&str]| {
        let error = tokenizer(|file| {
            byte_level(file, "smollm");
            change(file);
        });
        let error = error.err().unwrap_or_else(|| panic!("{words:?} is read"));
        let text = error.to_string();
        assert!(matches!(error.kind(), ErrorKind::Config { .. }), "{text}");
        assert!(text.contains("m.gguf") && words.iter().all(|word| text.contains(word)), "{text}, not {words:?}");
    };
    let set =
        |key: &'static str, value: &'static str| move |file: &mut GgufWriter| file.without(key).text(key, value).end();
    refused(&set("tokenizer.ggml.model", "t5"), &["tokenizer.ggml.model = \"t5\"", "\"llama\""]);
    refused(&set("tokenizer.ggml.pre", "falcon"), &["tokenizer.ggml.pre = \"falcon\"", "\"smollm\""]);
    refused(&|file| file.without("tokenizer.ggml.tokens").end(), &["tokenizer.ggml.tokens is missing"]);
    refused(&|file| file.without("tokenizer.ggml.merges").end(), &["tokenizer.ggml.merges is missing"]);
    refused(
        &|file| file.without("tokenizer.ggml.merges").texts("tokenizer.ggml.merges", &["a zz"]).end(),
        &["not a tokenizer"],
    );
    refused(
        &|file| file.without("tokenizer.ggml.token_type").counts("tokenizer.ggml.token_type", &[1]).end(),
        &["268 tokens"],
    );
    refused(
        &|file| file.without("tokenizer.ggml.tokens").texts("tokenizer.ggml.tokens", &[[0xff]]).end(),
        &["no UTF-8"],
    );
    refused(&|file| file.without("tokenizer.ggml.tokens").counts("tokenizer.ggml.tokens", &[1]).end(), &["no strings"]);
    refused(&set("tokenizer.ggml.eos_token_id", "x"), &["eos_token_id = \"x\"", "whole number"]);
    refused(
        &|file| file.without("tokenizer.ggml.add_bos_token").count("tokenizer.ggml.add_bos_token", 1).end(),
        &["neither true"],
    );
}

#[test]
fn templates_come_from_wherever_they_stand() {
    let messages = [Message::system("s"), Message::user("u")];
    let want = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n";
    let folder = Folder::new("templates", &[]);
    let at = |name: &str| folder.0.join(name);
    assert!(ChatTemplate::from_folder(&folder.0).unwrap().is_none());
    let rendered = || ChatTemplate::from_folder(&folder.0).unwrap().unwrap().render(&messages, true).unwrap();
    let write = |keys: serde_json::Value| std::fs::write(at("tokenizer_config.json"), keys.to_string()).unwrap();
    write(serde_json::json!({ "chat_template": TEMPLATE }));
    assert_eq!(rendered(), want);
    let named =
        serde_json::json!([{ "name": "tool_use", "template": "t" }, { "name": "default", "template": TEMPLATE }]);
    write(serde_json::json!({ "chat_template": named }));
    assert_eq!(rendered(), want);
    write(serde_json::json!({ "chat_template": 3 }));
    assert!(ChatTemplate::from_folder(&folder.0).unwrap_err().to_string().contains("chat_template: neither"));
    write(serde_json::json!({ "bos_token": { "content": "<s>" }, "eos_token": "</s>" }));
    std::fs::write(at("chat_template.jinja"), "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}").unwrap();
    assert_eq!(rendered(), "<s>s</s>");
    std::fs::write(at("chat_template.jinja"), "{% if %}").unwrap();
    assert!(ChatTemplate::from_folder(&folder.0)
        .unwrap_err()
        .to_string()
        .contains("chat_template.jinja: not a template"));
    let path = at("m.gguf");
    std::fs::write(&path, model().bytes()).unwrap();
    assert_eq!(ChatTemplate::from_folder(&path).unwrap().unwrap().render(&messages, true).unwrap(), want);
}

fn chat(cache_tokens: usize) -> Chat {
    let (gpu, bytes) = (crate::common::gpu(), model().bytes());
    let options = LoadOptions { dtype: DType::F32, ..Default::default() };
    let decoder = Decoder::from_gguf_bytes(gpu, WeightBytes { name: "m.gguf", bytes: &bytes }, options).unwrap();
    let options = SessionOptions { cache_tokens, page_size: 8, kv_dtype: DType::F32, ..Default::default() };
    let words = tokenizer(|file| byte_level(file, "smollm")).unwrap();
    Chat::new(Session::new(&decoder, options).unwrap(), words, Some(ChatTemplate::new(TEMPLATE).unwrap()))
}

/// All of it.
fn text(answer: &mut ChatAnswer<'_>) -> String {
    std::iter::from_fn(|| block_on(answer.next()).unwrap()).collect()
}

#[test]
fn a_chat_goes_on_from_what_it_has_computed() {
    let (mut chat, options) = (chat(256), ChatOptions { max_new_tokens: 6, ..Default::default() });
    let mut messages = vec![Message::user("hello")];
    let mut answer = chat.answer(&messages, options).unwrap();
    let first = text(&mut answer);
    let facts = answer.facts();
    assert!(facts.reused_tokens == 0 && (facts.tokens == 6 || answer.end() == Some(AnswerEnd::Ended)), "{facts:?}");
    assert_eq!(block_on(answer.next()).unwrap(), None);
    drop(answer);
    // The same again: all but the prompt's last token is there.
    let mut answer = chat.answer(&messages, options).unwrap();
    assert_eq!(answer.facts().reused_tokens, answer.facts().prompt_tokens - 1);
    assert_eq!(text(&mut answer), first);
    drop(answer);
    messages.extend([Message::assistant(first), Message::user("w123")]);
    let mut answer = chat.answer(&messages, options).unwrap();
    let reused = answer.facts().reused_tokens;
    assert!(reused >= facts.prompt_tokens, "{reused} of {facts:?}");
    let second = text(&mut answer);
    drop(answer);
    // Another chat, which has computed nothing, says the same.
    let mut other = self::chat(256);
    let mut answer = other.answer(&messages, options).unwrap();
    assert_eq!((answer.facts().reused_tokens, text(&mut answer)), (0, second));
    drop(answer);
    // Dropped before its end, and forgotten.
    block_on(chat.answer(&[Message::user("w")], options).unwrap().next()).unwrap();
    let again = chat.answer(&messages, options).unwrap().facts();
    assert!(again.reused_tokens < reused && again.prompt_tokens > reused, "{again:?}");
    chat.clear().unwrap();
    assert_eq!(chat.answer(&messages, options).unwrap().facts().reused_tokens, 0);
}

#[test]
fn what_a_chat_has_no_room_for_is_refused_or_ends() {
    let mut chat = chat(32);
    let refused = |made: latten::Result<ChatAnswer<'_>>, word: &str| {
        let error = made.err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    };
    let options = ChatOptions { max_new_tokens: 100, ..Default::default() };
    refused(chat.answer(&[Message::user("x".repeat(40))], options), "wanted 1 to 32");
    refused(chat.complete("", options), "0 tokens");
    let mut answer = chat.complete("hello", options).unwrap();
    text(&mut answer);
    let (facts, end) = (answer.facts(), answer.end());
    drop(answer);
    assert!(end == Some(AnswerEnd::Ended) || (end == Some(AnswerEnd::Full) && facts.tokens == 32), "{facts:?} {end:?}");
    let mut answer = chat.complete("hello", ChatOptions { max_new_tokens: 0, ..options }).unwrap();
    assert_eq!((text(&mut answer), answer.end()), (String::new(), Some(AnswerEnd::Length)));
    drop(answer);
    let session = Session::new(chat.session().decoder(), SessionOptions::default()).unwrap();
    let mut bare = Chat::new(session, tokenizer(|file| byte_level(file, "smollm")).unwrap(), None);
    assert!(!bare.has_template());
    refused(bare.answer(&[Message::user("x")], options), "no chat template");
}

/// The example, as a program.
#[test]
fn the_chat_program_answers_once_or_line_by_line() {
    use crate::chat::{run, Args, Screen};
    use clap::Parser;
    let folder = Folder::new("chat", &[]);
    let (path, saved) = (folder.0.join("m.gguf"), folder.0.join("saved.json"));
    std::fs::write(&path, model().bytes()).unwrap();
    let (path, saved) = (path.to_str().unwrap(), saved.to_str().unwrap());
    let program = |words: &[&str], mut input: &[u8]| {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let args = Args::try_parse_from([&["chat"], words].concat()).unwrap();
        let done = block_on(run(args, &mut input, &mut Screen { out: &mut out, notes: &mut notes }));
        [out, notes].map(|bytes| String::from_utf8(bytes).unwrap()).into_iter().chain(done.err()).collect::<Vec<_>>()
    };
    let common = ["--temperature", "0", "--tokens", "5", "--weights", "f32", "--context", "200"];
    let once = program(&[&[path, "--prompt", "hello"], &common[..]].concat(), b"");
    assert!(once.len() == 2 && once[0].ends_with('\n') && once[1].is_empty(), "{once:?}");
    let lines = format!("hello\n/save {saved}\n/reset\n/load {saved}\n/help\n/what\n/save\nw\n/exit\nnot read\n");
    let talked = program(&[&[path], &common[..]].concat(), lines.as_bytes());
    assert!(talked.len() == 2 && talked[0].starts_with(&once[0]), "{talked:?}");
    for words in [
        "1 layers of 32",
        "2 messages saved",
        "forgotten",
        "2 messages, the next",
        "/reset ",
        "/what is not known",
        "wants the name",
        "of them cached",
        "MB]",
    ] {
        assert!(talked[1].contains(words), "{words}: {}", talked[1]);
    }
    let messages: Vec<Message> = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
    assert_eq!(messages, [Message::user("hello"), Message::assistant(once[0].trim_end_matches('\n'))]);
    let raw = program(&[&[path, "--raw", "--prompt", "hello"], &common[..]].concat(), b"");
    assert!(raw.len() == 2 && raw[0] != once[0], "{raw:?}");
    let none = program(&["--prompt", "x"], b"");
    assert!(none[2].contains("no model: give a GGUF file"), "{none:?}");
}
