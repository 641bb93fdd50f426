"""The definitions against numpy, in float64."""

import numpy as np
import pytest
from conftest import VARIANTS, layout
from oracle import attend, rotate

import latten
from latten import reference


def rows(variant, tokens, seed=3):
    heads, random = layout(variant), np.random.default_rng(seed)
    kv = random.standard_normal((tokens, heads.kv_dim))
    q = random.standard_normal((4, heads.q_heads, heads.q_dim))
    return heads, kv, q


def cached(heads, kv):
    """Rotated, and cut into states and rope keys."""
    kept = reference.append(heads, kv, list(range(len(kv))), latten.Rope(heads.rotated_dim))
    split = heads.groups * heads.state_dim
    states = np.ascontiguousarray(kept[:, :split]).reshape(len(kv), heads.groups, heads.state_dim)
    return states, np.ascontiguousarray(kept[:, split:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention(variant):
    heads, kv, q = rows(variant, 19)
    states, keys = cached(heads, kv)
    out, lse = reference.decode(heads, q, states, keys, softmax_scale=0.25)
    want = attend(variant, VARIANTS[variant], q, kv, 0.25)
    # Angles are rounded to f32, as those of the kernels.
    assert np.abs(out - want[0]).max() < 1e-5 and np.abs(lse - want[1]).max() < 1e-5


def test_parts_of_a_context_merge_to_the_whole():
    heads, kv, q = rows("gla", 24)
    states, keys = cached(heads, kv)
    cut = [(0, 9), (9, 24)]
    parts = [
        reference.decode(heads, q, states[a:b].copy(), keys[a:b].copy(), softmax_scale=0.25, causal=False) for a, b in cut
    ]
    whole = reference.decode(heads, q, states, keys, softmax_scale=0.25, causal=False)
    merged = reference.merge(parts)
    assert np.allclose(merged[0], whole[0], atol=1e-12) and np.allclose(merged[1], whole[1], atol=1e-12)


def test_pieces():
    random = np.random.default_rng(5)
    x, gain, weight = random.standard_normal((3, 8)), random.standard_normal(8), random.standard_normal((6, 8))
    norm = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gain
    assert np.allclose(reference.rms_norm(x, gain, eps=1e-6), norm)
    assert np.allclose(reference.linear(x, weight, np.arange(6.0)), x @ weight.T + np.arange(6))
    gate, up = np.split(x, 2, -1)
    assert np.allclose(reference.swiglu(x), gate / (1 + np.exp(-gate)) * up)
    heads = random.standard_normal((3, 2, 8))
    assert np.allclose(reference.rope(heads, [0, 5, 70], latten.Rope(8)), rotate(heads, [0, 5, 70]), atol=1e-5)
    assert reference.sample(np.array([0.0, 3.0, 1.0])) == 1
    assert reference.sample(np.log(np.array([0.5, 0.25, 0.25])), temperature=1.0, u=0.8) == 2


def test_integers_of_a_cache():
    heads, kv, _ = rows("mla", 4)
    for dtype, levels in (("i8", 127), ("i4", 7)):
        held = reference.round_to(heads, kv, dtype)
        steps = held[:, :32] * levels / np.abs(kv[:, :32]).max(-1, keepdims=True)
        assert np.abs(steps - np.round(steps)).max() < 1e-4
        assert np.abs(steps).max() <= levels + 1e-4


def test_what_does_not_fit_is_refused():
    heads, kv, q = rows("gla", 4)
    states, keys = cached(heads, kv)
    with pytest.raises(latten.errors.ShapeError, match=r"rope_keys has shape \(3, 16\), wanted \(4, 16\)"):
        reference.decode(heads, q, states, keys[:3].copy(), softmax_scale=1.0)
    with pytest.raises(latten.errors.DTypeError, match="q has dtype float32, wanted float64"):
        reference.decode(heads, q.astype(np.float32), states, keys, softmax_scale=1.0)
    with pytest.raises(latten.errors.ArgumentError, match="partials"):
        reference.merge([])
    with pytest.raises(latten.errors.ShapeError):
        reference.swiglu(np.zeros((2, 3)))
