//! The paged cache and its sequences.

use crate::arrays::{elements, made};
use crate::device::{self, PyGpu};
use crate::errors::{argument, numbers, OrRaise};
use crate::heads::{PyHeadLayout, PyRope};
use crate::work::locked;
use latten::{CacheOptions, DType, Gpu, KvSource, PagedKvCache, Pages, SeqId, Tensor};
use numpy::PyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Mutex;

/// A sequence of a cache.
#[pyclass(frozen, eq, hash, from_py_object, module = "latten", name = "Sequence")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PySequence {
    pub(crate) id: SeqId,
}

#[pymethods]
impl PySequence {
    fn __repr__(&self) -> String {
        format!("<latten.Sequence {}>", self.id)
    }
}

pub(crate) fn ids(sequences: &[PySequence]) -> Vec<SeqId> {
    sequences.iter().map(|sequence| sequence.id).collect()
}

/// The KV cache of a model: pages on the device, page tables on the host.
#[pyclass(frozen, module = "latten", name = "PagedKvCache")]
pub(crate) struct PyCache {
    pub(crate) gpu: Gpu,
    pub(crate) cache: Mutex<PagedKvCache>,
}

impl PyCache {
    /// Works on the cache while other threads of Python run, of which one may have it now.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut PagedKvCache) -> latten::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| work(&mut locked(&self.cache))).or_raise(py)
    }
}

pub(crate) fn dtype(py: Python<'_>, name: &str, text: &str) -> PyResult<DType> {
    text.parse().map_err(|_| argument(py, name, &format!("{text:?} is not f32, f16, bf16, i8 or i4")))
}

#[pymethods]
impl PyCache {
    #[new]
    #[pyo3(signature = (heads, *, dtype = "f16", pages = 64, page_size = 64, layers = 1, rope = None, grows = false, gpu = None))]
    #[allow(clippy::too_many_arguments)] // Python's are named
    fn new(
        py: Python<'_>,
        heads: PyHeadLayout,
        dtype: &str,
        pages: usize,
        page_size: usize,
        layers: usize,
        rope: Option<PyRope>,
        grows: bool,
        gpu: Option<&PyGpu>,
    ) -> PyResult<Self> {
        let gpu = device::of(py, gpu)?;
        let pages = Pages { count: pages, size: page_size, layers };
        let rope = rope.map(|rope| rope.rope);
        let options = CacheOptions { grows, rope, ..CacheOptions::new(self::dtype(py, "dtype", dtype)?, pages) };
        let cache = py.detach(|| PagedKvCache::new(&gpu, heads.heads, options)).or_raise(py)?;
        Ok(PyCache { gpu, cache: Mutex::new(cache) })
    }

    fn insert(&self, py: Python<'_>) -> PyResult<PySequence> {
        self.with(py, |cache| Ok(PySequence { id: cache.insert() }))
    }

    fn remove(&self, py: Python<'_>, sequence: PySequence) -> PyResult<()> {
        self.with(py, |cache| cache.remove(sequence.id))
    }

    fn fork(&self, py: Python<'_>, sequence: PySequence) -> PyResult<PySequence> {
        self.with(py, |cache| Ok(PySequence { id: cache.fork(sequence.id)? }))
    }

    fn truncate(&self, py: Python<'_>, sequence: PySequence, len: usize) -> PyResult<()> {
        self.with(py, |cache| cache.truncate(sequence.id, len))
    }

    /// Committed tokens.
    fn len(&self, py: Python<'_>, sequence: PySequence) -> PyResult<usize> {
        self.with(py, |cache| cache.len(sequence.id))
    }

    fn reserve(&self, py: Python<'_>, sequences: Vec<PySequence>, tokens: usize) -> PyResult<()> {
        self.with(py, |cache| cache.reserve(&ids(&sequences), tokens))
    }

    fn reserve_each(&self, py: Python<'_>, wanted: Vec<(PySequence, usize)>) -> PyResult<()> {
        let wanted: Vec<(SeqId, usize)> = wanted.into_iter().map(|(sequence, tokens)| (sequence.id, tokens)).collect();
        self.with(py, |cache| cache.reserve_each(&wanted))
    }

    fn commit(&self, py: Python<'_>, sequences: Vec<PySequence>, tokens: usize) -> PyResult<()> {
        self.with(py, |cache| cache.commit(&ids(&sequences), tokens))
    }

    #[pyo3(signature = (sequences, kv, *, layer = 0))]
    fn append(&self, py: Python<'_>, sequences: Vec<PySequence>, kv: &Bound<'_, PyAny>, layer: usize) -> PyResult<()> {
        let (kv, shape) = elements::<f32>(kv, "kv", &["tokens", "kv_dim"])?;
        self.with(py, |cache| {
            let kv = Tensor::from_slice(&self.gpu, &shape, &kv, DType::F32)?;
            cache.append(layer, &ids(&sequences), &kv)
        })
    }

    /// `(tokens, pairs, 2)` cosines and sines at the positions of the reserved tokens.
    fn cos_sin<'py>(&self, py: Python<'py>, sequences: Vec<PySequence>) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let (table, shape) = self.with(py, |cache| {
            let table = cache.cos_sin(&ids(&sequences))?;
            let (tokens, angles) = (cache.batch(&ids(&sequences))?.tokens(), &table.shape()[1..]);
            let mut values: Vec<f32> = pollster::block_on(self.gpu.download(&table))?;
            // The tensor has room for larger steps.
            values.truncate(tokens * angles.iter().product::<usize>());
            Ok((values, [&[tokens], angles].concat()))
        })?;
        made(py, table, &shape)
    }

    #[getter]
    fn heads(&self) -> PyHeadLayout {
        PyHeadLayout { heads: *locked(&self.cache).heads() }
    }

    #[getter]
    fn dtype(&self) -> String {
        locked(&self.cache).dtype().to_string()
    }

    #[getter]
    fn layers(&self) -> usize {
        locked(&self.cache).pages().layers
    }

    #[getter]
    fn page_size(&self) -> usize {
        locked(&self.cache).pages().size
    }

    #[getter]
    fn token_bytes(&self) -> usize {
        locked(&self.cache).token_bytes()
    }

    #[getter]
    fn pool_bytes(&self) -> usize {
        locked(&self.cache).pool_bytes()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.with(py, |cache| Ok(cache.stats()))?;
        let pages =
            [("total", stats.total), ("used", stats.used), ("shared", stats.shared), ("free", stats.available())];
        let mut all: Vec<(&str, u64)> = pages.iter().map(|(name, pages)| (*name, *pages as u64)).collect();
        all.push(("bytes", stats.bytes));
        numbers(py, &all)
    }

    fn __repr__(&self) -> String {
        format!("<latten.{:?}>", locked(&self.cache))
    }
}
