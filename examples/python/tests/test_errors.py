"""What is refused, with its kind and numbers; nothing is changed by it."""

import numpy as np
import pytest
from conftest import layout

import latten
from latten import errors


@pytest.fixture(scope="module")
def parts():
    heads = layout("gla")
    cache = latten.PagedKvCache(heads, dtype="f32", pages=4, page_size=16)
    return heads, cache, latten.Decode(heads, dtype="f32")


@pytest.fixture
def step(parts):
    heads, cache, decode = parts
    sequence = cache.insert()
    cache.reserve([sequence], 2)
    yield heads, cache, decode, sequence
    cache.remove(sequence)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_all_are_of_one_family_and_of_pythons_own():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) == 21 and all(issubclass(kind, latten.LattenError) for kind in kinds)
    assert issubclass(errors.ShapeError, ValueError) and issubclass(errors.DTypeError, TypeError)
    assert issubclass(errors.IoError, OSError) and issubclass(errors.OutOfMemoryError, MemoryError)


def test_shapes(step):
    heads, cache, decode, sequence = step
    for bad in (zeros(2, heads.kv_dim - 1), zeros(3, heads.kv_dim), zeros(0, heads.kv_dim)):
        with pytest.raises(errors.ShapeError) as caught:
            cache.append([sequence], bad)
        assert str(bad.shape[0]) in str(caught.value)
    with pytest.raises(errors.ShapeError) as caught:
        cache.append([sequence], zeros(2 * heads.kv_dim))
    assert (caught.value.name, caught.value.got, caught.value.want) == ("kv", f"({2 * heads.kv_dim},)", "(tokens, kv_dim)")
    cache.append([sequence], zeros(2, heads.kv_dim))
    plan = decode.plan(cache, [sequence])
    with pytest.raises(errors.ShapeError) as caught:
        decode.run(plan, cache, zeros(2, 8, 7), softmax_scale=1.0)
    assert caught.value.name == "q"


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool", "complex64", ">f4"])
def test_dtypes_are_not_converted(step, dtype):
    heads, cache, _, sequence = step
    with pytest.raises(errors.DTypeError) as caught:
        cache.append([sequence], np.zeros((2, heads.kv_dim), dtype))
    assert (caught.value.name, caught.value.want) == ("kv", "float32")
    assert caught.value.got == str(np.dtype(dtype))


@pytest.mark.parametrize("value", [[1.0, 2.0], "text", 3.0, None, object()])
def test_what_is_no_array(step, value):
    _, cache, _, sequence = step
    with pytest.raises(errors.DTypeError, match="__dlpack__"):
        cache.append([sequence], value)


def test_what_is_not_dense(step):
    heads, cache, _, sequence = step
    wide = zeros(2, 2 * heads.kv_dim)
    for bad in (wide[:, ::2], np.asfortranarray(zeros(2, heads.kv_dim)), zeros(2, heads.kv_dim)[::-1]):
        with pytest.raises(errors.ArgumentError, match="ascontiguousarray") as caught:
            cache.append([sequence], bad)
        assert caught.value.name == "kv"
    read_only = zeros(2, heads.kv_dim)
    read_only.flags.writeable = False
    cache.append([sequence], read_only)


def test_numbers(step):
    heads, cache, decode, sequence = step
    with pytest.raises(errors.ArgumentError) as caught:
        latten.HeadLayout.gqa(q_heads=8, kv_heads=3, head_dim=32)
    assert caught.value.name == "kv_heads" and "8" in str(caught.value)
    for call, name in (
        (lambda: latten.PagedKvCache(heads, page_size=3), "pages.size"),
        (lambda: latten.PagedKvCache(heads, dtype="f8"), "dtype"),
        (lambda: latten.Decode(heads, softcap=-1.0), "softcap"),
        (lambda: latten.Rope(16, pairs="thirds"), "pairs"),
        (lambda: latten.Gpu(tier="fastest"), "tier"),
        (lambda: latten.shipped("mqa"), "variant"),
        (lambda: cache.append([sequence], zeros(2, heads.kv_dim), layer=9), "layer"),
        (lambda: cache.truncate(sequence, 99), "len"),
    ):
        with pytest.raises(errors.ArgumentError) as caught:
            call()
        assert caught.value.name == name
    plan = decode.plan(cache, [sequence])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(errors.ArgumentError, match="softmax_scale"):
            decode.run(plan, cache, zeros(2, 8, heads.q_dim), softmax_scale=bad)
    with pytest.raises(errors.ArgumentError, match="sinks"):
        decode.run(plan, cache, zeros(2, 8, heads.q_dim), softmax_scale=1.0, sinks=zeros(8))
    with pytest.raises(OverflowError):
        cache.reserve([sequence], -1)


def test_sequences_and_plans(step):
    heads, cache, decode, sequence = step
    with pytest.raises(errors.CacheFullError) as caught:
        cache.reserve([sequence], 1000)
    assert (caught.value.needed, caught.value.free) == (62, 3)
    with pytest.raises(errors.RepeatedSequenceError):
        cache.reserve([sequence, sequence], 1)
    plan = decode.plan(cache, [sequence])
    cache.commit([sequence], 1)
    with pytest.raises(errors.StalePlanError):
        decode.run(plan, cache, zeros(2, 8, heads.q_dim), softmax_scale=1.0)
    other = latten.PagedKvCache(heads, dtype="f32", pages=2, page_size=16)
    with pytest.raises(errors.UnknownSequenceError) as unknown:
        other.len(sequence)
    assert isinstance(unknown.value.id, int)
    assert cache.len(sequence) == 1


def test_a_device_that_is_not_there():
    with pytest.raises(errors.NoAdapterError) as caught:
        latten.Gpu(adapter="no such adapter")
    assert caught.value.hint and "no such adapter" in str(caught.value)
