//! The example `generate`: its arguments, what it prints while a model is loaded, and saved sessions.

use super::{checkout, generate, words};
use latten::cache::Progress;

#[test]
fn generate_says_what_is_wrong_with_its_arguments() {
    for (args, why) in [
        ("--variant rwkv", "[possible values: gqa, gta, gla, mla]"),
        ("--tokens many", "invalid value 'many' for '--tokens <N>': not a number"),
        ("--tokens 0", "invalid value '0' for '--tokens <N>': not a number"),
        ("--model here --variant gla", "cannot be used with"),
        ("--dtype f64", "[possible values: f16, f32]"),
        ("--kv-dtype u32", "[possible values: f32, f16, bf16, i8, i4]"),
        ("--seed", "a value is required for '--seed <N>'"),
        ("--prefill implicit", "[possible values: absorbed, explicit, auto]"),
        ("--save-session f", "--variant <NAME>|--model <DIR>"),
        ("--load-session f", "--variant <NAME>|--model <DIR>"),
        ("--load-session f --variant gla --tokens 0", "not a number from 1 on"),
        ("--beams 2 --best-of 2", "cannot be used with"),
        ("--beams 0", "not a number from 1 on"),
        ("--best-of 0", "not a number from 1 on"),
        ("--best-of -1", "unexpected argument '-1'"),
        ("--beams", "a value is required for '--beams <N>'"),
        ("--beams 2 --seed 1", "cannot be used with"),
        ("--temperature 1 --beams 2", "cannot be used with"),
        ("--beams 2 --top-p 0.5", "cannot be used with"),
        ("--best-of 2 --profile", "cannot be used with"),
        ("--beams 2 --variant gla --save-session f", "cannot be used with"),
        ("--best-of 3 --temperature 0", "--best-of 3 at --temperature 0 are 3 times the same"),
        ("--length-penalty 1", "--beams <N>|--best-of <N>"),
        ("--stop 10", "--beams <N>|--best-of <N>"),
        ("--beams 2 --stop x", "invalid value 'x' for '--stop <N>'"),
        ("--window x", "invalid value 'x' for '--window <N>'"),
        ("--keep-first", "a value is required for '--keep-first <N>'"),
        ("--draft a --lookup", "cannot be used with"),
        ("--lookup --profile", "cannot be used with"),
        ("--lookup --beams 2", "cannot be used with"),
        ("--draft a --variant gla --load-session f", "cannot be used with"),
        ("--guesses 2", "--draft <DIR>|--lookup"),
        ("--lookup --guesses 0", "not a number from 1 on"),
        ("now", "unexpected argument 'now'"),
    ] {
        let message = generate::parse(words(args)).err().unwrap().to_string();
        assert!(message.contains(why), "{args}: {message}");
    }
    let empty = generate::parse(["--prompt", ""].map(String::from).into_iter()).err().unwrap().to_string();
    assert!(empty.contains("the prompt is empty"), "{empty}");
    // Defaults exclude nothing, and help says them.
    assert!(generate::parse(words("--beams 2 --stop 10")).is_ok());
    let help = generate::parse(words("--help")).err().unwrap().to_string();
    assert!(help.contains("[default: 0.8]") && help.contains("[default: examples/models]"), "{help}");
    let args = generate::parse(words("--model no/such/model")).unwrap();
    let Err(generate::Stop::Failed(message)) = pollster::block_on(generate::run(&args)) else { panic!() };
    assert!(message.contains("no/such/model"), "{message}");
    for (args, why) in
        [("--beams 2 --length-penalty 11", "length_penalty: 11 is"), ("--best-of 2 --stop 256", "stop_token")]
    {
        let models = checkout("examples/models");
        let args = generate::parse(words(&format!("--models {models} --variant mla {args}"))).unwrap();
        let Err(generate::Stop::Failed(message)) = pollster::block_on(generate::run(&args)) else { panic!("{why}") };
        assert!(message.contains(why), "{message}");
    }
    let models = checkout("examples/models");
    // Further than the model's 1,024 positions in a cache of some 300 tokens.
    let windowed = format!("--models {models} --variant gta --window 64 --keep-first 4 --tokens 1030");
    let args = generate::parse(words(&windowed)).unwrap();
    assert!(pollster::block_on(generate::run(&args)).is_ok());
    let alone = generate::parse(words(&format!("--models {models} --variant gta --keep-first 4"))).unwrap();
    let Err(generate::Stop::Failed(message)) = pollster::block_on(generate::run(&alone)) else { panic!() };
    assert!(message.contains("keep_first: 4 without a window"), "{message}");
}

/// Text in two runs is that of one.
#[test]
fn generate_goes_on_with_a_saved_session() {
    let folder = std::env::temp_dir().join(format!("latten-generate-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let models = checkout("examples/models");
    let generate = |args: &str| {
        let args = args.replace("@", &format!("{}/", folder.display()));
        let args = generate::parse(words(&format!("--models {models} --variant mla --temperature 0 {args}"))).unwrap();
        match pollster::block_on(generate::run(&args)) {
            Ok(()) => String::new(),
            Err(generate::Stop::Failed(message)) => message,
            Err(generate::Stop::ReaderGone) => panic!("nobody reads"),
        }
    };
    assert_eq!(generate("--tokens 24 --save-session @whole"), "");
    assert_eq!(generate("--tokens 10 --save-session @half"), "");
    assert_eq!(generate("--tokens 14 --load-session @half --save-session @both"), "");
    assert_eq!(generate("--tokens 2 --load-session @both --prompt A --save-session @more"), "");
    let tokens = |name: &str| {
        let info = latten::cache::saved_info(std::fs::File::open(folder.join(name)).unwrap()).unwrap();
        info.sequences[0].tokens.clone()
    };
    assert_eq!((tokens("half").len(), tokens("whole").len()), (17, 31));
    assert_eq!(tokens("both"), tokens("whole"));
    assert_eq!(tokens("more")[..32], [&tokens("whole")[..], &[65]].concat());
    assert!(generate("--load-session @none").contains("none: "));
    std::fs::write(folder.join("half"), "no session").unwrap();
    let message = generate("--load-session @half");
    assert!(message.contains("half") && message.contains("ends at byte 10"), "{message}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_bar_tells_how_far_loading_is() {
    let bar = generate::loading::bar("models/x");
    assert_eq!((bar.message().as_str(), bar.position(), bar.length()), ("models/x", 0, None));
    for (bytes, total_bytes) in [(0, 0), (512 << 20, 2048 << 20), (1 << 40, 1 << 40)] {
        generate::loading::show(&bar, Progress { bytes, total_bytes });
        assert_eq!((bar.position(), bar.length()), (bytes, Some(total_bytes)));
    }
}
