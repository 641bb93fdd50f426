"""Writes blocks.json beside this script: python3 tests/vectors/blocks.py, with the PyPI packages gguf and numpy.

What that package's dequantize and quantize make of blocks of every type, for tests/reference/blocks.rs. Nothing in the build or
the tests runs this: the committed file stands alone.

- "blocks": some blocks in hexadecimal, and the bits of the f32 values that they stand for, each in 8 digits.
- "sum": of many more blocks, made by `random_bytes` (the test has the same), the sum over i of (2 i + 1) bits_i modulo 2^64.
- "quantised": of values made from `random_bytes`, the sum over i of (2 i + 1) byte_i of their blocks.
"""

import json
import pathlib

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES

# Where a block's f16 numbers lie.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}
MANY = 600


def random_bytes(count, seed):
    """The upper bytes of a linear congruential generator of 32 bits."""
    state, out = seed, bytearray()
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append(state >> 24)
    return np.frombuffer(bytes(out), dtype=np.uint8).copy()


def weighed(numbers):
    numbers = numbers.astype(np.uint64).ravel()
    return int(np.sum(numbers * (2 * np.arange(len(numbers), dtype=np.uint64) + 1), dtype=np.uint64))


def bits(values):
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def finite(blocks, halves):
    """Exponents of all ones lose their lowest bit."""
    for at in halves:
        odd = blocks[:, at + 1] & 0x7C == 0x7C
        blocks[odd, at + 1] &= 0xFB
    return blocks


def special(name, size):
    """Zeros; all bits; the largest and smallest scales, of either sign, over codes of all kinds."""
    rows = [np.zeros(size, np.uint8)]
    scales = [0x7BFF, 0xFBFF, 0x0001, 0x83FF] if HALVES[name] else [0, 1, 2, 252]
    for seed, scale in enumerate(scales):
        row = random_bytes(size, 77 + seed)
        for at in HALVES[name]:
            row[at : at + 2] = np.array([scale], np.uint16).view(np.uint8)
        if not HALVES[name]:
            row[0] = scale
        rows.append(row)
    return np.array(rows)


def case(name):
    kind = Type[name]
    _, size = GGML_QUANT_SIZES[kind]
    few = finite(np.concatenate([special(name, size), random_bytes(size, 5).reshape(1, size)]), HALVES[name])
    values = bits(quants.dequantize(few, kind))
    many = finite(random_bytes(MANY * size, 9).reshape(MANY, size), HALVES[name])
    return {
        "blocks": few.tobytes().hex(),
        "values": "".join(f"{v:08x}" for v in values.ravel()),
        "sum": str(weighed(bits(quants.dequantize(many, kind)))),
    }


def quantised(name):
    """Of runs of 32 values of many sizes, a run of zeros among them."""
    raw = random_bytes(MANY * 32 * 2, 3).astype(np.float32).reshape(-1, 2)
    values = (raw[:, 0] - 128) / 64 + (raw[:, 1] - 128) / 16384
    exponents = (np.arange(MANY) % 23 - 16).astype(np.float32)
    values = values.reshape(MANY, 32).astype(np.float32) * np.exp2(exponents)[:, None]
    values[7] = 0
    return str(weighed(quants.quantize(values.astype(np.float32), Type[name])))


with np.errstate(over="ignore"):
    out = {"types": {name.lower(): case(name) for name in HALVES}}
    out["quantised"] = {name.lower(): quantised(name) for name in ["Q8_0", "Q4_0"]}
path = pathlib.Path(__file__).with_name("blocks.json")
path.write_text(json.dumps(out, separators=(",", ":")).replace('},"', '},\n"') + "\n")
