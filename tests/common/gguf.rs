//! GGUF files made for tests: what is asked for, right or wrong. The format is that of github.com/ggml-org/ggml, `docs/gguf.md`.
#![allow(dead_code)] // each test has its own use for it

/// Numbers of kinds of values.
pub const U8: u32 = 0;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const TEXT: u32 = 8;
pub const LIST: u32 = 9;
pub const U64: u32 = 10;

/// A file, part by part.
#[derive(Clone)]
pub struct GgufWriter {
    pub version: u32,
    pub alignment: usize,
    /// Key, kind, and the value's bytes.
    pub values: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<GgufTensor>,
}

#[derive(Clone)]
pub struct GgufTensor {
    pub name: String,
    /// Slowest first.
    pub shape: Vec<u64>,
    pub number: u32,
    pub bytes: Vec<u8>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        GgufWriter { version: 3, alignment: 32, values: Vec::new(), tensors: Vec::new() }
    }
}

/// A length, and what has it.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// Kind and count of a list, and its elements.
pub fn list(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat()
}

impl GgufWriter {
    pub fn value(&mut self, key: &str, kind: u32, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.values.push((key.into(), kind, bytes.as_ref().to_vec()));
        self
    }

    pub fn text(&mut self, key: &str, text: &str) -> &mut Self {
        self.value(key, TEXT, string(text))
    }

    pub fn count(&mut self, key: &str, count: u32) -> &mut Self {
        self.value(key, U32, count.to_le_bytes())
    }

    pub fn number(&mut self, key: &str, number: f32) -> &mut Self {
        self.value(key, F32, number.to_le_bytes())
    }

    pub fn flag(&mut self, key: &str, flag: bool) -> &mut Self {
        self.value(key, BOOL, [u8::from(flag)])
    }

    pub fn texts(&mut self, key: &str, texts: &[impl AsRef<[u8]>]) -> &mut Self {
        let texts: Vec<_> = texts.iter().map(string).collect();
        self.value(key, LIST, list(TEXT, &texts))
    }

    pub fn counts(&mut self, key: &str, counts: &[i32]) -> &mut Self {
        let counts: Vec<_> = counts.iter().map(|n| n.to_le_bytes().to_vec()).collect();
        self.value(key, LIST, list(I32, &counts))
    }

    pub fn numbers(&mut self, key: &str, numbers: &[f32]) -> &mut Self {
        let numbers: Vec<_> = numbers.iter().map(|n| n.to_le_bytes().to_vec()).collect();
        self.value(key, LIST, list(F32, &numbers))
    }

    /// Without a key of that name.
    pub fn without(&mut self, key: &str) -> &mut Self {
        self.values.retain(|(own, ..)| own != key);
        self
    }

    pub fn tensor(&mut self, name: &str, shape: &[usize], number: u32, bytes: Vec<u8>) -> &mut Self {
        let shape = shape.iter().map(|dim| *dim as u64).collect();
        self.tensors.push(GgufTensor { name: name.into(), shape, number, bytes });
        self
    }

    /// A tensor in f32.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        self.tensor(name, shape, 0, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// For closures that return nothing.
    pub fn end(&self) {}

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = b"GGUF".to_vec();
        all.extend(self.version.to_le_bytes());
        all.extend((self.tensors.len() as u64).to_le_bytes());
        all.extend((self.values.len() as u64).to_le_bytes());
        for (key, kind, bytes) in &self.values {
            all.extend(string(key));
            all.extend(kind.to_le_bytes());
            all.extend(bytes);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            all.extend(string(&tensor.name));
            all.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|dim| all.extend(dim.to_le_bytes()));
            all.extend(tensor.number.to_le_bytes());
            all.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            all.resize(all.len().next_multiple_of(self.alignment), 0);
            all.extend(&tensor.bytes);
        }
        all
    }
}
