//! Examples of several sequences: the texts and tables they print, by what their numbers must be to each other.

use super::{chats, checkout, generate, words};
use pollster::block_on;

fn models() -> String {
    checkout("examples/models")
}

/// What `generate` prints of the texts of one model, and at the end.
fn texts(args: &str) -> String {
    let args = generate::parse(words(&format!("--models {} --variant mla {args}", models()))).unwrap();
    let mut out = Vec::new();
    match block_on(generate::run_to(&args, &mut out)) {
        Ok(()) => String::from_utf8(out).unwrap(),
        Err(generate::Stop::Failed(message)) => panic!("{message}"),
        Err(generate::Stop::ReaderGone) => panic!("nobody reads"),
    }
}

/// What follows is no part of what is compared: times, and which adapter it was.
fn text_and_bytes(out: &str) -> (String, Vec<usize>) {
    let (text, table) = out.split_once("\n\n").unwrap();
    let row = table.lines().find(|line| line.starts_with("mla  ")).unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    // Behind each number its unit: elements, B, B.
    let numbers = words[words.len() - 6..].chunks(2).map(|pair| pair[0].parse().unwrap());
    (text.into(), numbers.collect())
}

#[test]
fn generate_of_several_ranks_writes_the_text_of_one() {
    let (want, alone) = text_and_bytes(&texts("--tokens 40 --temperature 0 --kv-dtype f32"));
    let (text, by_heads) = text_and_bytes(&texts("--tokens 40 --temperature 0 --kv-dtype f32 --ranks 2"));
    assert_eq!((&text, &by_heads), (&want, &alone), "the cache of MLA is whole on each");
    let by_context = "--tokens 40 --temperature 0 --kv-dtype f32 --ranks 2 --by-context";
    let (text, halves) = text_and_bytes(&texts(by_context));
    assert_eq!(text, want);
    assert_eq!(halves.iter().map(|n| 2 * n).collect::<Vec<_>>(), alone);
}

#[test]
fn generate_prints_several_texts_the_best_first() {
    let folder = std::env::temp_dir().join(format!("latten-several-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let saved = folder.join("saved").display().to_string();
    texts(&format!("--tokens 4 --temperature 0 --save-session {saved}"));
    for (args, penalty, end) in [
        ("--beams 3 --stop 10 --tokens 60", 1.0, "3 beams"),
        ("--beams 4 --stop 32 --length-penalty 0 --tokens 30", 0.0, "4 beams"),
        ("--best-of 3 --seed 5 --tokens 30 --length-penalty 2 --stop 44", 2.0, "best of 3"),
        (&format!("--best-of 2 --tokens 12 --load-session {saved}"), 1.0, "best of 2"),
        ("--best-of 1 --temperature 0 --tokens 3", 1.0, "best of 1"),
    ] {
        let out = texts(args);
        let last = out.lines().last().unwrap();
        assert!(
            last.starts_with(&format!("mla  {end}: prefill ")) && last.ends_with(" tok/s for all"),
            "{args}: {out}"
        );
        // [1: score -0.7159, log-probability -143.17, 200 tokens, stopped]
        let heads: Vec<Vec<f64>> = out
            .lines()
            .filter(|line| line.contains(": score "))
            .map(|line| {
                line.split(|c| " [:]".contains(c)).filter_map(|w| w.trim_end_matches(',').parse().ok()).collect()
            })
            .collect();
        let (count, tokens): (usize, f64) = {
            let after = |name: &str| args.split_once(name).map(|(_, rest)| rest.split(' ').next().unwrap());
            let count = after("--beams ").or(after("--best-of ")).unwrap();
            (count.parse().unwrap(), after("--tokens ").unwrap().parse().unwrap())
        };
        assert_eq!(heads.len(), count, "{args}: {out}");
        for (i, head) in heads.iter().enumerate() {
            let [place, score, log_probability, length] = head[..] else { panic!("{args}: {head:?}") };
            assert_eq!(place as usize, i + 1, "{args}: {out}");
            let rounding = 0.005 / length.powf(penalty) + 5e-5;
            assert!((score - log_probability / length.powf(penalty)).abs() <= 1.001 * rounding, "{args}: {out}");
            assert!(i == 0 || score <= heads[i - 1][1], "{args}: {out}");
            assert!(length >= 1.0 && length <= tokens && score < 0.0, "{args}: {out}");
        }
        let stopped = out.matches(" tokens, stopped]").count();
        let whole = heads.iter().filter(|head| head[3] == tokens).count();
        assert!(stopped + whole >= count, "{args}: a text ended without a reason: {out}");
        assert_eq!(stopped > 0, args.contains("--stop"), "{args}: {out}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The table of `chats`: the numbers before it, and its rows by name.
struct Table {
    system: f64,
    page: f64,
    page_bytes: f64,
    pages: f64,
    rows: Vec<(String, Row)>,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    chats: f64,
    tokens: f64,
    used: f64,
    shared: f64,
    kept: f64,
    held: f64,
    unshared: f64,
    saved: Option<f64>,
    hits: f64,
    evicted: f64,
    prompts: f64,
    computed: f64,
}

fn table(args: &str) -> Table {
    let args = chats::parse(words(&format!("--models {} {args}", models()))).unwrap();
    let mut out = Vec::new();
    block_on(chats::run(&args, &mut out)).unwrap();
    let out = String::from_utf8(out).unwrap();
    let numbers = |line: &str| -> Vec<f64> { line.split_whitespace().filter_map(|w| w.parse().ok()).collect() };
    let lines: Vec<&str> = out.lines().collect();
    let [pages, page, page_bytes] = numbers(lines[1])[..] else { panic!("{out}") };
    let system = numbers(lines[2])[0];
    let table = lines.iter().skip(5).take_while(|line| !line.is_empty());
    let rows = table.map(|line| {
        let (name, rest) = line.split_at(22);
        let saved = rest.split_whitespace().nth(7).unwrap();
        let rest = rest.replacen(saved, "", usize::from(saved == "-")).replace('%', "");
        let mut n = numbers(&rest).into_iter();
        let mut next = || n.next().unwrap();
        let [chats, tokens, used, shared, kept, held, unshared] = std::array::from_fn(|_| next());
        let saved = (saved != "-").then(&mut next);
        let [hits, evicted, prompts, computed] = std::array::from_fn(|_| next());
        let row = Row { chats, tokens, used, shared, kept, held, unshared, saved, hits, evicted, prompts, computed };
        assert!(n.next().is_none(), "{line}");
        (name.trim().to_string(), row)
    });
    Table { system, page, page_bytes, pages, rows: rows.collect() }
}

impl Table {
    fn row(&self, name: &str) -> &Row {
        &self.rows.iter().find(|row| row.0 == name).unwrap_or_else(|| panic!("no row {name}")).1
    }

    /// What holds for every row.
    fn check_sums(&self) {
        for (name, row) in &self.rows {
            assert_eq!(row.held, row.used * self.page_bytes, "{name}: {row:?}");
            assert!(row.used + row.kept <= self.pages && row.shared <= row.used, "{name}: {row:?}");
            let unshared = row.unshared / self.page_bytes;
            assert!(unshared.fract() == 0.0 && unshared * self.page >= row.tokens, "{name}: {row:?}");
            assert!(unshared * self.page < row.tokens + row.chats * self.page + 1.0, "{name}: {row:?}");
            assert_eq!(row.saved.is_none(), row.chats == 0.0, "{name}: {row:?}");
            let saved = row.saved.unwrap_or(0.0);
            assert!(
                row.chats == 0.0 || (100.0 * (1.0 - row.held / row.unshared) - saved).abs() < 0.0501,
                "{name}: {row:?}"
            );
            assert_eq!(row.prompts - row.computed, row.hits * self.page, "{name}: {row:?}");
        }
        assert_eq!(self.rows.len(), 8);
    }
}

#[test]
fn the_table_of_chats_adds_up() {
    let chats = 5.0;
    for (args, page) in [("--variant mla --page-size 16", 16.0), ("--variant gqa --page-size 32 --kv-dtype i8", 32.0)] {
        let table = table(&format!("{args} --sequences 5 --tokens 10"));
        table.check_sums();
        assert_eq!(table.page, page);
        let system = (table.system / page).floor();
        let pinned = table.row("system prompt, pinned");
        assert_eq!((pinned.used, pinned.shared, pinned.computed), (system, 0.0, table.system), "{args}");

        let opened = table.row("chats opened");
        assert_eq!((opened.chats, opened.hits, opened.shared), (chats, chats * system, system), "{args}");
        assert_eq!(opened.tokens, opened.prompts - table.system, "{args}");
        let own = opened.unshared / table.page_bytes - chats * system;
        assert_eq!(opened.used, system + own, "{args}");
        let answered = table.row("an answer each");
        // The last token is not fed.
        assert_eq!((answered.tokens, answered.shared), (opened.tokens + 9.0 * chats, system), "{args}");
        assert_eq!(answered.used, answered.unshared / table.page_bytes - (chats - 1.0) * system, "{args}");

        let forked = table.row("some forked");
        assert_eq!((forked.chats, forked.used, forked.held), (chats + 2.0, answered.used, answered.held), "{args}");
        assert!(forked.shared > answered.shared && forked.tokens > answered.tokens, "{args}");
        let both = table.row("another answer each");
        assert_eq!(both.tokens, forked.tokens + 10.0 * (chats + 2.0), "{args}");
        assert!(both.used > forked.used && both.shared >= system, "{args}");

        let closed = table.row("all closed");
        assert_eq!((closed.used, closed.tokens, closed.unshared), (system, 0.0, 0.0), "{args}");
        assert!(closed.kept > 0.0, "{args}");
        let again = table.row("the same prompts again");
        assert_eq!((again.tokens, again.used, again.shared), (opened.tokens, opened.used, opened.shared), "{args}");
        assert!(again.computed - closed.computed < opened.computed - pinned.computed, "{args}");
        // Beyond the system prompt, the full pages of each chat are found.
        assert!(again.hits - closed.hits > chats * system, "{args}");
        let others = table.row("other chats, answered");
        assert_eq!(others.hits - again.hits, chats * system, "{args}");
        assert!(others.evicted >= again.evicted && others.used + others.kept <= table.pages, "{args}");
    }
}

/// Nothing to share: a page is longer than the system prompt. And a token per page, where all of it is shared.
#[test]
fn chats_of_any_page_size() {
    let table = table("--variant gta --page-size 1024 --sequences 1 --tokens 2");
    table.check_sums();
    assert!(table.rows.iter().all(|(_, row)| row.hits == 0.0 && row.evicted == 0.0));
    assert_eq!(table.row("an answer each").saved, Some(0.0));
    let table = self::table("--variant mla --page-size 1 --sequences 6 --tokens 2");
    table.check_sums();
    // And the "[" that follows it in every prompt.
    assert_eq!(table.row("chats opened").shared, table.system + 1.0);
    assert!(table.row("other chats, answered").evicted > 0.0);
}

#[test]
fn chats_says_what_is_wrong_with_its_arguments() {
    for (args, why) in [
        ("--variant rwkv", "[possible values: gqa, gta, gla, mla]"),
        ("--page-size 3", "invalid value '3' for '--page-size <N>': not a power of two up to 4096"),
        ("--page-size 8192", "not a power of two up to 4096"),
        ("--sequences 0", "invalid value '0' for '--sequences <N>': not a number"),
        ("--sequences -1", "unexpected argument '-1'"),
        ("--tokens", "a value is required for '--tokens <N>'"),
        ("--kv-dtype u32", "[possible values: f32, f16, bf16, i8, i4]"),
        ("now", "unexpected argument 'now'"),
    ] {
        let message = chats::parse(words(args)).err().unwrap().to_string();
        assert!(message.contains(why), "{args}: {message}");
    }
    let help = chats::parse(words("--help")).err().unwrap().to_string();
    assert!(help.contains("[default: 32]"), "{help}");
    for (args, why) in [
        ("--models no/such", "no/such/gla/config.json"),
        ("--tokens 300", "--tokens 300: a prompt of "),
        (&format!("--tokens {}", usize::MAX), "max_position_embeddings, 1024"),
        ("--sequences 2000000000", "max_batch: 2500000000 is not in 1..=2^30"),
    ] {
        let folder = if args.contains("--models") { String::new() } else { format!("--models {}", models()) };
        let args = chats::parse(words(&format!("{folder} {args}"))).unwrap();
        let message = block_on(chats::run(&args, &mut Vec::new())).unwrap_err().to_string();
        assert!(message.contains(why), "{why}: {message}");
    }
}
