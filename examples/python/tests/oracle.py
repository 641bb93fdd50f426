"""Attention in numpy, from the paper's equations alone: no code of latten's is used or followed."""

import numpy as np


def rotate(x, positions, theta=10_000.0):
    """Pairs (i, i + d/2) of the last axis, at the positions of the first."""
    half = x.shape[-1] // 2
    angle = np.asarray(positions, np.float64)[:, None] * theta ** (-np.arange(half) / half)
    turn = np.exp(1j * angle).reshape(len(positions), *([1] * (x.ndim - 2)), half)
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def keys_values(variant, numbers, kv, theta=10_000.0):
    """Of all query heads, from rows that are not rotated: (q_heads, tokens, q_dim) and (q_heads, tokens, v_dim)."""
    tokens, heads = kv.shape[0], numbers["q_heads"]
    at = np.arange(tokens)
    if variant == "gqa":
        groups, dim = numbers["kv_heads"], numbers["head_dim"]
        rows = kv.reshape(tokens, groups, 2, dim)
        keys, values = rotate(rows[:, :, 0], at, theta), rows[:, :, 1]
    else:
        groups = numbers.get("kv_heads", numbers.get("latent_heads", 1))
        dim, rope = numbers.get("head_dim", numbers.get("latent_dim")), numbers["rope_dim"]
        states = kv[:, : groups * dim].reshape(tokens, groups, dim)
        turned = np.repeat(rotate(kv[:, groups * dim :], at, theta)[:, None], groups, 1)
        plain = states[..., : dim - rope] if variant == "gta" else states
        keys, values = np.concatenate([plain, turned], -1), states
    spread = lambda x: np.repeat(x, heads // groups, 1).transpose(1, 0, 2)
    return spread(keys), spread(values)


def attend(variant, numbers, q, kv, scale, window=None, sinks=None, softcap=None):
    """`q` (new, heads, q_dim), rotated, are the last tokens of `kv` (tokens, kv_dim). Outputs and log-sum-exps."""
    keys, values = keys_values(variant, numbers, kv.astype(np.float64))
    scores = scale * np.einsum("mhd,htd->mht", q.astype(np.float64), keys)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    own = np.arange(kv.shape[0] - q.shape[0], kv.shape[0])[:, None, None]
    there = np.arange(kv.shape[0])[None, None, :]
    seen = there <= own
    if window is not None:
        seen &= there > own - window
    scores = np.where(seen, scores, -np.inf)
    most = scores.max(-1, keepdims=True)
    weights = np.exp(scores - most)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(np.asarray(sinks, np.float64)[None, :, None] - most)
    return np.einsum("mht,htv->mhv", weights / total, values), (most + np.log(total))[..., 0]
