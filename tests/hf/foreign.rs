//! Folders and files that are no model of the kind that is read: errors that say what they are.

use crate::assert_kind;
use crate::common::{gpu, message};
use crate::folders::Copied;
use crate::model::config_text;
use latten::model::{Config, Decoder};
use latten::{DType, ErrorKind};
use serde_json::{json, Value};

#[test]
fn what_stands_in_place_of_weights_is_named() {
    let copy = Copied::of("mistral", "foreign");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 988097824\n";
    let zip = [&b"PK\x03\x04\0\0\x08\x08\0\0"[..], &[0; 100]].concat();
    for (bytes, what) in [
        (pointer.as_bytes(), "a Git LFS pointer to a file of 988097824 bytes"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "an HTML page"),
        (b"Entry not found", "the text \"Entry not found\""),
        (b"oops", "the text \"oops\""),
        (b"GGUF\x03\0\0\0\x23\x01\0\0\0\0\0\0", "a GGUF file"),
        (&zip, "PyTorch"),
        (b"{\"error\": \"no such model\"}", "the text \"{\\\"error\\\""),
    ] {
        std::fs::write(copy.at("model.safetensors"), bytes).unwrap();
        assert_kind!(copy.load(), ErrorKind::Weights { .. });
        let text = message(copy.load());
        assert!(text.contains("model.safetensors: not a safetensors file:") && text.contains(what), "{text}");
        assert!(!text.contains("tensor -") && !text.contains("tensor :"), "{text}");
        std::fs::remove_file(copy.at("model.safetensors")).unwrap();
        std::fs::write(copy.at("model.safetensors.index.json"), bytes).unwrap();
        let text = message(copy.load());
        assert!(text.contains("index.json: not an index:"), "{text}");
        std::fs::remove_file(copy.at("model.safetensors.index.json")).unwrap();
    }
}

#[test]
fn folders_in_other_forms_are_named() {
    for (files, what) in [
        (&["pytorch_model.bin"][..], "pytorch_model.bin, a file of PyTorch's"),
        (&["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pytorch_model-00001-of-00002.bin"),
        (&["consolidated.00.pth", "params.json"], "consolidated.00.pth, a model as its authors publish it"),
        (&["adapter_model.safetensors"], "adapter_model.safetensors, part of a LoRA adapter"),
        (
            &["weights.safetensors"],
            "weights.safetensors, a safetensors file that no model.safetensors.index.json names",
        ),
        (&["README.md"], "latten reads GGUF files, and folders with config.json and model.safetensors"),
    ] {
        // With a config.json and without.
        let copy = Copied::of("mistral", "forms");
        files.iter().for_each(|name| std::fs::write(copy.at(name), b"x").unwrap());
        for missing in ["model.safetensors", "config.json"] {
            assert_kind!(copy.load(), ErrorKind::Io { .. });
            let text = message(copy.load());
            assert!(text.contains(missing) && text.contains(what) && text.contains("save_pretrained"), "{text}");
            std::fs::remove_file(copy.at("config.json")).ok();
        }
    }
    // A file where a folder is wanted.
    let copy = Copied::of("mistral", "file");
    std::fs::write(copy.at("m.bin"), b"PK\x03\x04\0\0\x08\x08").unwrap();
    let text = message(Decoder::load(gpu(), copy.at("m.bin"), DType::F32));
    assert!(text.contains("m.bin is a file, not a folder (it is a file of PyTorch's"), "{text}");
    // GGUF files are opened by what they are, not by their names alone, and in a folder that has no others.
    for name in ["m.gguf", "m"] {
        std::fs::write(copy.at(name), b"GGUF\x03\0\0\0").unwrap();
        let text = message(Decoder::load(gpu(), copy.at(name), DType::F32));
        assert!(text.contains("not a GGUF file: 8 bytes"), "{text}");
    }
    let text = message(copy.load());
    assert!(text.contains("m.gguf: not a GGUF file: 8 bytes"), "{text}");
    std::fs::remove_file(copy.at("m.gguf")).unwrap();
    let text = message(Decoder::load(gpu(), copy.at("m.gguf"), DType::F32));
    assert!(text.contains("m.gguf: No such file") && !text.contains("config.json:"), "{text}");
    // And a folder where a file is.
    std::fs::create_dir(copy.at("model.safetensors")).unwrap();
    let text = message(copy.load());
    assert!(text.contains("is a folder, not a regular file"), "{text}");
}

#[test]
fn other_families_are_named_with_those_that_are_read() {
    let mut config: Value = serde_json::from_str(&config_text("llama")).unwrap();
    for family in [json!("gemma3"), json!("gpt2"), json!(3)] {
        config["model_type"] = family.clone();
        let text = message(Config::parse("c", &config.to_string()));
        assert!(text.contains(&format!("key model_type = {family} is not among")), "{text}");
        assert!(text.contains("\"qwen2\"") && text.contains("families that latten reads"), "{text}");
    }
    for (text, what) in [
        ("version https://git-lfs.github.com/spec/v1\nsize 700\n", "a Git LFS pointer"),
        ("<html>", "an HTML page"),
        ("Entry not found", "the text \"Entry not found\""),
    ] {
        let text = message(Config::parse("c", text));
        assert!(text.contains("not JSON") && text.contains(what), "{text}");
    }
    let long = format!("{{\"model_type\": \"llama\", \"a\": [{}1]}}", "1,".repeat(3 << 20));
    assert!(message(Config::parse("c", &long)).contains("at most 4194304"));
}
