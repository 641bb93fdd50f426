//! Examples that load models: what they print of it.

use super::{generate, load_speed, words};
use latten::cache::Progress;
use pollster::block_on;

#[test]
fn load_speed_measures_a_small_model() {
    for (args, why) in [
        ("--hidden 100", "--hidden 100: not a multiple of 256"),
        ("--file i8", "--file i8: wanted f16"),
        ("--dtype bf16", "--dtype bf16: wanted f16"),
        ("--layers 0", "--layers 0: not a number"),
        ("--layers", "--layers wants a value"),
        ("--mib 3", "unknown argument --mib"),
    ] {
        let message = load_speed::parse(words(args)).err().unwrap();
        assert!(message.contains(why), "{args}: {message}");
    }
    let folder = std::env::temp_dir().join(format!("latten-load-speed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (file, dtype, bytes) in [("bf16", "f16", 2), ("f32", "i8", 4)] {
        let args = format!("--layers 1 --hidden 256 --vocab 300 --repeats 1 --file {file} --dtype {dtype}");
        let args = format!("{args} --folder {}", folder.display());
        let mut out = Vec::new();
        block_on(load_speed::run(&load_speed::parse(words(&args)).unwrap(), &mut out)).unwrap();
        let out = String::from_utf8(out).unwrap();
        let elements = 300 * 256 + 256 + 2 * 256 + 256 * 256 * 5 / 2 + 3 * 256 * 704;
        assert!(
            out.starts_with(&format!("{} MiB of {file} to {dtype}", (bytes * elements + (1 << 19)) >> 20)),
            "{out}"
        );
        assert!(out.lines().count() == 4 && out.lines().skip(2).all(|line| line.ends_with('%')), "{out}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let args = load_speed::parse(words("--layers 1 --folder /no/such/folder")).unwrap();
    assert!(block_on(load_speed::run(&args, &mut Vec::new())).is_err());
}

#[test]
fn a_line_tells_how_far_loading_is() {
    let line = |bytes, total_bytes| generate::loading::line("models/x", Progress { bytes, total_bytes });
    assert_eq!(line(0, 0), "models/x:     0 of 0 MiB (  0%)");
    assert_eq!(line(512 << 20, 2048 << 20), "models/x:   512 of 2048 MiB ( 25%)");
    assert_eq!(line(1 << 40, 1 << 40), "models/x: 1048576 of 1048576 MiB (100%)");
}
