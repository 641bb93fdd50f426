"""What the oracles of tests/vectors/hf share: weights that follow from their names, and vectors.json."""

import json
import os

import numpy as np
import torch

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "vectors", "hf")


def random_bytes(seed, count):
    """Of `count` draws of SplitMix64 the top byte."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(56)).astype(np.int64)


def bytes_of(name, shape):
    """As many as a tensor of this shape has elements, by its name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) % 2**64
    return random_bytes(seed, int(np.prod(shape)))


def packed_values(name, shape):
    """The bytes of a tensor of MXFP4: any codes, and scales of 2^-6 to 2^-3."""
    draws = bytes_of(name, shape)
    made = draws if name.endswith("_blocks") else 121 + (draws & 3)
    return torch.tensor(made, dtype=torch.uint8).reshape(shape)


def values(name, shape):
    """The weights of a tensor, exact in bf16 and f16: the same as in tests/hf/model.rs."""
    draws = bytes_of(name, shape) - 128
    if "norm" in name:
        made = 1.0 + (draws >> 3) / 64.0
    else:
        made = draws / 512.0
    return torch.tensor(made, dtype=torch.float32).reshape(shape)


@torch.no_grad()
def run(model, seed, prompt, new, vocab):
    """Prompt, greedy tokens, logits of all of them, and the least distance of a best logit from the second."""
    tokens = [int(t) for t in np.random.default_rng(seed).integers(0, vocab, prompt)]
    gap = float("inf")
    for _ in range(new):
        best = model(torch.tensor(tokens))[-1].topk(2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
    return tokens, model(torch.tensor(tokens[:-1])), gap


def write_vectors(name, model, tensors, prompt, new, vocab):
    """Of `model`, tokens -> logits, whose tensors have these shapes: prompt, greedy tokens, some of the logits."""
    # The first position, two inside, the prompt's last, the last greedy token fed.
    positions = [0, 9, 16, prompt - 1, prompt + new - 2]
    # Of twenty prompts the one whose greedy tokens are most clearly decided.
    tokens, logits, gap = max((run(model, seed, prompt, new, vocab) for seed in range(20)), key=lambda made: made[2])
    vectors = {
        "tensors": dict(sorted(tensors.items())), "prompt": tokens[:prompt], "greedy": tokens[prompt:],
        "min_gap": float(f"{gap:.3g}"), "positions": positions,
        "logits": [[float(f"{v:.6g}") for v in logits[p].tolist()] for p in positions],
    }
    with open(os.path.join(OUT, name, "vectors.json"), "w") as file:
        json.dump(vectors, file, separators=(",", ":"))
        file.write("\n")
    rms = float(logits.pow(2).mean().sqrt())
    print(f"{name}: logits of {rms:.3f} rms, decided by {gap:.3g}, {len(set(tokens[prompt:]))} different tokens")
