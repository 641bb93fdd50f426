//! Ctrl-C in the chat program, in a pseudo-terminal: `script` of util-linux makes one, and runs this very test binary in it.

use crate::chat::{handle_ctrl_c, run, Args, Screen};
use crate::Folder;
use clap::Parser;
use pollster::block_on;
use std::io::{BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver};
use std::time::{Duration, Instant};

/// Names the model, in the pseudo-terminal.
const MODEL: &str = "LATTEN_TEST_INTERRUPTED";

/// What the other test runs in the pseudo-terminal.
#[test]
#[ignore = "long: waits for a user; a test runs it"]
fn the_program_in_the_terminal() {
    let Ok(model) = std::env::var(MODEL) else { return };
    handle_ctrl_c();
    let words = ["chat", &model, "--raw", "--temperature", "0", "--tokens", "1000000", "--weights", "f32"];
    let args = Args::try_parse_from(words.into_iter().chain(["--context", "30000"])).unwrap();
    let mut screen = Screen { out: &mut std::io::stdout(), notes: &mut std::io::stderr() };
    block_on(run(args, &mut BufReader::new(std::io::stdin()), &mut screen)).unwrap();
    println!("left by itself");
}

/// The program, and what the terminal shows.
struct Terminal {
    child: Child,
    shown: Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    fn open(model: &str) -> Option<Terminal> {
        let this = std::env::current_exe().unwrap();
        // Without `exec` a shell such as dash stays, is interrupted with the program, and ends with 130 whatever the program does.
        let program = format!("exec '{}' --ignored --nocapture the_program_in_the_terminal", this.display());
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-f", "-c", &program, "/dev/null"]).env(MODEL, model);
        let child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.ok()?;
        let (send, shown) = channel();
        let mut out = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut part) {
                if send.send(part[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Some(Terminal { child, shown, text: String::new() })
    }

    fn say(&mut self, bytes: &[u8]) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(bytes).and_then(|()| input.flush()).unwrap();
    }

    /// Waits until the terminal has shown these words `count` times, and so many bytes behind the last of them.
    fn wait_for(&mut self, words: &str, count: usize, behind: usize) {
        let end = Instant::now() + Duration::from_secs(240);
        let there = |text: &str| {
            let nth = text.match_indices(words).nth(count - 1);
            nth.is_some_and(|(at, _)| text.len() >= at + words.len() + behind)
        };
        while !there(&self.text) {
            let left = end.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(part) => self.text += &String::from_utf8_lossy(&part),
                Err(e) => panic!("{e}: not {count} times {words:?} and {behind} bytes in {:?}", self.text),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_program() {
    let folder = Folder::new("interrupted", &[]);
    let path = folder.0.join("m.gguf");
    // No token ends its answers, so they have no end but that of the cache, which is minutes away: none by a key, and none by
    // its name, which is asked of control tokens alone.
    let mut model = crate::gguf::model();
    model.without("tokenizer.ggml.eos_token_id").without("tokenizer.ggml.token_type");
    model.without("llama.context_length").count("llama.context_length", 1 << 16);
    std::fs::write(&path, model.bytes()).unwrap();
    let Some(mut terminal) = Terminal::open(path.to_str().unwrap()) else {
        println!("skipped: util-linux's script is not there");
        return;
    };
    terminal.wait_for("> ", 1, 0);
    for answers in 1..3 {
        terminal.say(b"hello\n");
        terminal.wait_for("hello\r\n", answers, 20);
        terminal.say(b"\x03");
        terminal.wait_for(", stopped; prompt", answers, 0);
        terminal.wait_for("MB]\r\n> ", answers, 0);
    }
    // It is still there.
    terminal.say(b"/what\n");
    terminal.wait_for("/what is not known", 1, 0);
    terminal.say(b"/exit\n");
    terminal.wait_for("left by itself", 1, 0);
    terminal.wait_for("1 passed", 1, 0);
    // `Child::wait` closes the input first: script would then write an end of file to a program that is just ending.
    let input = terminal.child.stdin.take();
    let ended = terminal.child.wait().unwrap();
    drop(input);
    assert!(ended.success(), "{ended}: {}", terminal.text);
}
