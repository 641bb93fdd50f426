//! A variant of attention in numbers, and its rotation.

use crate::errors::{argument, OrRaise};
use latten::{Gla, Gqa, Gta, HeadLayout, Mla, Rope, RopePairs};
use pyo3::prelude::*;

/// The numbers by which kernels and caches know a variant.
#[pyclass(frozen, eq, hash, from_py_object, module = "latten", name = "HeadLayout")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyHeadLayout {
    pub(crate) heads: HeadLayout,
}

#[pymethods]
impl PyHeadLayout {
    #[staticmethod]
    #[pyo3(signature = (*, q_heads, kv_heads, head_dim))]
    fn gqa(py: Python<'_>, q_heads: usize, kv_heads: usize, head_dim: usize) -> PyResult<Self> {
        Ok(PyHeadLayout { heads: HeadLayout::gqa(Gqa { q_heads, kv_heads, head_dim }).or_raise(py)? })
    }

    #[staticmethod]
    #[pyo3(signature = (*, q_heads, kv_heads, head_dim, rope_dim))]
    fn gta(py: Python<'_>, q_heads: usize, kv_heads: usize, head_dim: usize, rope_dim: usize) -> PyResult<Self> {
        Ok(PyHeadLayout { heads: HeadLayout::gta(Gta { q_heads, kv_heads, head_dim, rope_dim }).or_raise(py)? })
    }

    #[staticmethod]
    #[pyo3(signature = (*, q_heads, latent_heads, latent_dim, rope_dim))]
    fn gla(py: Python<'_>, q_heads: usize, latent_heads: usize, latent_dim: usize, rope_dim: usize) -> PyResult<Self> {
        Ok(PyHeadLayout { heads: HeadLayout::gla(Gla { q_heads, latent_heads, latent_dim, rope_dim }).or_raise(py)? })
    }

    #[staticmethod]
    #[pyo3(signature = (*, q_heads, latent_dim, rope_dim))]
    fn mla(py: Python<'_>, q_heads: usize, latent_dim: usize, rope_dim: usize) -> PyResult<Self> {
        Ok(PyHeadLayout { heads: HeadLayout::mla(Mla { q_heads, latent_dim, rope_dim }).or_raise(py)? })
    }

    #[getter]
    fn q_heads(&self) -> usize {
        self.heads.q_heads()
    }

    #[getter]
    fn groups(&self) -> usize {
        self.heads.groups()
    }

    #[getter]
    fn heads_per_group(&self) -> usize {
        self.heads.heads_per_group()
    }

    #[getter]
    fn state_dim(&self) -> usize {
        self.heads.state_dim()
    }

    #[getter]
    fn nope_dim(&self) -> usize {
        self.heads.nope_dim()
    }

    #[getter]
    fn rope_dim(&self) -> usize {
        self.heads.rope_dim()
    }

    #[getter]
    fn rotated_dim(&self) -> usize {
        self.heads.rotated_dim()
    }

    #[getter]
    fn v_offset(&self) -> usize {
        self.heads.v_offset()
    }

    #[getter]
    fn v_dim(&self) -> usize {
        self.heads.v_dim()
    }

    #[getter]
    fn q_dim(&self) -> usize {
        self.heads.q_dim()
    }

    #[getter]
    fn kv_dim(&self) -> usize {
        self.heads.kv_dim()
    }

    fn __repr__(&self) -> String {
        format!("<latten.{:?}>", self.heads)
    }
}

/// The frequencies of a rotation, and which elements it pairs.
#[pyclass(frozen, from_py_object, module = "latten", name = "Rope")]
#[derive(Clone)]
pub(crate) struct PyRope {
    pub(crate) rope: Rope,
    pub(crate) theta: f64,
}

#[pymethods]
impl PyRope {
    #[new]
    #[pyo3(signature = (rope_dim, theta = 10_000.0, pairs = "half"))]
    fn new(py: Python<'_>, rope_dim: usize, theta: f64, pairs: &str) -> PyResult<Self> {
        let pairs = match pairs {
            "half" => RopePairs::Half,
            "interleaved" => RopePairs::Interleaved,
            other => return Err(argument(py, "pairs", &format!("{other:?} is not half or interleaved"))),
        };
        Ok(PyRope { rope: Rope::new(rope_dim, theta, pairs).or_raise(py)?, theta })
    }

    #[getter]
    fn rope_dim(&self) -> usize {
        self.rope.rope_dim()
    }

    #[getter]
    fn theta(&self) -> f64 {
        self.theta
    }

    #[getter]
    fn pairs(&self) -> &'static str {
        if self.rope.pairs == RopePairs::Interleaved {
            "interleaved"
        } else {
            "half"
        }
    }

    fn __repr__(&self) -> String {
        format!("Rope({}, {}, {:?})", self.rope_dim(), self.theta, self.pairs())
    }
}
