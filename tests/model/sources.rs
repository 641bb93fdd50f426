//! Models whose file is read by ranges: [`ReadAt`].

use crate::assert_kind;
use crate::common::*;
use crate::tiny::Tiny;
use latten::model::{Config, Decoder, LoadOptions, ReadAt, Session, SessionOptions, WeightBytes};
use latten::{DType, ErrorKind};
use safetensors::tensor::Dtype;
use serde_json::{json, Value};
use std::io::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// A header, zeros that nobody has in memory, and tensors behind them.
struct Sparse {
    head: Vec<u8>,
    zeros: u64,
    tail: Vec<u8>,
    /// What is told, where that is not what is there.
    total: Option<u64>,
    /// The first byte that cannot be read.
    broken: u64,
    longest: AtomicU64,
}

impl Sparse {
    /// The bytes of a safetensors file, with so many tensors before its own as no model has a use for, of 2.5 GiB each.
    fn new(file: &[u8], pads: u64) -> Sparse {
        const PAD: u64 = 5 << 29;
        let size = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let Value::Object(mut header) = serde_json::from_slice(&file[8..8 + size]).unwrap() else { panic!() };
        for tensor in header.values_mut() {
            for at in tensor["data_offsets"].as_array_mut().unwrap() {
                *at = json!(at.as_u64().unwrap() + pads * PAD);
            }
        }
        for i in 0..pads {
            let pad = json!({ "dtype": "U8", "shape": [PAD], "data_offsets": [i * PAD, (i + 1) * PAD] });
            header.insert(format!("padding_{i}"), pad);
        }
        let text = Value::Object(header).to_string().into_bytes();
        let head = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
        let (tail, longest) = (file[8 + size..].to_vec(), AtomicU64::new(0));
        Sparse { head, zeros: pads * PAD, tail, total: None, broken: u64::MAX, longest }
    }

    fn at(&self, byte: u64) -> Option<u8> {
        let (head, behind) = (self.head.len() as u64, self.head.len() as u64 + self.zeros);
        match byte {
            _ if byte < head => Some(self.head[byte as usize]),
            _ if byte < behind => Some(0),
            _ => self.tail.get((byte - behind) as usize).copied(),
        }
    }
}

impl ReadAt for Sparse {
    fn total_bytes(&self) -> u64 {
        self.total.unwrap_or(self.head.len() as u64 + self.zeros + self.tail.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.longest.fetch_max(buffer.len() as u64, Ordering::Relaxed);
        for (byte, at) in buffer.iter_mut().zip(offset..) {
            let found = if at < self.broken { self.at(at) } else { None };
            *byte = found.ok_or_else(|| Error::other(format!("byte {at} is gone")))?;
        }
        Ok(())
    }
}

fn load(tiny: &Tiny, file: &Sparse) -> latten::Result<Decoder> {
    let config = Config::parse("config.json", &tiny.config_json()).unwrap();
    Decoder::from_source_with(gpu(), config, ("a source", file), LoadOptions::of(DType::F32))
}

fn logits(decoder: &Decoder) -> Vec<Vec<f32>> {
    let options = SessionOptions { cache_tokens: 64, ..Default::default() };
    let mut session = Session::new(decoder, options).unwrap();
    let sequence = session.insert();
    pollster::block_on(session.all_logits(&[(sequence, &[3, 1, 4, 1, 5])])).unwrap()
}

#[test]
fn tensors_past_four_gib_are_read_where_they_lie() {
    let tiny = Tiny::new("gla", 7);
    let bytes = tiny.bytes(Dtype::F32);
    let config = Config::parse("config.json", &tiny.config_json()).unwrap();
    let want = Decoder::from_bytes(gpu(), config, WeightBytes { name: "w", bytes: &bytes }, DType::F32).unwrap();
    for pads in [0, 2] {
        let file = Sparse::new(&bytes, pads);
        assert!(pads == 0 || file.total_bytes() > 1 << 32);
        let decoder = load(&tiny, &file).unwrap();
        assert_eq!(logits(&decoder), logits(&want), "{pads}");
        let longest = file.longest.into_inner();
        assert!(longest > 0 && longest <= 4 << 20, "{longest} bytes were asked for at once");
    }
}

#[test]
fn a_source_that_fails_or_is_no_model_is_a_typed_error() {
    let tiny = Tiny::new("gqa", 7);
    let whole = || Sparse::new(&tiny.bytes(Dtype::F32), 0);
    let end = whole().total_bytes();
    for broken in [0, 4, 40, end - 1] {
        let file = Sparse { broken, ..whole() };
        assert_kind!(load(&tiny, &file), ErrorKind::Io { .. });
        let text = message(load(&tiny, &file));
        assert!(text.contains("a source") && text.contains(" is gone"), "{text}");
    }
    // More or less than the header tells, and no header.
    for total in [0, 7, 100, end - 1, end + 1, u64::MAX] {
        assert_kind!(load(&tiny, &Sparse { total: Some(total), ..whole() }), ErrorKind::Weights { .. });
    }
    assert!(load(&tiny, &whole()).is_ok());
}
