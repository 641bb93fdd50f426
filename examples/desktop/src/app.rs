//! The window: a model is chosen at the left, its text is in the middle, its memory at the right.

use crate::args::Args;
use crate::device;
use crate::engine::{Answer, Command, Engine, Event, Facts, Settings};
use crate::frames::{Frames, GOAL};
use crate::memory::{variants, Variant};
use crate::shipped;
use eframe::egui::{self, Color32, Key, ProgressBar, RichText, ScrollArea, TextEdit, Ui, ViewportCommand};
use egui_plot::{Corner, Legend, Line, Plot, PlotPoints, Points};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Why `--measure` found nothing, for the end of the program.
pub(crate) type Report = Arc<Mutex<Option<String>>>;

/// What the model is at.
#[derive(Debug, Clone, PartialEq)]
enum Work {
    Nothing,
    Loading(f32),
    Reading { read: usize, of: usize },
    Writing,
}

pub(crate) struct Window {
    args: Args,
    engine: Engine,
    adapter: String,
    shipped: Vec<(&'static str, PathBuf)>,
    path: String,
    facts: Option<Facts>,
    lines: Vec<Variant>,
    /// The parts of the text, and whether the user wrote them.
    text: Vec<(bool, String)>,
    input: String,
    temperature: f32,
    work: Work,
    trouble: Option<String>,
    last: Option<Answer>,
    /// Tokens in the cache and the bytes of their pages, as they grew.
    held: Vec<[f64; 2]>,
    frames: Frames,
    measured: bool,
    report: Report,
    end: Option<Instant>,
}

/// In order of `memory::variants`.
const COLOURS: [Color32; 4] = [
    Color32::from_rgb(68, 119, 170),
    Color32::from_rgb(238, 102, 119),
    Color32::from_rgb(34, 136, 51),
    Color32::from_rgb(170, 51, 119),
];
/// Points of the plot, at most.
const POINTS: usize = 2000;

impl Window {
    pub(crate) fn new(creation: &eframe::CreationContext<'_>, args: Args, report: Report) -> Result<Self, String> {
        let state = creation.wgpu_render_state.as_ref().ok_or("eframe draws without wgpu")?;
        let gpu = device::gpu(state).map_err(|e| e.to_string())?;
        let adapter = gpu.capabilities().adapter.clone();
        let context = creation.egui_ctx.clone();
        let settings = Settings { budget: args.budget, window: args.window, max_tokens: args.max_tokens };
        let engine = Engine::start(gpu, settings, move || context.request_repaint());
        let mut window = Window {
            engine,
            adapter,
            shipped: shipped::found(&args.models),
            path: String::new(),
            facts: None,
            lines: Vec::new(),
            text: Vec::new(),
            input: "ROMEO:\nBut soft, what light through yonder window".into(),
            temperature: 0.8,
            work: Work::Nothing,
            trouble: None,
            last: None,
            held: Vec::new(),
            frames: Frames::default(),
            measured: false,
            report,
            end: None,
            args,
        };
        if let Some(path) = window.args.model.clone() {
            window.load(path);
        }
        Ok(window)
    }

    fn load(&mut self, path: PathBuf) {
        self.work = Work::Loading(0.0);
        self.facts = None;
        self.clear();
        self.engine.ask(Command::Load(path));
    }

    fn clear(&mut self) {
        self.text.clear();
        self.held.clear();
        self.trouble = None;
        self.last = None;
    }

    fn send(&mut self) {
        let text = std::mem::take(&mut self.input);
        if text.is_empty() || self.facts.is_none() || self.work != Work::Nothing {
            self.input = text;
            return;
        }
        self.text.push((true, text.clone()));
        self.begin();
        self.engine.ask(Command::Say { text, temperature: self.temperature });
    }

    fn begin(&mut self) {
        self.text.push((false, String::new()));
        self.work = Work::Reading { read: 0, of: 1 };
        self.trouble = None;
        self.frames.clear();
    }

    fn take_events(&mut self) {
        while let Ok(event) = self.engine.events.try_recv() {
            match event {
                Event::Loading(share) => self.work = Work::Loading(share),
                Event::Loaded(facts) => {
                    self.lines = variants(facts.q_heads, facts.head_dim, facts.layers);
                    self.facts = Some(facts);
                    self.work = Work::Nothing;
                    self.measure();
                }
                Event::Read { read, of, cached, cached_bytes } => {
                    self.work = Work::Reading { read, of };
                    self.hold(cached, cached_bytes);
                }
                Event::Text { text, cached, cached_bytes } => {
                    self.work = Work::Writing;
                    self.hold(cached, cached_bytes);
                    if let Some((_, last)) = self.text.last_mut() {
                        last.push_str(&text);
                    }
                }
                Event::Done(answer) => {
                    self.work = Work::Nothing;
                    self.last = Some(answer);
                    self.ended(None);
                }
                Event::Forgotten => self.work = Work::Nothing,
                Event::Failed(why) => {
                    self.work = Work::Nothing;
                    self.ended(Some(&why));
                    self.trouble = Some(why);
                }
            }
        }
    }

    fn hold(&mut self, tokens: usize, bytes: u64) {
        let tokens = tokens as f64;
        // A text that was cut begins again from there.
        self.held.retain(|point| point[0] < tokens);
        if self.held.len() >= POINTS {
            let mut keep = false;
            self.held.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.held.push([tokens, bytes as f64 / 1024.0]);
    }

    /// Begins what `--measure` asks for: after the kernels are compiled, which a short text does.
    fn measure(&mut self) {
        let Some(tokens) = self.args.measure else { return };
        let warm = self.facts.is_some() && self.text.is_empty();
        self.begin();
        self.engine.ask(Command::Read(if warm { tokens.min(600) } else { tokens }));
    }

    fn ended(&mut self, failed: Option<&str>) {
        if self.args.measure.is_none() || self.end.is_some() {
            return;
        }
        if failed.is_none() && !self.measured {
            self.measured = true;
            self.engine.ask(Command::Forget);
            self.measure();
            return;
        }
        match (failed, &self.last) {
            (Some(why), _) => {
                if let Ok(mut report) = self.report.lock() {
                    *report = Some(why.to_string());
                }
            }
            (None, None) => {}
            (None, Some(answer)) => println!(
                "{} tokens read in {:.0} ms, {} written at {:.1} a second; steps of {:?}\n{}",
                answer.prompt,
                1e3 * answer.prompt_time.as_secs_f64(),
                answer.tokens,
                answer.tokens as f64 / answer.time.as_secs_f64().max(1e-9),
                self.args.budget,
                self.frames
            ),
        }
        self.end = Some(Instant::now() + Duration::from_secs(self.args.hold));
    }

    fn models(&mut self, ui: &mut Ui) {
        ui.heading("Models");
        let idle = self.work == Work::Nothing;
        let mut chosen = None;
        ui.add_enabled_ui(idle, |ui| {
            for (name, path) in &self.shipped {
                let own = self.facts.as_ref().is_some_and(|facts| facts.name == *name);
                if ui.selectable_label(own, format!("{} (shipped)", name.to_uppercase())).clicked() {
                    chosen = Some(path.clone());
                }
            }
            ui.add_space(8.0);
            ui.label("A GGUF file or a folder:");
            ui.add(TextEdit::singleline(&mut self.path).hint_text("path, or drop it here"));
            if ui.button("Load").clicked() && !self.path.trim().is_empty() {
                chosen = Some(PathBuf::from(self.path.trim()));
            }
        });
        let dropped = ui.ctx().input(|input| input.raw.dropped_files.first().map(|file| file.path().to_path_buf()));
        if let Some(path) = chosen.or(dropped.filter(|_| idle)) {
            self.load(path);
        }
        ui.add_space(8.0);
        if let Some(facts) = &self.facts {
            ui.label(RichText::new(&facts.name).strong());
            ui.label(format!("{}, {} layers", facts.variant.to_uppercase(), facts.layers));
            ui.label(format!("{} bytes a token in the cache", facts.token_bytes));
            ui.label(format!("{} kernels", facts.kernels));
            ui.label(if facts.chats { "answers messages" } else { "continues texts" });
        }
        ui.add_space(8.0);
        ui.label("Temperature");
        ui.add(egui::Slider::new(&mut self.temperature, 0.0..=1.5));
        if ui.add_enabled(idle && self.facts.is_some(), egui::Button::new("New text")).clicked() {
            self.clear();
            self.engine.ask(Command::Forget);
        }
    }

    fn memory(&mut self, ui: &mut Ui) {
        ui.heading("Bytes of the KV cache");
        let now = self.held.last().copied().unwrap_or([0.0, 0.0]);
        ui.label(format!("{} tokens, {:.0} KiB in pages", now[0], now[1]));
        // To the right of what is there, so that the lines grow with the text.
        let most = now[0].max(64.0);
        let held = self.held.clone();
        let lines = self.lines.clone();
        Plot::new("kv")
            .legend(Legend::default().position(Corner::LeftTop))
            .x_axis_label("tokens")
            .y_axis_label("KiB")
            .include_y(0.0)
            .include_x(0.0)
            .allow_drag(false)
            .allow_zoom(false)
            .allow_scroll(false)
            .show(ui, |plot| {
                for (line, colour) in lines.iter().zip(COLOURS) {
                    let at = |tokens: f64| [tokens, tokens * line.token_bytes as f64 / 1024.0];
                    plot.line(Line::new(line.name, PlotPoints::from(vec![at(0.0), at(most)])).color(colour).width(1.5));
                }
                if let Some(last) = held.last().copied() {
                    plot.line(Line::new("this model's pages", PlotPoints::from(held)).color(Color32::GRAY).width(2.5));
                    plot.points(Points::new("now", PlotPoints::from(vec![last])).radius(4.0).color(Color32::GRAY));
                }
            });
    }

    fn conversation(&mut self, ui: &mut Ui) {
        let room = ui.available_height() - 130.0;
        ScrollArea::vertical()
            .max_height(room)
            .min_scrolled_height(room)
            .stick_to_bottom(true)
            .auto_shrink(false)
            .show(ui, |ui| {
                if self.text.is_empty() {
                    ui.label(match &self.facts {
                        None => "Choose a model at the left.",
                        Some(facts) if facts.chats => "Write a message below.",
                        Some(_) => "Write the beginning of a text below; the model goes on with it.",
                    });
                }
                for (user, text) in &self.text {
                    let text = RichText::new(text);
                    ui.label(if *user { text.strong() } else { text });
                }
            });
        ui.separator();
        match &self.work {
            Work::Nothing => drop(ui.label(self.said())),
            Work::Loading(share) => drop(ui.add(ProgressBar::new(*share).text("loading"))),
            Work::Reading { read, of } => {
                drop(ui.add(
                    ProgressBar::new(*read as f32 / (*of).max(1) as f32).text(format!("reading {read} of {of} tokens")),
                ));
            }
            Work::Writing => drop(ui.label("writing")),
        }
        ui.horizontal(|ui| {
            let field = TextEdit::multiline(&mut self.input).desired_rows(4).desired_width(ui.available_width() - 84.0);
            let field = ui.add(field.hint_text("Ctrl+Enter sends"));
            if field.has_focus() && ui.input(|input| input.modifiers.command && input.key_pressed(Key::Enter)) {
                self.send();
            }
            ui.vertical(|ui| {
                let ready = self.facts.is_some() && self.work == Work::Nothing;
                let busy = matches!(self.work, Work::Reading { .. } | Work::Writing);
                if ui.add_enabled(ready, egui::Button::new("Send").min_size([64.0, 28.0].into())).clicked() {
                    self.send();
                }
                if ui.add_enabled(busy, egui::Button::new("Stop").min_size([64.0, 28.0].into())).clicked() {
                    self.engine.stop();
                }
            });
        });
    }

    /// What there is to say when nothing is going on.
    fn said(&self) -> RichText {
        if let Some(trouble) = &self.trouble {
            return RichText::new(trouble).color(Color32::from_rgb(200, 60, 60));
        }
        let Some(answer) = &self.last else { return RichText::new("ready") };
        RichText::new(format!(
            "{} tokens read in {:.2} s, {} written at {:.0} a second{}",
            answer.prompt,
            answer.prompt_time.as_secs_f64(),
            answer.tokens,
            answer.tokens as f64 / answer.time.as_secs_f64().max(1e-9),
            if answer.stopped { ", stopped" } else { "" }
        ))
    }

    fn status(&self, ui: &mut Ui) {
        ui.horizontal(|ui| {
            ui.label(&self.adapter);
            ui.separator();
            match self.frames.longest() {
                None => drop(ui.label("no frame measured")),
                Some(longest) => drop(ui.label(format!("longest frame {:.1} ms", 1e3 * longest.as_secs_f64()))),
            }
        });
    }
}

impl eframe::App for Window {
    fn ui(&mut self, ui: &mut Ui, frame: &mut eframe::Frame) {
        self.take_events();
        let at_work = matches!(self.work, Work::Reading { .. } | Work::Writing);
        self.frames.frame(Instant::now(), at_work, frame.info().cpu_usage);
        if at_work {
            // A frame every sixtieth of a second; the last one's own time is a part of it.
            let busy = Duration::from_secs_f32(frame.info().cpu_usage.unwrap_or_default().clamp(0.0, 1.0));
            ui.ctx().request_repaint_after(GOAL.saturating_sub(busy));
        }
        if let Some(end) = self.end {
            ui.ctx().request_repaint_after(Duration::from_millis(100));
            if Instant::now() >= end {
                ui.ctx().send_viewport_cmd(ViewportCommand::Close);
            }
        }
        egui::Panel::bottom("status").show(ui, |ui| self.status(ui));
        egui::Panel::left("models").default_size(190.0).show(ui, |ui| self.models(ui));
        egui::Panel::right("memory").default_size(360.0).show(ui, |ui| self.memory(ui));
        egui::CentralPanel::default().show(ui, |ui| self.conversation(ui));
    }
}
