"""Two plots of the four variants of attention: bytes that a cached token takes, and a decode step under the roofline.

    python plots.py --out plots                                # the paper's XL shape, on the device that is here
    python plots.py --bandwidth 3350 --flops 67 --no-measure   # a roof of another device's numbers, without points
    python plots.py --quick                                    # a small shape, for a test

Needs matplotlib beside latten. The points are times of whole calls from Python (queries up, results down, wait), so small steps
lie far below the roof.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import latten

DTYPES = ("f32", "f16", "i8", "i4")
COLOURS = {"GQA": "#4477aa", "GTA": "#ee6677", "GLA-2": "#228833", "MLA": "#aa3377"}


def layouts(q_heads: int, head_dim: int) -> dict[str, latten.HeadLayout]:
    """The paper's choice for so many query heads: a quarter as many KV heads, latents of 4 head_dim in all."""
    rope = head_dim // 2
    return {
        "GQA": latten.HeadLayout.gqa(q_heads=q_heads, kv_heads=q_heads // 4, head_dim=head_dim),
        "GTA": latten.HeadLayout.gta(q_heads=q_heads, kv_heads=q_heads // 4, head_dim=head_dim, rope_dim=rope),
        "GLA-2": latten.HeadLayout.gla(q_heads=q_heads, latent_heads=2, latent_dim=2 * head_dim, rope_dim=rope),
        "MLA": latten.HeadLayout.mla(q_heads=q_heads, latent_dim=4 * head_dim, rope_dim=rope),
    }


def token_bytes(heads: latten.HeadLayout, dtype: str) -> int:
    """As the cache lays rows out, padding and scales included."""
    return latten.PagedKvCache(heads, dtype=dtype, pages=1, page_size=1).token_bytes


def plot_bytes(all_heads: dict[str, latten.HeadLayout], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    width = 0.8 / len(DTYPES)
    for i, dtype in enumerate(DTYPES):
        values = [token_bytes(heads, dtype) for heads in all_heads.values()]
        shift = (i - (len(DTYPES) - 1) / 2) * width
        bars = axes.bar(np.arange(len(all_heads)) + shift, values, width * 0.94, label=dtype)
        axes.bar_label(bars, fontsize=7, padding=1)
    axes.set_xticks(range(len(all_heads)), list(all_heads))
    axes.set_ylabel("bytes per token and layer")
    axes.set_title("What one cached token takes")
    axes.legend(title="cache")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def flop(heads: latten.HeadLayout, cached: int) -> int:
    """Of one new token's attention over so many: a multiplication and an addition per query and value element."""
    return 2 * heads.q_heads * (heads.q_dim + heads.v_dim) * cached


def measure(heads: latten.HeadLayout, dtype: str, batch: int, cached: int) -> float:
    """Seconds of one decode step, the best of five."""
    size = 64
    pages = batch * (-(-(cached + 1) // size))
    cache = latten.PagedKvCache(heads, dtype=dtype, pages=pages, page_size=size)
    decode = latten.Decode(heads, dtype=dtype)
    sequences = [cache.insert() for _ in range(batch)]
    random = np.random.default_rng(1)
    for sequence in sequences:
        cache.reserve([sequence], cached)
        cache.append([sequence], random.standard_normal((cached, heads.kv_dim), np.float32))
        cache.commit([sequence], cached)
    cache.reserve(sequences, 1)
    cache.append(sequences, random.standard_normal((batch, heads.kv_dim), np.float32))
    plan = decode.plan(cache, sequences)
    q = random.standard_normal((batch, heads.q_heads, heads.q_dim), np.float32)
    best = float("inf")
    for _ in range(6):  # the first compiles
        start = time.perf_counter()
        decode.run(plan, cache, q, softmax_scale=heads.q_dim**-0.5)
        best = min(best, time.perf_counter() - start)
    return best


def plot_roofline(all_heads: dict[str, latten.HeadLayout], args: argparse.Namespace, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    intensity = np.logspace(-1, 3, 200)
    roof = np.minimum(intensity * args.bandwidth, 1e3 * args.flops)
    axes.loglog(intensity, roof, color="black", label=f"{args.bandwidth:g} GB/s, {args.flops:g} TFLOP/s")
    for name, heads in all_heads.items():
        at = flop(heads, 1) / token_bytes(heads, args.dtype)
        axes.axvline(at, color=COLOURS[name], linestyle=":", linewidth=1)
        label = f"{name}: {at:.0f} FLOP per byte"
        if args.no_measure:
            axes.plot([at], [min(at * args.bandwidth, 1e3 * args.flops)], "o", mfc="none", color=COLOURS[name], label=label)
            continue
        seconds = measure(heads, args.dtype, args.batch, args.cached)
        rate = args.batch * flop(heads, args.cached + 1) / seconds / 1e9
        print(f"{name:6} {seconds * 1e3:8.2f} ms  {rate:9.1f} GFLOP/s  {rate / at:8.1f} GB/s of the cache")
        axes.plot([at], [rate], "o", color=COLOURS[name], label=label)
    axes.set_xlabel("FLOP per byte of the cache")
    axes.set_ylabel("GFLOP/s")
    where = "" if args.no_measure else f"\n{latten.Gpu.shared().adapter.split(' [')[0]}"
    axes.set_title(f"Decode, {args.batch} x {args.cached} tokens, {args.dtype} cache{where}", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="bytes per cached token and a roofline, of four variants of attention")
    parser.add_argument("--out", type=Path, default=Path("plots"), help="folder for the PNG files")
    parser.add_argument("--q-heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cached", type=int, default=4096, help="tokens of each sequence")
    parser.add_argument("--dtype", choices=DTYPES, default="f16")
    parser.add_argument("--bandwidth", type=float, default=20.0, help="GB/s of the roof")
    parser.add_argument("--flops", type=float, default=0.1, help="TFLOP/s of the roof")
    parser.add_argument("--no-measure", action="store_true", help="the roof alone")
    parser.add_argument("--quick", action="store_true", help="8 heads of 32, 2 x 128 tokens")
    args = parser.parse_args()
    if args.quick:
        args.q_heads, args.head_dim, args.batch, args.cached = 8, 32, 2, 128
    args.out.mkdir(parents=True, exist_ok=True)
    all_heads = layouts(args.q_heads, args.head_dim)
    plot_bytes(all_heads, args.out / "cache-bytes.png")
    plot_roofline(all_heads, args, args.out / "roofline.png")
    print(f"{args.out / 'cache-bytes.png'}, {args.out / 'roofline.png'}")


if __name__ == "__main__":
    main()
