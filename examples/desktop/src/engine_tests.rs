use super::{Answer, Command, Engine, Event, Settings};
use crate::device::gpu_options;
use latten::Gpu;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models").join(name)
}

struct Run {
    engine: Engine,
    woken: Arc<AtomicUsize>,
}

impl Run {
    fn new(settings: Settings) -> Self {
        let gpu = pollster::block_on(Gpu::with_options(gpu_options())).unwrap();
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let wake = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        Run { engine: Engine::start(gpu, settings, wake), woken }
    }

    /// All events up to the last one of a command.
    fn ask(&self, command: Command) -> Vec<Event> {
        self.engine.ask(command);
        self.rest(|_| {})
    }

    fn rest(&self, mut each: impl FnMut(&Event)) -> Vec<Event> {
        let mut all = Vec::new();
        loop {
            let event = self.engine.events.recv_timeout(Duration::from_secs(120)).unwrap();
            each(&event);
            all.push(event);
            if let Some(Event::Loaded(_) | Event::Done(_) | Event::Failed(_) | Event::Forgotten) = all.last() {
                return all;
            }
        }
    }
}

fn say(text: &str) -> Command {
    Command::Say { text: text.into(), temperature: 0.0 }
}

fn settings() -> Settings {
    Settings { budget: Duration::from_millis(6), window: None, max_tokens: 12 }
}

fn text(events: &[Event]) -> String {
    events
        .iter()
        .filter_map(|event| if let Event::Text { text, .. } = event { Some(text.as_str()) } else { None })
        .collect()
}

fn answer(events: &[Event]) -> Answer {
    match events.last() {
        Some(Event::Done(answer)) => answer.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_text_goes_on_and_only_what_is_new_is_read() {
    let run = Run::new(settings());
    let Some(Event::Loaded(facts)) = run.ask(Command::Load(folder("gla"))).pop() else { panic!("not loaded") };
    assert_eq!((facts.variant, facts.chats), ("gla", false));
    let prompt = "ROMEO:\nBut soft, what light through yonder";
    let first = run.ask(say(prompt));
    assert_eq!((answer(&first).prompt, answer(&first).tokens), (prompt.len(), 12));
    assert_eq!(text(&first).len(), 12);
    let reads: Vec<_> = first.iter().filter(|event| matches!(event, Event::Read { .. })).collect();
    assert!(reads.len() > 1, "the prompt is read in several steps: {reads:?}");
    let Some(Event::Text { cached, cached_bytes, .. }) =
        first.iter().rfind(|event| matches!(event, Event::Text { .. }))
    else {
        panic!("no text")
    };
    assert!(*cached == prompt.len() + 11 && *cached_bytes >= (cached * facts.token_bytes) as u64);
    // The last token of the answer is not in the cache yet.
    let second = run.ask(say(" window?"));
    assert_eq!(answer(&second).prompt, 1 + " window?".len());
    // The same text, read as a whole, goes on in the same way.
    assert!(matches!(run.ask(Command::Forget)[..], [Event::Forgotten]));
    let whole = run.ask(say(&format!("{prompt}{} window?", text(&first))));
    assert_eq!(text(&whole), text(&second));
    assert!(run.woken.load(Ordering::Relaxed) > 30);
}

#[test]
fn stop_ends_reading_and_writing_and_the_engine_goes_on() {
    let run = Run::new(Settings { max_tokens: 900, ..settings() });
    run.ask(Command::Load(folder("gqa")));
    run.engine.ask(say(&"O ".repeat(100)));
    let read = run.rest(|event| {
        if matches!(event, Event::Read { .. }) {
            run.engine.stop();
        }
    });
    let stopped = answer(&read);
    assert!(stopped.stopped && stopped.tokens == 0, "{stopped:?}");
    run.engine.ask(say("ROMEO:"));
    let mut pieces = 0;
    let written = run.rest(|event| {
        pieces += usize::from(matches!(event, Event::Text { .. }));
        if pieces == 5 {
            run.engine.stop();
        }
    });
    let stopped = answer(&written);
    assert!(stopped.stopped && (5..900).contains(&stopped.tokens), "{stopped:?}");
}

#[test]
fn a_window_reads_more_than_the_model_has_positions() {
    let run = Run::new(Settings { window: Some(128), max_tokens: 3, ..settings() });
    run.ask(Command::Load(folder("mla")));
    let long = answer(&run.ask(Command::Read(1500)));
    assert_eq!((long.prompt, long.tokens), (1500, 3));
}

#[test]
fn what_goes_wrong_is_told_and_changes_nothing() {
    let run = Run::new(settings());
    let failed = |events: Vec<Event>| match events.last() {
        Some(Event::Failed(why)) => why.clone(),
        other => panic!("{other:?}"),
    };
    assert!(failed(run.ask(say("x"))).contains("none is loaded"));
    assert!(failed(run.ask(Command::Forget)).contains("none is loaded"));
    assert!(failed(run.ask(Command::Load("no/such/model".into()))).contains("no/such/model"));
    run.ask(Command::Load(folder("gta")));
    assert!(failed(run.ask(say(""))).contains("empty"));
    // More than the model has positions; the text before it is there afterwards.
    let first = text(&run.ask(say("ROMEO:")));
    assert!(failed(run.ask(Command::Read(5000))).contains("1024"));
    assert_eq!(text(&run.ask(say("ROMEO:"))).len(), first.len());
}
