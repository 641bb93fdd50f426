//! The example `generate`: its arguments, what it prints while a model is loaded, and saved sessions.

use super::{checkout, generate, words};
use latten::cache::Progress;

#[test]
fn generate_says_what_is_wrong_with_its_arguments() {
    for (args, why) in [
        ("--variant rwkv", "--variant rwkv: wanted gqa, gta, gla or mla"),
        ("--tokens many", "--tokens many: not a number"),
        ("--tokens 0", "--tokens is 0"),
        ("--model here --variant gla", "exclude each other"),
        ("--dtype f64", "--dtype f64"),
        ("--kv-dtype u32", "--kv-dtype u32: wanted f32, f16, bf16, i8 or i4"),
        ("--seed", "--seed wants a value"),
        ("--prefill implicit", "--prefill implicit: not absorbed, explicit or auto"),
        ("--save-session f", "a session is of one model"),
        ("--load-session f", "a session is of one model"),
        ("--load-session f --variant gla --tokens 0", "--tokens is 0"),
        ("--beams 2 --best-of 2", "--beams and --best-of exclude each other"),
        ("--beams 0", "--beams 0: wanted at least 1"),
        ("--best-of 0", "--best-of 0: wanted at least 1"),
        ("--best-of -1", "--best-of -1: not a number"),
        ("--beams", "--beams wants a value"),
        ("--beams 2 --seed 1", "--beams draws nothing by chance, --seed is not for it"),
        ("--temperature 1 --beams 2", "--temperature is not for it"),
        ("--beams 2 --top-p 0.5", "--top-p is not for it"),
        ("--best-of 2 --profile", "--best-of and --profile exclude each other"),
        ("--beams 2 --variant gla --save-session f", "--beams and --save-session exclude each other"),
        ("--best-of 3 --temperature 0", "--best-of 3 at --temperature 0 are 3 times the same"),
        ("--length-penalty 1", "--length-penalty is for --beams or --best-of"),
        ("--stop 10", "--stop is for --beams or --best-of"),
        ("--beams 2 --stop x", "--stop x: not a number"),
        ("--window x", "--window x: not a number"),
        ("--keep-first", "--keep-first wants a value"),
        ("now", "unknown argument now"),
    ] {
        let message = generate::parse(words(args)).err().unwrap();
        assert!(message.contains(why), "{args}: {message}");
    }
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
fn a_line_tells_how_far_loading_is() {
    let line = |bytes, total_bytes| generate::loading::line("models/x", Progress { bytes, total_bytes });
    assert_eq!(line(0, 0), "models/x:     0 of 0 MiB (  0%)");
    assert_eq!(line(512 << 20, 2048 << 20), "models/x:   512 of 2048 MiB ( 25%)");
    assert_eq!(line(1 << 40, 1 << 40), "models/x: 1048576 of 1048576 MiB (100%)");
}
