//! `latten-bindgen IN.wasm OUT_FOLDER NAME`: the JavaScript and TypeScript beside a .wasm, as an ES module.
//!
//! wasm-bindgen's library must be of the same version as the crate that was compiled in. As a member of the workspace this
//! is of the version in Cargo.lock, and nothing has to be installed.

use std::process::ExitCode;
use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, folder, name] = &args[..] else {
        eprintln!("usage: latten-bindgen IN.wasm OUT_FOLDER NAME");
        return ExitCode::from(2);
    };
    let mut bindgen = Bindgen::new();
    // The module finds its .wasm beside itself, as bundlers know it too.
    bindgen.omit_default_module_path(false).input_path(input).typescript(true).out_name(name);
    let made = bindgen.web(true).and_then(|bindgen| bindgen.generate(folder));
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("latten-bindgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}
