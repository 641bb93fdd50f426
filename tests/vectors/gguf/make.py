"""Writes tiny.gguf and tiny.json beside this script: python3 tests/vectors/gguf/make.py, with the PyPI packages gguf and numpy.

A Llama of one layer by that package's writer, with a value of every kind and tensors of several types, and what its reader finds in
it, for tests/hf/gguf.rs. Nothing in the build or the tests runs this: the committed files stand alone.
"""

import json
import pathlib

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter, quants

HERE = pathlib.Path(__file__).parent
HIDDEN, ROWS = 32, 24

writer = GGUFWriter(HERE / "tiny.gguf", "llama")
writer.add_type("model")
writer.add_name("tiny \u20ac")
writer.add_license("mit")
writer.add_block_count(1)
writer.add_context_length(64)
writer.add_embedding_length(HIDDEN)
writer.add_feed_forward_length(64)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_freq_base(5e4)
writer.add_rope_dimension_count(8)
writer.add_vocab_size(ROWS)
for value, kind in [
    (200, "UINT8"), (-3, "INT8"), (60000, "UINT16"), (-300, "INT16"), (4000000000, "UINT32"), (-70000, "INT32"),
    (2**63 + 1, "UINT64"), (-(2**62), "INT64"), (0.25, "FLOAT32"), (-1e300, "FLOAT64"), (True, "BOOL"),
]:
    writer.add_key_value(f"test.{kind.lower()}", value, GGUFValueType[kind])
writer.add_array("test.texts", ["one", "", "\u20ac"])
writer.add_array("test.counts", [1, -1, 7])
writer.add_array("test.nested", [[1, 2], [3]])

random = np.random.default_rng(7)

def add(name, shape, kind=None):
    values = random.standard_normal(shape).astype(np.float32) / 4
    if kind in (None, Type.F16):
        writer.add_tensor(name, values.astype(np.float16) if kind else 1 + values)
    else:
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)

add("token_embd.weight", (ROWS, HIDDEN), Type.Q8_0)
add("output_norm.weight", (HIDDEN,))
add("output.weight", (ROWS, HIDDEN), Type.BF16)
for name, rows, cols, kind in [
    ("attn_q", 32, HIDDEN, Type.Q4_0), ("attn_k", 16, HIDDEN, Type.Q5_0), ("attn_v", 16, HIDDEN, Type.Q5_1),
    ("attn_output", HIDDEN, 32, Type.Q4_1), ("ffn_gate", 64, HIDDEN, Type.F16), ("ffn_up", 64, HIDDEN, Type.Q8_0),
    ("ffn_down", HIDDEN, 64, Type.Q4_0),
]:
    add(f"blk.0.{name}.weight", (rows, cols), kind)
add("blk.0.attn_norm.weight", (HIDDEN,))
add("blk.0.ffn_norm.weight", (HIDDEN,))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

reader = GGUFReader(HERE / "tiny.gguf")
lists = {"test.texts": 3, "test.counts": 3, "test.nested": 2}
values = {
    key: f"a list of {lists[key]} values" if key in lists else field.contents()
    for key, field in reader.fields.items() if not key.startswith("GGUF.")
}
tensors = {
    t.name: {
        "stored": t.tensor_type.name,
        "shape": [int(d) for d in reversed(t.shape)],
        "bytes": int(t.n_bytes),
    }
    for t in reader.tensors
}
(HERE / "tiny.json").write_text(json.dumps({"values": values, "tensors": tensors}, indent=1) + "\n")
