//! Arrays in and out: numpy's, and those of other libraries by DLPack, which numpy takes without a copy where they are on the host.

use crate::errors::{argument, exception};
use numpy::{
    dtype, Element, PyArray1, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

/// The elements of an array and its shape, copied: another thread may write into it as soon as the interpreter is given away.
/// Nothing is converted: what is not of this element type, or not dense and row-major, is refused by name.
pub(crate) fn elements<T: Element + Copy>(
    value: &Bound<'_, PyAny>,
    name: &str,
    axes: &[&str],
) -> PyResult<(Vec<T>, Vec<usize>)> {
    let py = value.py();
    let array = array(value, name)?;
    let untyped = array.cast::<PyUntypedArray>()?;
    let (got, want) = (untyped.dtype(), dtype::<T>(py));
    if !got.is_equiv_to(&want) {
        let (got, want) = (got.str()?.to_string(), want.str()?.to_string());
        let text = format!("{name} has dtype {got}, wanted {want}");
        return Err(exception(py, "DTypeError", &text, &[("name", &name), ("got", &got), ("want", &want)]));
    }
    let shape = untyped.shape().to_vec();
    if shape.len() != axes.len() {
        let (got, want) = (text(&shape), format!("({})", axes.join(", ")));
        let text = format!("{name} has shape {got}, wanted {want}");
        return Err(exception(py, "ShapeError", &text, &[("name", &name), ("got", &got), ("want", &want)]));
    }
    if !untyped.is_c_contiguous() {
        let why = format!(
            "is not dense and row-major (strides of {:?} bytes); numpy.ascontiguousarray makes it so",
            untyped.strides()
        );
        return Err(argument(py, name, &why));
    }
    let typed = array.cast::<PyArrayDyn<T>>()?;
    let borrowed = typed.try_readonly().map_err(|e| argument(py, name, &e.to_string()))?;
    let slice = borrowed.as_slice().map_err(|e| argument(py, name, &e.to_string()))?;
    Ok((slice.to_vec(), shape))
}

/// The array itself, or numpy's view of what has `__dlpack__`.
fn array<'py>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    let py = value.py();
    if value.cast::<PyUntypedArray>().is_ok() {
        return Ok(value.clone());
    }
    let kind = value.get_type().name()?.to_string();
    if !value.hasattr("__dlpack__")? {
        let want = "an array of numpy's, or one with __dlpack__ on the host";
        let text = format!("{name} is of type {kind}, wanted {want}");
        return Err(exception(py, "DTypeError", &text, &[("name", &name), ("got", &kind), ("want", &want)]));
    }
    let taken = py.import("numpy")?.getattr("from_dlpack")?.call1((value,));
    taken.map_err(|e| argument(py, name, &format!("a {kind} that numpy.from_dlpack does not take: {e}")))
}

/// An array of numpy's that owns these elements.
pub(crate) fn made<'py, T: Element>(
    py: Python<'py>,
    values: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    PyArray1::from_vec(py, values).reshape(shape)
}

/// `(2, 3)`, and of one axis `(2,)`, as Python writes it.
pub(crate) fn text(shape: &[usize]) -> String {
    let numbers: Vec<String> = shape.iter().map(ToString::to_string).collect();
    match numbers.as_slice() {
        [one] => format!("({one},)"),
        all => format!("({})", all.join(", ")),
    }
}
