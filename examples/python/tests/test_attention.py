"""Append, decode and prefill of all variants and cache types against numpy."""

import numpy as np
import pytest
from conftest import VARIANTS, layout
from oracle import attend, rotate

import latten

# Rows of a cache are rounded to its type; of i8 and i4 to integers of a step of 1/127 and 1/7 of a span's largest value.
TOLERANCE = {"f32": 2e-5, "f16": 2e-3, "bf16": 2e-2, "i8": 2e-2}
CASES = [(variant, "f32") for variant in VARIANTS] + [("gla", "f16"), ("gta", "bf16"), ("gqa", "i8")]


class Run:
    """A cache, and the rows and queries that were given to it."""

    def __init__(self, variant, dtype="f32", pages=16, **options):
        self.variant, self.numbers, self.heads = variant, VARIANTS[variant], layout(variant)
        rope = latten.Rope(self.heads.rotated_dim)
        self.cache = latten.PagedKvCache(self.heads, dtype=dtype, pages=pages, page_size=16, rope=rope)
        self.decode = latten.Decode(self.heads, dtype=dtype, **options)
        self.rows, self.random = {}, np.random.default_rng(7)

    def add(self):
        sequence = self.cache.insert()
        self.rows[sequence] = np.zeros((0, self.heads.kv_dim), np.float32)
        return sequence

    def queries(self, first, count):
        q = self.random.standard_normal((count, self.heads.q_heads, self.heads.q_dim))
        turned = self.heads.rotated_dim
        q[..., -turned:] = rotate(q[..., -turned:], np.arange(first, first + count))
        return q.astype(np.float32)

    def step(self, wanted, sinks=None, **options):
        """New tokens in each sequence: what latten and numpy give."""
        self.cache.reserve_each(list(wanted.items()))
        want, queries, new = [], [], []
        for sequence, count in wanted.items():
            before = self.rows[sequence]
            rows = self.random.standard_normal((count, self.heads.kv_dim)).astype(np.float32)
            queries.append(self.queries(len(before), count))
            self.rows[sequence] = np.concatenate([before, rows])
            new.append(rows)
            want.append(attend(self.variant, self.numbers, queries[-1], self.rows[sequence], 0.2, sinks=sinks, **options))
        ids = list(wanted)
        plan = self.decode.plan(self.cache, ids)
        self.cache.append(ids, np.concatenate(new))
        got = self.decode.run(plan, self.cache, np.concatenate(queries), softmax_scale=0.2, sinks=sinks)
        for sequence, count in wanted.items():
            self.cache.commit([sequence], count)
        return got, tuple(np.concatenate(part) for part in zip(*want))


def close(got, want, tolerance):
    for name, mine, theirs in zip(("out", "lse"), got, want):
        assert mine.dtype == np.float32 and mine.shape == theirs.shape
        assert np.abs(mine - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max()), name


@pytest.mark.parametrize("variant,dtype", CASES)
def test_prefill_and_decode_are_what_numpy_computes(variant, dtype):
    run = Run(variant, dtype)
    first, second = run.add(), run.add()
    close(*run.step({first: 37}), TOLERANCE[dtype])  # a prompt
    close(*run.step({first: 1, second: 20}), TOLERANCE[dtype])  # a batch of both kinds
    close(*run.step({first: 1, second: 1}), TOLERANCE[dtype])
    assert (run.cache.len(first), run.cache.len(second)) == (39, 21)


def test_four_bits_are_near():
    run = Run("gla", "i4")
    (out, _), (want, _) = run.step({run.add(): 24})
    error = np.sqrt(np.mean((out - want) ** 2) / np.mean(want**2))
    assert 1e-3 < error < 0.25


def test_options_are_those_of_numpy():
    sinks = np.linspace(-1, 1, 8).astype(np.float32)
    run = Run("gta", window=9, softcap=1.5, sinks=True)
    sequence = run.add()
    close(*run.step({sequence: 30}, sinks=sinks, window=9, softcap=1.5), 2e-5)
    close(*run.step({sequence: 1}, sinks=sinks, window=9, softcap=1.5), 2e-5)


def test_a_long_sequence_is_split_and_merged():
    run = Run("mla", pages=160)
    sequence = run.add()
    run.step({sequence: 2400})
    (out, lse), want = run.step({sequence: 1})
    close((out, lse), want, 2e-5)


def test_forked_sequences_share_pages_and_go_apart():
    run = Run("gqa")
    parent = run.add()
    run.step({parent: 20})
    child = run.cache.fork(parent)
    run.rows[child] = run.rows[parent]
    assert run.cache.stats()["shared"] == 2
    close(*run.step({parent: 1, child: 2}), 2e-5)
    assert run.cache.stats()["shared"] == 1
    run.cache.truncate(child, 5)
    run.rows[child] = run.rows[child][:5]
    close(*run.step({child: 3}), 2e-5)
    run.cache.remove(parent)
    with pytest.raises(latten.errors.UnknownSequenceError):
        run.cache.len(parent)


def test_layers_have_rows_of_their_own():
    heads = layout("gla")
    cache = latten.PagedKvCache(heads, dtype="f32", pages=2, page_size=16, layers=2)
    decode = latten.Decode(heads, dtype="f32")
    sequence = cache.insert()
    cache.reserve([sequence], 1)
    plan = decode.plan(cache, [sequence])
    q = np.ones((1, 8, heads.q_dim), np.float32)
    for layer in range(2):
        cache.append([sequence], np.full((1, heads.kv_dim), layer + 1.0, np.float32), layer=layer)
    for layer in range(2):
        out, _ = decode.run(plan, cache, q, softmax_scale=0.1, layer=layer)
        assert np.array_equal(out, np.full_like(out, layer + 1.0))


class OnHost:
    """An array of another library: all that it has is DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, *args, **kwargs):
        return self.array.__dlpack__(*args, **kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_arrays_of_others_come_and_go_by_dlpack():
    heads = layout("mla")
    cache = latten.PagedKvCache(heads, dtype="f32", pages=2, page_size=16)
    decode = latten.Decode(heads, dtype="f32")
    sequence = cache.insert()
    cache.reserve([sequence], 2)
    random = np.random.default_rng(1)
    kv = random.standard_normal((2, heads.kv_dim)).astype(np.float32)
    q = random.standard_normal((2, 8, heads.q_dim)).astype(np.float32)
    plan = decode.plan(cache, [sequence])
    cache.append([sequence], OnHost(kv))
    out, _ = decode.run(plan, cache, OnHost(q), softmax_scale=0.3)
    again, _ = decode.run(plan, cache, q, softmax_scale=0.3)
    assert np.array_equal(out, again)
    assert np.from_dlpack(OnHost(out)).base is not None
    with pytest.raises(latten.errors.DTypeError, match="float64"):
        cache.append([sequence], OnHost(kv.astype(np.float64)))


def test_angles_of_reserved_tokens():
    heads = layout("gla")
    cache = latten.PagedKvCache(heads, rope=latten.Rope(heads.rotated_dim), pages=4)
    sequence = cache.insert()
    cache.reserve([sequence], 3)
    table = cache.cos_sin([sequence])
    angle = np.arange(3)[:, None] * 10_000.0 ** (-np.arange(8) / 8)
    assert np.allclose(table, np.stack([np.cos(angle), np.sin(angle)], -1), atol=1e-6)
