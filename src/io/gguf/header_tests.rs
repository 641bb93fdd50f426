//! Headers: what is read of a sound file, and what each unsound one is refused for.

use super::value::{MetadataValue, ValueKind};
use super::Gguf;
use crate::error::Result;
use written::{list, string, GgufWriter, BOOL, F32, I32, LIST, TEXT, U64, U8};

#[path = "../../../tests/common/gguf.rs"]
mod written;

fn read(bytes: &[u8]) -> Result<Gguf> {
    Gguf::read("m.gguf", bytes, bytes.len() as u64)
}

fn refused(bytes: &[u8], words: &[&str]) {
    let error = match read(bytes) {
        Ok(_) => panic!("{words:?} is read"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("m.gguf") && words.iter().all(|word| error.contains(word)), "{error}, not {words:?}");
}

/// A file of two tensors and a value of each kind.
fn file() -> GgufWriter {
    let mut file = GgufWriter::default();
    file.text("general.architecture", "llama").count("a.count", 7).number("a.number", 0.5).flag("a.flag", true);
    file.value("a.byte", U8, [200]).value("a.small", 1, [0xff]).value("a.short", 2, [1, 2]);
    file.value("a.negative", 3, (-300i16).to_le_bytes()).value("a.signed", I32, (-70000i32).to_le_bytes());
    file.value("a.large", U64, u64::MAX.to_le_bytes()).value("a.low", 11, i64::MIN.to_le_bytes());
    file.value("a.double", 12, (-1e300f64).to_le_bytes());
    file.texts("a.texts", &["one", "", "\u{20ac}"]).counts("a.counts", &[1, -1]).numbers("a.numbers", &[0.25]);
    let nested = [list(U8, &[vec![1], vec![2]]), list(TEXT, &[string("x")])].map(|inner| inner.to_vec());
    file.value("a.nested", LIST, list(LIST, &nested));
    file.floats("first.weight", &[2, 3], &[0.0; 6]).tensor("second.weight", &[2, 64], 2, vec![0; 72]);
    file
}

#[test]
fn a_sound_file_is_read() {
    for version in [2, 3] {
        let bytes = GgufWriter { version, ..file() }.bytes();
        let gguf = read(&bytes).unwrap();
        assert_eq!((gguf.version, gguf.keys().count(), gguf.tensors.len()), (version, 16, 2));
        for (key, want) in [
            ("general.architecture", MetadataValue::Text("llama".into())),
            ("a.count", MetadataValue::Unsigned(7)),
            ("a.number", MetadataValue::Float(0.5)),
            ("a.flag", MetadataValue::Bool(true)),
            ("a.byte", MetadataValue::Unsigned(200)),
            ("a.small", MetadataValue::Signed(-1)),
            ("a.short", MetadataValue::Unsigned(513)),
            ("a.negative", MetadataValue::Signed(-300)),
            ("a.signed", MetadataValue::Signed(-70000)),
            ("a.large", MetadataValue::Unsigned(u64::MAX)),
            ("a.low", MetadataValue::Signed(i64::MIN)),
            ("a.double", MetadataValue::Float(-1e300)),
        ] {
            assert!(gguf.get(key) == Some(&want), "{key}");
        }
        let texts: Vec<_> = gguf.list("a.texts").unwrap().unwrap().texts().unwrap().collect();
        assert_eq!(texts, [&b"one"[..], b"", "\u{20ac}".as_bytes()]);
        let counts = gguf.list("a.counts").unwrap().unwrap();
        assert!(counts.values().unwrap().map(|v| v.whole()).eq([Some(1), Some(-1)]) && counts.texts().is_none());
        assert!(gguf.list("a.nested").unwrap().is_some_and(|list| list.kind == ValueKind::Array && list.count == 2));
        let (first, second) = (&gguf.tensors["first.weight"], &gguf.tensors["second.weight"]);
        assert_eq!((&*first.shape, first.block.name, first.bytes), (&[2, 3][..], "F32", 24));
        assert_eq!((&*second.shape, second.block.name, second.bytes), (&[2, 64][..], "Q4_0", 72));
        assert_eq!((first.first % 32, second.first), (0, first.first + 32));
        assert_eq!(second.first + second.bytes, bytes.len() as u64);
    }
    assert_eq!(read(&GgufWriter::default().bytes()).unwrap().keys().count(), 0);
    let large = GgufWriter { alignment: 4096, ..file() };
    let bytes = { large }.count("general.alignment", 4096).bytes();
    assert_eq!(read(&bytes).unwrap().tensors["first.weight"].first % 4096, 0);
}

#[test]
fn wherever_a_file_ends_it_is_an_error() {
    let bytes = file().bytes();
    let end = read(&bytes).unwrap().tensors.values().map(|t| t.first + t.bytes).max().unwrap();
    for len in 0..end as usize {
        assert!(read(&bytes[..len]).is_err(), "{len} bytes");
    }
    // What a header promises, and a shorter file does not have.
    assert!(Gguf::read("m.gguf", &bytes[..100], bytes.len() as u64).is_err());
}

#[test]
fn unsound_files_are_refused_by_name_and_place() {
    refused(b"GGUF", &["4 bytes"]);
    refused(&[b"GGML", &[0; 40][..]].concat(), &["not a GGUF file", "GGML"]);
    refused(&GgufWriter { version: 1, ..file() }.bytes(), &["version 1"]);
    refused(&GgufWriter { version: 4, ..file() }.bytes(), &["version 4"]);
    refused(&GgufWriter { version: 3u32.swap_bytes(), ..file() }.bytes(), &["big endian"]);
    let made = |change: &dyn Fn(&mut GgufWriter)| {
        let mut file = file();
        change(&mut file);
        file.bytes()
    };
    let value = |kind: u32, bytes: &[u8]| {
        made(&|file| {
            file.value("b.key", kind, bytes);
        })
    };
    refused(&value(13, &[0]), &["key b.key", "type 13", "at byte"]);
    refused(&value(BOOL, &[2]), &["key b.key", "neither 0 nor 1"]);
    refused(&value(LIST, &list(BOOL, &[vec![1], vec![3]])), &["key b.key", "neither 0 nor 1"]);
    refused(&value(TEXT, &string([0xff])), &["key b.key", "no UTF-8"]);
    refused(&value(LIST, &list(99, &[])), &["key b.key", "type 99"]);
    refused(&value(LIST, &list(LIST, &[list(77, &[])])), &["key b.key", "type 77"]);
    let deep = (0..5).fold(list(U8, &[]), |inner, _| list(LIST, &[inner]));
    refused(&value(LIST, &deep), &["key b.key", "lists within lists"]);
    let counts = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    for kind in [U8, U64, TEXT, LIST, F32] {
        for count in [1 << 20, u64::MAX / 8 + 1, u64::MAX] {
            refused(&value(LIST, &counts(kind, count)), &["key b.key", "are left"]);
        }
    }
    refused(&value(TEXT, &(1u64 << 40).to_le_bytes()), &["key b.key", "a string of 1099511627776 bytes"]);
    refused(
        &made(&|file| {
            file.value("", U8, [0]);
        }),
        &["is empty"],
    );
    refused(
        &made(&|file| {
            file.count("a.count", 7);
        }),
        &["key a.count", "there twice"],
    );
    for alignment in [0, 24, 1 << 21] {
        refused(
            &made(&|file| {
                file.count("general.alignment", alignment);
            }),
            &["general.alignment", "power of two"],
        );
    }
    refused(
        &made(&|file| {
            file.text("general.alignment", "x");
        }),
        &["general.alignment", "power of two"],
    );
}

#[test]
fn unsound_tensors_are_refused_by_name() {
    let made = |change: &dyn Fn(&mut GgufWriter)| {
        let mut file = file();
        change(&mut file);
        file.bytes()
    };
    let shape = |dims: &[u64], number: u32, words: &[&str]| {
        let bytes = made(&|file| (file.tensors[0].shape, file.tensors[0].number) = (dims.to_vec(), number));
        refused(&bytes, &[&["tensor first.weight"], words].concat());
    };
    shape(&[], 0, &["0 dimensions"]);
    shape(&[1; 5], 0, &["5 dimensions"]);
    shape(&[2, 0], 0, &["has shape (2,0)"]);
    shape(&[1 << 33, 1 << 33], 0, &["has shape"]);
    shape(&[1 << 62], 0, &["has shape"]);
    shape(&[2, 3], 4, &["type 4"]);
    shape(&[2, 3], u32::MAX, &["type 4294967295"]);
    shape(&[2, 48], 2, &["rows of 48", "blocks of 32 (Q4_0)"]);
    shape(&[2, 64], 12, &["rows of 64", "blocks of 256 (Q4_K)"]);
    // Into the next tensor, and past the file's end.
    refused(&made(&|file| file.tensors[0].shape = vec![20]), &["tensor second.weight", "where first.weight ends"]);
    shape(&[1 << 20], 0, &["4194304 bytes from byte", "the file ends at"]);
    refused(&made(&|file| file.tensors[1].name = "first.weight".into()), &["tensor first.weight", "twice"]);
    refused(&made(&|file| file.tensors[1].name = String::new()), &["a tensor's name", "is empty"]);
    // The writer aligns by 8, the file says nothing of it.
    let odd = GgufWriter { alignment: 8, ..file() };
    refused(&odd.bytes(), &["tensor second.weight", "no multiple of 32"]);
    // More tensors and values than there is room for.
    for at in [8, 16] {
        let mut bytes = file().bytes();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        refused(&bytes, &["metadata values", "more than 2^64 bytes"]);
        bytes[at..at + 8].copy_from_slice(&(1u64 << 30).to_le_bytes());
        refused(&bytes, &["metadata values", "are left"]);
    }
}
