"""What mypy is to find well typed, and (marked) ill typed: `./dev test-python` runs it in its strict form."""

import numpy as np

import latten

heads: latten.HeadLayout = latten.HeadLayout.gla(q_heads=8, latent_heads=2, latent_dim=32, rope_dim=16)
cache = latten.PagedKvCache(heads, dtype="i8", rope=latten.Rope(heads.rotated_dim))
sequence = cache.insert()
cache.append([sequence], np.zeros((1, heads.kv_dim), np.float32))
decode = latten.Decode(heads, dtype="i8")
out, lse = decode.run(decode.plan(cache, [sequence]), cache, np.zeros((1, 8, heads.q_dim), np.float32), softmax_scale=0.1)
largest: np.float32 = out.max()
model = latten.Model.load(latten.shipped("gla"))
text: str = "".join(token.text for token in model.generate("ROMEO:", max_tokens=3))
try:
    model.logits([1, 2, 3])
except latten.errors.CacheFullError as error:
    missing: int = error.needed - error.free

cache.append([sequence], [[0.0]])  # type: ignore[arg-type]
latten.PagedKvCache(heads, dtype="f8")  # type: ignore[arg-type]
latten.Decode(dtype="f16")  # type: ignore[call-arg]
model.generate(3.0)  # type: ignore[arg-type]
