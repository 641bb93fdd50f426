//! The kernels of attention.

use crate::arrays::{elements, made};
use crate::cache::{dtype, ids, PyCache, PySequence};
use crate::device::{self, PyGpu};
use crate::errors::OrRaise;
use crate::heads::PyHeadLayout;
use crate::work::locked;
use latten::{AttentionOptions, DType, Decode, DecodeArgs, Gpu, Plan, Tensor};
use numpy::PyArrayDyn;
use pyo3::prelude::*;

/// Outputs and their log-sum-exps, as arrays.
pub(crate) type Attended<'py, T> = (Bound<'py, PyArrayDyn<T>>, Bound<'py, PyArrayDyn<T>>);

/// Attention of new tokens over a cache: of one each (decode), or of many (prefill).
#[pyclass(frozen, module = "latten", name = "Decode")]
pub(crate) struct PyDecode {
    gpu: Gpu,
    decode: Decode,
}

/// Which workgroup reads which tokens, for all layers of a step.
#[pyclass(frozen, module = "latten", name = "Plan")]
pub(crate) struct PyPlan {
    plan: Plan,
}

#[pymethods]
impl PyPlan {
    #[getter]
    fn tokens(&self) -> usize {
        self.plan.tokens()
    }

    #[getter]
    fn workgroups(&self) -> usize {
        self.plan.workgroups()
    }

    #[getter]
    fn is_split(&self) -> bool {
        self.plan.is_split()
    }

    fn __repr__(&self) -> String {
        format!("<latten.Plan of {} tokens, {} workgroups>", self.tokens(), self.workgroups())
    }
}

#[pymethods]
impl PyDecode {
    #[new]
    #[pyo3(signature = (heads, *, dtype = "f16", softcap = None, window = None, keep_first = 0, sinks = false, gpu = None))]
    #[allow(clippy::too_many_arguments)] // Python's are named
    fn new(
        py: Python<'_>,
        heads: PyHeadLayout,
        dtype: &str,
        softcap: Option<f32>,
        window: Option<usize>,
        keep_first: usize,
        sinks: bool,
        gpu: Option<&PyGpu>,
    ) -> PyResult<Self> {
        let gpu = device::of(py, gpu)?;
        let dtype = self::dtype(py, "dtype", dtype)?;
        let options = AttentionOptions { softcap, window, keep_first, sinks, ..Default::default() };
        let decode = py.detach(|| Decode::with_options(&gpu, heads.heads, dtype, options)).or_raise(py)?;
        Ok(PyDecode { gpu, decode })
    }

    #[getter]
    fn heads(&self) -> PyHeadLayout {
        PyHeadLayout { heads: *self.decode.heads() }
    }

    fn plan(&self, py: Python<'_>, cache: &PyCache, sequences: Vec<PySequence>) -> PyResult<PyPlan> {
        let plan = py.detach(|| self.decode.plan(&*locked(&cache.cache), &ids(&sequences))).or_raise(py)?;
        Ok(PyPlan { plan })
    }

    #[pyo3(signature = (plan, cache, q, *, softmax_scale, layer = 0, sinks = None))]
    #[allow(clippy::too_many_arguments)] // Python's are named
    fn run<'py>(
        &self,
        py: Python<'py>,
        plan: &PyPlan,
        cache: &PyCache,
        q: &Bound<'py, PyAny>,
        softmax_scale: f32,
        layer: usize,
        sinks: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Attended<'py, f32>> {
        let (q, shape) = elements::<f32>(q, "q", &["tokens", "q_heads", "q_dim"])?;
        let sinks = sinks.map(|sinks| elements::<f32>(sinks, "sinks", &["q_heads"])).transpose()?;
        let (out, lse) =
            py.detach(|| self.attend(plan, cache, (&q, &shape), sinks, (softmax_scale, layer))).or_raise(py)?;
        let (tokens, heads) = (plan.plan.tokens(), self.decode.heads());
        let out = made(py, out, &[tokens, heads.q_heads(), heads.v_dim()])?;
        Ok((out, made(py, lse, &[tokens, heads.q_heads()])?))
    }

    fn __repr__(&self) -> String {
        format!("<latten.{:?}>", self.decode)
    }
}

impl PyDecode {
    fn attend(
        &self,
        plan: &PyPlan,
        cache: &PyCache,
        q: (&[f32], &[usize]),
        sinks: Option<(Vec<f32>, Vec<usize>)>,
        (softmax_scale, layer): (f32, usize),
    ) -> latten::Result<(Vec<f32>, Vec<f32>)> {
        let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(&self.gpu, shape, values, DType::F32);
        let q = tensor(q.0, q.1)?;
        let sinks = sinks.map(|(values, shape)| tensor(&values, &shape)).transpose()?;
        let attended = {
            // Nobody may change the cache between the check of the plan and its use.
            let cache = locked(&cache.cache);
            let view = cache.layer(layer)?;
            let args = DecodeArgs { sinks: sinks.as_ref(), ..DecodeArgs::new(&plan.plan, &view, &q, softmax_scale) };
            let attended = self.decode.run(args)?;
            self.gpu.submit()?;
            attended
        };
        let out = pollster::block_on(self.gpu.download(&attended.out))?;
        Ok((out, pollster::block_on(self.gpu.download(&attended.lse))?))
    }
}
