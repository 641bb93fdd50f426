//! The device.

use crate::errors::OrRaise;
use crate::work;
use latten::{Gpu, GpuOptions};
use pyo3::prelude::*;
use std::sync::Mutex;

/// A GPU, or a software one where there is no other.
#[pyclass(frozen, module = "latten", name = "Gpu")]
pub(crate) struct PyGpu {
    pub(crate) gpu: Gpu,
}

/// The one that calls without a device take.
static SHARED: Mutex<Option<Gpu>> = Mutex::new(None);

/// Opens a device while other threads of Python run.
fn open(py: Python<'_>, options: GpuOptions) -> PyResult<Gpu> {
    work::wait(py, move |_| pollster::block_on(Gpu::with_options(options)))?.or_raise(py)
}

/// The device of a call, or the process's own, which is opened once.
pub(crate) fn of(py: Python<'_>, gpu: Option<&PyGpu>) -> PyResult<Gpu> {
    if let Some(given) = gpu {
        return Ok(given.gpu.clone());
    }
    if let Some(shared) = work::locked(&SHARED).clone() {
        return Ok(shared);
    }
    // Two threads may both open one: the first is kept.
    let opened = open(py, GpuOptions::default())?;
    Ok(work::locked(&SHARED).get_or_insert(opened).clone())
}

#[pymethods]
impl PyGpu {
    #[new]
    #[pyo3(signature = (*, adapter = None, tier = None))]
    fn new(py: Python<'_>, adapter: Option<String>, tier: Option<&str>) -> PyResult<Self> {
        let tier = tier.map(str::parse).transpose().or_raise(py)?;
        Ok(PyGpu { gpu: open(py, GpuOptions { adapter, tier, ..Default::default() })? })
    }

    #[staticmethod]
    fn shared(py: Python<'_>) -> PyResult<Self> {
        Ok(PyGpu { gpu: of(py, None)? })
    }

    #[getter]
    fn adapter(&self) -> &str {
        &self.gpu.capabilities().adapter
    }

    #[getter]
    fn backend(&self) -> String {
        self.gpu.capabilities().backend.to_string()
    }

    #[getter]
    fn tier(&self) -> String {
        self.gpu.capabilities().tier.to_string()
    }

    #[getter]
    fn is_software(&self) -> bool {
        self.gpu.capabilities().is_software()
    }

    fn __repr__(&self) -> String {
        format!("<latten.Gpu {:?}, {} kernels>", self.adapter(), self.tier())
    }
}
