"""Writes groups.json: matrices in 4 bits, packed as AutoAWQ ("gemm") and AutoGPTQ write them, and what they stand for.

    python3 tests/vectors/groups.py

Needs numpy. Integers, zeros and scales come first; the tensors are packed of them by the rules of those programs, and the values
are computed of them: w[output, input] = scale * (q - zero) in f32, which is exact. So nothing here unpacks a tensor.
"""

import json
import os

import numpy as np

# Which output each integer of a word of AWQ's is.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack_inputs(numbers):
    """(in, out) -> (in / 8, out): word [i, o] has inputs 8i .. 8i + 7 of output o, the first one in its lowest bits."""
    words = np.zeros((numbers.shape[0] // 8, numbers.shape[1]), np.uint32)
    for i in range(8):
        words |= numbers[i::8].astype(np.uint32) << np.uint32(4 * i)
    return words


def pack_outputs(numbers, order):
    """(in, out) -> (in, out / 8)."""
    words = np.zeros((numbers.shape[0], numbers.shape[1] // 8), np.uint32)
    for i, output in enumerate(order):
        words |= numbers[:, output::8].astype(np.uint32) << np.uint32(4 * i)
    return words


def case(rng, packing, group, in_dim, out_dim, symmetric):
    groups = in_dim // group
    q = rng.integers(0, 16, (in_dim, out_dim))
    zeros = np.full((groups, out_dim), 8) if symmetric else rng.integers(0, 16, (groups, out_dim))
    scales = rng.uniform(0.001, 0.1, (groups, out_dim)).astype(np.float16)
    # Subnormal, the largest that is allowed, and negative ones.
    scales[0, 0], scales[-1, -1], scales[0, 1] = 3e-7, 1000.0, -0.03
    of_input = np.arange(in_dim) // group
    values = scales[of_input].astype(np.float32) * (q - zeros[of_input]).astype(np.float32)
    if packing == "awq":
        qweight, qzeros = pack_outputs(q, AWQ_ORDER), pack_outputs(zeros, AWQ_ORDER)
    else:
        stored = (zeros - 1) % 16 if packing == "gptq" else zeros
        qweight, qzeros = pack_inputs(q), pack_outputs(stored, range(8))
    return {
        "packing": packing,
        "group": group,
        "shape": [out_dim, in_dim],
        "qweight": {"shape": list(qweight.shape), "bytes": qweight.tobytes().hex()},
        "qzeros": {"shape": list(qzeros.shape), "bytes": qzeros.tobytes().hex()},
        "scales": {"shape": list(scales.shape), "bytes": scales.tobytes().hex()},
        # (out, in)
        "values": np.ascontiguousarray(values.T).tobytes().hex(),
    }


def main():
    rng = np.random.default_rng(4)
    shapes = [(32, 64, 24), (64, 128, 16), (128, 256, 8), (256, 256, 8), (96, 96, 16)]
    cases = [
        case(rng, packing, *shape, symmetric)
        for packing in ["awq", "gptq", "gptq_v2"]
        for shape in (shapes if packing != "gptq_v2" else shapes[:1])
        for symmetric in ([False, True] if shape[0] == 32 else [False])
    ]
    folder = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, "groups.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
