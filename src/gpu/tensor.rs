//! Buffers and tensors: device memory with a shape and a dtype.

use super::fate::Fate;
use super::{Element, Gpu, GpuInner};
use crate::error::{shape_text, Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Element type of a tensor or a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float; stored packed in u32 words, so it needs no `shader-f16` feature.
    F16,
    /// bfloat16, the upper half of an f32; stored packed in u32 words.
    BF16,
    /// 8-bit signed integer, with scales beside it.
    I8,
    /// 4-bit signed integer, two to a byte, with scales beside it: of caches alone.
    I4,
    /// 32-bit unsigned integer (token ids, lengths).
    U32,
}

impl DType {
    /// Bits of one element.
    pub fn size_bits(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 32,
            DType::F16 | DType::BF16 => 16,
            DType::I8 => 8,
            DType::I4 => 4,
        }
    }

    /// Fails unless this is `want`; `name` is whose dtype it is.
    pub(crate) fn expect(self, name: &'static str, want: DType) -> Result<()> {
        match self == want {
            true => Ok(()),
            false => Err(ErrorKind::DType { name, got: self.to_string(), want: want.to_string() }.into()),
        }
    }

    /// Elements in one 16-byte `vec4<u32>`, the unit in which kernels read caches and weights.
    pub(crate) fn per_vec4(self) -> usize {
        128 / self.size_bits()
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I8 => "i8",
            DType::I4 => "i4",
            DType::U32 => "u32",
        })
    }
}

impl FromStr for DType {
    type Err = Error;

    /// From what it displays as: `f16`.
    fn from_str(text: &str) -> Result<Self> {
        let all = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4, DType::U32];
        let found = all.into_iter().find(|dtype| dtype.to_string() == text);
        found.ok_or_else(|| ErrorKind::argument("dtype", format!("{text:?} is not f32, f16, bf16, i8, i4 or u32")))
    }
}

/// A device buffer that tells its `Gpu` when it goes, so that cached bind groups never keep dead memory alive.
#[derive(Clone)]
pub(crate) struct Buffer {
    inner: Arc<BufferInner>,
}

/// Whose a buffer is, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BufferKind {
    /// An app's.
    App,
    /// Made here.
    Own,
    /// Made here, and written before it is read by whoever uses it: within a call, or within a piece of work that looks at
    /// [`Gpu::losses`] before its results count. What it holds concerns nobody later, so it has no fate.
    Scratch,
    /// Of parameters, which the host writes once. Passes of an app's may refer to it when it is dropped here.
    Params,
}

struct BufferInner {
    buffer: wgpu::Buffer,
    kind: BufferKind,
    /// Of a buffer that commands write.
    fate: Option<Arc<Fate>>,
    /// See [`Buffer::lend`].
    lent: AtomicU64,
    id: u64,
    // Weak: the Gpu keeps buffers of its own (parameters), which must not keep the Gpu.
    gpu: Weak<GpuInner>,
}

impl Drop for BufferInner {
    fn drop(&mut self) {
        let gpu = self.gpu.upgrade().map(|inner| Gpu { inner });
        if let Some(gpu) = &gpu {
            gpu.forget_buffer(self.id);
        }
        let lent = *self.lent.get_mut();
        // A pass of an app's that is not submitted yet would fail on it.
        let lent = gpu.as_ref().map_or(lent > 0, |gpu| gpu.is_out(lent));
        if cfg!(target_arch = "wasm32") && matches!(self.kind, BufferKind::Own | BufferKind::Scratch) && !lent {
            super::web::retire(gpu.as_ref(), &self.buffer);
        }
    }
}

impl Buffer {
    pub(super) fn wrap(gpu: &Gpu, buffer: wgpu::Buffer, kind: BufferKind) -> Self {
        let (id, gpu) = (gpu.next_id(), Arc::downgrade(&gpu.inner));
        let fate = matches!(kind, BufferKind::App | BufferKind::Own).then(Arc::default);
        Buffer { inner: Arc::new(BufferInner { buffer, kind, fate, lent: AtomicU64::new(0), id, gpu }) }
    }

    /// A pass of an app's own now refers to it: until that is submitted, nobody else may write it. `round` is the number that
    /// [`Gpu::is_out`] compares.
    pub(super) fn lend(&self, round: u64) {
        self.inner.lent.store(round, Ordering::Relaxed);
    }

    /// The round of [`Buffer::lend`], 0 if there was none.
    pub(super) fn lent(&self) -> u64 {
        self.inner.lent.load(Ordering::Relaxed)
    }

    pub(super) fn fate(&self) -> Option<&Arc<Fate>> {
        self.inner.fate.as_ref()
    }

    /// Whether commands that were to write it are lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.loss() > 0
    }

    /// Whether commands that write it were sent, and a browser has not yet said whether they are lost.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.fate().is_some_and(|fate| fate.is_unanswered())
    }

    /// The loss that it suffered last and has not been renewed from, or 0.
    pub(super) fn loss(&self) -> u64 {
        self.fate().map_or(0, |fate| fate.loss())
    }

    /// What was lost of it no longer matters: it is wholly written anew, or nobody will read what is not.
    pub(crate) fn renew(&self) {
        self.fate().inspect(|fate| fate.set_loss(0));
    }

    /// [`Buffer::renew`] where no other loss has come since this one.
    pub(super) fn renew_after(&self, loss: u64) {
        self.fate().inspect(|fate| fate.renew_after(loss));
    }

    /// Whether so many bytes from its start are all of it, but for what fills up its last 16.
    pub(super) fn is_filled_by(&self, bytes: usize) -> bool {
        (bytes as u64).next_multiple_of(16) >= self.size_bytes()
    }

    pub(super) fn is_of_app(&self) -> bool {
        self.inner.kind == BufferKind::App
    }

    pub(crate) fn raw(&self) -> &wgpu::Buffer {
        &self.inner.buffer
    }

    pub(crate) fn id(&self) -> u64 {
        self.inner.id
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.inner.buffer.size()
    }

    fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.inner) == 1
    }

    /// Fails on a buffer of another [`Gpu`]. wgpu does not notice where its device is of another instance: it takes the
    /// buffer that has the same number here.
    pub(super) fn expect_gpu(&self, gpu: &Gpu) -> Result<()> {
        if std::ptr::eq(self.inner.gpu.as_ptr(), Arc::as_ptr(&gpu.inner)) {
            return Ok(());
        }
        Err(ErrorKind::argument("tensor", format!("{self:?} belongs to another Gpu")))
    }
}

impl Buffer {
    /// [`Buffer::expect_gpu`], and that it may be used so by `what`: an app's own buffer may not.
    pub(super) fn expect_usage(&self, gpu: &Gpu, usage: wgpu::BufferUsages, what: &str) -> Result<()> {
        self.expect_gpu(gpu)?;
        let has = self.raw().usage();
        if has.contains(usage) {
            return Ok(());
        }
        Err(ErrorKind::argument("tensor", format!("{self:?} has usage {has:?}, {what} needs {usage:?}")))
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer#{}({} bytes)", self.inner.id, self.size_bytes())
    }
}

/// A dense, row-major tensor on the device. Cloning shares the memory.
///
/// A tensor may be smaller than its buffer: scratch tensors are cut from buffers that grow and never shrink.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub(crate) buffer: Buffer,
    shape: Vec<usize>,
    dtype: DType,
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`] for a zero-sized or overflowing shape, [`ErrorKind::TooLarge`] past the device's
    /// binding limit, [`ErrorKind::OutOfMemory`]; [`ErrorKind::DType`] for I4, which only caches have.
    pub fn zeros(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Self> {
        let bytes = byte_len(shape, dtype)?;
        let buffer = gpu.create_buffer("tensor", bytes as u64)?;
        Ok(Self { buffer, shape: shape.to_vec(), dtype })
    }

    /// A tensor of [`BufferKind::Scratch`]. Errors: as [`Tensor::zeros`].
    pub(crate) fn scratch(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Self> {
        let bytes = byte_len(shape, dtype)?;
        let buffer = gpu.create_scratch("scratch tensor", bytes as u64)?;
        Ok(Self { buffer, shape: shape.to_vec(), dtype })
    }

    /// A tensor of these values: [`f32`] for a `dtype` of F32, F16 or BF16 (rounded to nearest even), [`u32`] for U32.
    ///
    /// # Errors
    ///
    /// As [`Tensor::zeros`]; [`ErrorKind::Shape`] where `values` has not the shape's element count, [`ErrorKind::DType`] for a
    /// `dtype` of other elements.
    pub fn from_slice<T: Element>(gpu: &Gpu, shape: &[usize], values: &[T], dtype: DType) -> Result<Self> {
        check_len("values", shape, values.len())?;
        let tensor = Self::zeros(gpu, shape, dtype)?;
        T::check("dtype", dtype)?;
        T::write(gpu, &tensor, values)?;
        Ok(tensor)
    }

    /// Wraps a buffer of the app's own, made on the same device. Its usage must contain `STORAGE`, `COPY_SRC` if it is to
    /// be downloaded and `COPY_DST` if it is to be uploaded to. Wrap it once and keep the tensor: bind groups are cached
    /// by it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a buffer too small or without `STORAGE`, [`ErrorKind::Shape`].
    pub fn from_wgpu(gpu: &Gpu, buffer: wgpu::Buffer, shape: &[usize], dtype: DType) -> Result<Self> {
        let bytes = byte_len(shape, dtype)? as u64;
        if buffer.size() < bytes {
            return Err(ErrorKind::argument("buffer", format!("{} bytes, the tensor needs {bytes}", buffer.size())));
        }
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(ErrorKind::argument("buffer", format!("usage {:?} lacks STORAGE", buffer.usage())));
        }
        Ok(Self { buffer: gpu.adopt_buffer(buffer), shape: shape.to_vec(), dtype })
    }

    /// The same memory, from its start, seen with another shape of the same dtype.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`] for a shape that does not fit the buffer.
    pub fn view(&self, shape: &[usize]) -> Result<Self> {
        if byte_len(shape, self.dtype)? as u64 > self.buffer.size_bytes() {
            return Err(ErrorKind::shape("view", shape, format!("at most {} bytes", self.buffer.size_bytes())));
        }
        Ok(Self { buffer: self.buffer.clone(), shape: shape.to_vec(), dtype: self.dtype })
    }

    /// Sizes, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element: never, zero sizes are refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The underlying buffer (it may be larger than the tensor).
    pub fn wgpu_buffer(&self) -> &wgpu::Buffer {
        self.buffer.raw()
    }

    /// Whether nobody else holds this memory.
    pub(crate) fn is_unshared(&self) -> bool {
        self.buffer.is_unshared()
    }

    /// The buffer, if the tensor is all of it: for a dispatch that writes every element.
    pub(crate) fn whole(&self) -> Option<&Buffer> {
        self.buffer.is_filled_by(self.len() * self.dtype.size_bits() / 8).then_some(&self.buffer)
    }

    /// Fails unless this is `shape` (0 stands for any size) in `dtype`.
    pub(crate) fn expect(&self, name: &'static str, shape: &[usize], dtype: DType) -> Result<()> {
        let fits = self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(|(g, w)| *w == 0 || g == w);
        if !fits {
            return Err(ErrorKind::shape(name, &self.shape, wanted_text(shape)));
        }
        self.dtype.expect(name, dtype)
    }
}

/// `(_,64)`: a shape in which 0 stands for any size.
fn wanted_text(shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(|d| if *d == 0 { "_".into() } else { d.to_string() }).collect();
    format!("({})", dims.join(","))
}

/// The error of a dtype that holds no float values.
pub(super) fn not_floats(name: &'static str, dtype: DType) -> Error {
    ErrorKind::DType { name, got: dtype.to_string(), want: "f32, f16 or bf16".into() }.into()
}

fn check_len(name: &'static str, shape: &[usize], got: usize) -> Result<()> {
    let want = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    match want {
        Some(want) if want == got => Ok(()),
        Some(want) => Err(ErrorKind::shape(name, &[got], format!("({want}), the elements of {}", shape_text(shape)))),
        None => Err(ErrorKind::shape("shape", shape, "fewer than 2^64 elements")),
    }
}

/// Bytes of a tensor, refusing empty and absurd shapes, and I4: its elements may end within a byte.
pub(crate) fn byte_len(shape: &[usize], dtype: DType) -> Result<usize> {
    if dtype == DType::I4 {
        let want = "f32, f16, bf16, i8 or u32".into();
        return Err(ErrorKind::DType { name: "dtype", got: dtype.to_string(), want }.into());
    }
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    match elements.and_then(|n| n.checked_mul(dtype.size_bits() / 8)) {
        Some(0) => Err(ErrorKind::shape("shape", shape, "no zero size")),
        Some(bytes) if (bytes as u64) < 1 << 46 => Ok(bytes),
        _ => Err(ErrorKind::shape("shape", shape, "fewer than 2^46 bytes")),
    }
}
