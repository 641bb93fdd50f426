//! The definitions of the kernels: f64 loops on the host, as functions of the module `latten.reference`.

use crate::arrays::{elements, made};
use crate::attention::Attended;
use crate::errors::{argument, OrRaise};
use crate::heads::{PyHeadLayout, PyRope};
use latten::{reference, RopePairs};
use numpy::PyArrayDyn;
use pyo3::prelude::*;

type Array<'py> = Bound<'py, PyArrayDyn<f64>>;

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let own = PyModule::new(module.py(), "reference")?;
    own.add_function(wrap_pyfunction!(decode, &own)?)?;
    own.add_function(wrap_pyfunction!(append, &own)?)?;
    own.add_function(wrap_pyfunction!(merge, &own)?)?;
    own.add_function(wrap_pyfunction!(round_to, &own)?)?;
    own.add_function(wrap_pyfunction!(rope, &own)?)?;
    own.add_function(wrap_pyfunction!(rms_norm, &own)?)?;
    own.add_function(wrap_pyfunction!(linear, &own)?)?;
    own.add_function(wrap_pyfunction!(swiglu, &own)?)?;
    own.add_function(wrap_pyfunction!(sample, &own)?)?;
    module.add_submodule(&own)
}

/// The definition's rotation of the numbers of the kernels' one.
fn rotation(py: Python<'_>, rope: &PyRope) -> PyResult<reference::Rope> {
    let pairs = match rope.rope.pairs {
        RopePairs::Interleaved => reference::RopePairs::Interleaved,
        _ => reference::RopePairs::Half,
    };
    reference::Rope::new(rope.theta, rope.rope.rope_dim(), pairs).or_raise(py)
}

/// One sequence's attention; all positions from its last token backwards.
#[pyfunction]
#[pyo3(signature = (heads, q, states, rope_keys, *, softmax_scale, causal = true, softcap = None, window = None, keep_first = 0, sinks = None))]
#[allow(clippy::too_many_arguments)] // Python's are named
fn decode<'py>(
    py: Python<'py>,
    heads: PyHeadLayout,
    q: &Bound<'py, PyAny>,
    states: &Bound<'py, PyAny>,
    rope_keys: &Bound<'py, PyAny>,
    softmax_scale: f64,
    causal: bool,
    softcap: Option<f64>,
    window: Option<usize>,
    keep_first: usize,
    sinks: Option<&Bound<'py, PyAny>>,
) -> PyResult<Attended<'py, f64>> {
    let layout = heads.heads;
    let (q, shape) = elements::<f64>(q, "q", &["tokens", "q_heads", "q_dim"])?;
    expect(py, "q", &shape, &[shape[0], layout.q_heads(), layout.q_dim()])?;
    let (states, kept) = elements::<f64>(states, "states", &["kv_len", "groups", "state_dim"])?;
    expect(py, "states", &kept, &[kept[0], layout.groups(), layout.state_dim()])?;
    let (rope_keys, keys) = elements::<f64>(rope_keys, "rope_keys", &["kv_len", "rope_dim"])?;
    expect(py, "rope_keys", &keys, &[kept[0], layout.rope_dim()])?;
    let sinks = sinks.map(|sinks| elements::<f64>(sinks, "sinks", &["q_heads"])).transpose()?.unwrap_or_default().0;
    let attended = py.detach(|| {
        let step = reference::DecodeInputs { q: &q, states: &states, rope_keys: &rope_keys, softmax_scale, causal };
        let options = reference::DecodeOptions { softcap, window, keep_first, sinks: &sinks };
        reference::decode_with(&layout, &step, &options)
    });
    let attended = attended.or_raise(py)?;
    let lse = made(py, attended.lse, &[shape[0], layout.q_heads()])?;
    Ok((made(py, attended.out, &[shape[0], layout.q_heads(), layout.v_dim()])?, lse))
}

/// Rows as a cache holds them: rotated to their positions.
#[pyfunction]
fn append<'py>(
    py: Python<'py>,
    heads: PyHeadLayout,
    kv: &Bound<'py, PyAny>,
    positions: Vec<u32>,
    rope: &PyRope,
) -> PyResult<Array<'py>> {
    let (mut kv, shape) = elements::<f64>(kv, "kv", &["tokens", "kv_dim"])?;
    expect(py, "kv", &shape, &[positions.len(), heads.heads.kv_dim()])?;
    let rotation = rotation(py, rope)?;
    for (row, position) in kv.chunks_exact_mut(heads.heads.kv_dim()).zip(&positions) {
        reference::append(&heads.heads, row, *position, &rotation).or_raise(py)?;
    }
    made(py, kv, &shape)
}

/// What a cache of integers holds of rows.
#[pyfunction]
fn round_to<'py>(py: Python<'py>, heads: PyHeadLayout, kv: &Bound<'py, PyAny>, dtype: &str) -> PyResult<Array<'py>> {
    let round = match dtype {
        "i8" => reference::round_to_i8,
        "i4" => reference::round_to_i4,
        other => return Err(argument(py, "dtype", &format!("{other:?} is not i8 or i4"))),
    };
    let (mut kv, shape) = elements::<f64>(kv, "kv", &["tokens", "kv_dim"])?;
    expect(py, "kv", &shape, &[shape[0], heads.heads.kv_dim()])?;
    kv.chunks_exact_mut(heads.heads.kv_dim()).try_for_each(|row| round(&heads.heads, row)).or_raise(py)?;
    made(py, kv, &shape)
}

/// Joins partial results over disjoint tokens.
#[pyfunction]
fn merge<'py>(py: Python<'py>, partials: Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>) -> PyResult<Attended<'py, f64>> {
    let (mut parts, mut first): (Vec<reference::Attended>, Option<Vec<usize>>) = (Vec::new(), None);
    for (out, lse) in &partials {
        let (out, shape) = elements::<f64>(out, "out", &["tokens", "q_heads", "v_dim"])?;
        let (lse, rows) = elements::<f64>(lse, "lse", &["tokens", "q_heads"])?;
        let want = first.get_or_insert_with(|| shape.clone());
        expect(py, "out", &shape, want)?;
        expect(py, "lse", &rows, &want[..2])?;
        parts.push(reference::Attended { out, lse });
    }
    let Some(shape) = first else { return Err(argument(py, "partials", "there are none")) };
    let merged = reference::merge(&parts, shape[0] * shape[1], shape[2]).or_raise(py)?;
    let lse = made(py, merged.lse, &shape[..2])?;
    Ok((made(py, merged.out, &shape)?, lse))
}

/// Heads rotated to positions.
#[pyfunction]
fn rope<'py>(py: Python<'py>, x: &Bound<'py, PyAny>, positions: Vec<u32>, rope: &PyRope) -> PyResult<Array<'py>> {
    let (mut x, shape) = elements::<f64>(x, "x", &["tokens", "heads", "rope_dim"])?;
    expect(py, "x", &shape, &[positions.len(), shape[1], rope.rope.rope_dim()])?;
    let rotation = rotation(py, rope)?;
    let width = (shape[1] * shape[2]).max(1);
    for (token, position) in x.chunks_exact_mut(width).zip(&positions) {
        for head in token.chunks_exact_mut(shape[2]) {
            reference::rope(head, *position, &rotation).or_raise(py)?;
        }
    }
    made(py, x, &shape)
}

#[pyfunction]
#[pyo3(signature = (x, gain, *, eps = 1e-5))]
fn rms_norm<'py>(py: Python<'py>, x: &Bound<'py, PyAny>, gain: &Bound<'py, PyAny>, eps: f64) -> PyResult<Array<'py>> {
    let (x, shape) = elements::<f64>(x, "x", &["rows", "dim"])?;
    let (gain, width) = elements::<f64>(gain, "gain", &["dim"])?;
    expect(py, "x", &shape, &[shape[0], width[0]])?;
    let normed = py.detach(|| reference::rms_norm(&x, &gain, gain.len(), eps)).or_raise(py)?;
    made(py, normed, &shape)
}

#[pyfunction]
#[pyo3(signature = (x, weight, bias = None))]
fn linear<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
) -> PyResult<Array<'py>> {
    let (x, shape) = elements::<f64>(x, "x", &["rows", "in_dim"])?;
    let (weight, wide) = elements::<f64>(weight, "weight", &["out_dim", "in_dim"])?;
    expect(py, "weight", &wide, &[wide[0], shape[1]])?;
    let bias = bias.map(|bias| elements::<f64>(bias, "bias", &["out_dim"])).transpose()?.map(|(bias, _)| bias);
    let y = py.detach(|| reference::linear(&x, &weight, bias.as_deref(), shape[1])).or_raise(py)?;
    made(py, y, &[shape[0], wide[0]])
}

#[pyfunction]
fn swiglu<'py>(py: Python<'py>, gate_up: &Bound<'py, PyAny>) -> PyResult<Array<'py>> {
    let (gate_up, shape) = elements::<f64>(gate_up, "gate_up", &["rows", "2 ffn_dim"])?;
    if shape[1] % 2 != 0 {
        expect(py, "gate_up", &shape, &[shape[0], shape[1] + 1])?;
    }
    let y = py.detach(|| reference::swiglu(&gate_up, shape[1] / 2)).or_raise(py)?;
    made(py, y, &[shape[0], shape[1] / 2])
}

#[pyfunction]
#[pyo3(signature = (logits, *, temperature = 0.0, top_p = 1.0, u = 0.0))]
fn sample(py: Python<'_>, logits: &Bound<'_, PyAny>, temperature: f64, top_p: f64, u: f64) -> PyResult<usize> {
    let (logits, _) = elements::<f64>(logits, "logits", &["vocab"])?;
    py.detach(|| reference::sample(&logits, temperature, top_p, u)).or_raise(py)
}

fn expect(py: Python<'_>, name: &str, got: &[usize], want: &[usize]) -> PyResult<()> {
    if got == want {
        return Ok(());
    }
    let (got, want) = (crate::arrays::text(got), crate::arrays::text(want));
    let text = format!("{name} has shape {got}, wanted {want}");
    Err(crate::errors::exception(py, "ShapeError", &text, &[("name", &name), ("got", &got), ("want", &want)]))
}
