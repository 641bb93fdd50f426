//! Text from a model in twenty-five lines. `cargo run --release --example quickstart -- examples/models/gla $'ROMEO:\n'`

use latten::model::{generate, GenerateOptions, Tokenizer};
use latten::{DType, Decoder, Gpu, Result, Session, SessionOptions};
use std::io::{stdout, Write};
use std::ops::ControlFlow;

/// The text that a model's folder makes of a prompt, written as it comes.
pub async fn run(folder: &str, prompt: &str, out: &mut impl Write) -> Result<()> {
    let gpu = Gpu::new().await?;
    let decoder = Decoder::load(&gpu, folder, DType::F16)?; // a folder of latten's, or one of the transformers library
    let tokenizer = Tokenizer::from_folder(folder)?;
    let mut session = Session::new(&decoder, SessionOptions::default())?;
    let mut text = tokenizer.stream();
    generate(&mut session, &tokenizer.encode(prompt)?, GenerateOptions::default(), |token| {
        let written = out.write_all(text.push(token).as_bytes()).and_then(|()| out.flush());
        let ends = tokenizer.end_tokens().contains(&token) || written.is_err();
        if ends {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .await?;
    let _ = out.write_all(text.finish().as_bytes());
    Ok(())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(prompt)) = (args.next(), args.next()) else {
        println!("usage: quickstart MODEL_FOLDER PROMPT");
        return Ok(());
    };
    pollster::block_on(run(&folder, &prompt, &mut stdout()))
}
