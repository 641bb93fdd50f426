#!/usr/bin/env python3
"""What caches of integers lose on models that were trained with large key biases (docs/quantised-cache.md).

    python3 training/key_biases.py --data training/data --epochs 12 --out key_biases.json

Trains the GQA model of model.py with a trained bias on its keys, added before the rotation, that begins with a few large channels
(Qwen2 and Qwen2.5 have such), then measures bits per byte of held-out text with the keys and values rounded as a cache would:
f16; one scale per key (as is); a scale per 16 elements; a Hadamard transform before rounding; less the mean key; and wide channels:
the large ones in f16 and what that leaves of them as integers (HeadLayout::gqa_wide).
"""
import argparse
import json
import math
import pathlib

import torch
import torch.nn.functional as F

import model as M
from train import CONTEXT, Trainer

# Pairs (i, i + 16) of a head of 32: the slowest to turn, the fastest, and some of both.
PAIRS = {"slow": [15, 14, 13], "fast": [0, 1, 2], "mixed": [15, 0, 7]}
SIZES = [1.0, -0.7, 0.4]  # of S, on the first or second channel of a pair by turns


def round_span(x, levels):
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / levels
    return (x / scale).round().clamp(-levels, levels) * scale


def hadamard(n):
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(n)


class Rounded:
    """Rounds keys (after the rotation) and values [batch, length, groups, 32] as a cache of `levels` steps would."""

    def __init__(self, way, levels, wide):
        self.way, self.levels, self.wide = way, levels, wide

    def __call__(self, k, v):
        half = lambda x: x.half().float()
        if self.way == "f16":
            return half(k), half(v)
        if self.way == "a scale per key":
            k = round_span(k, self.levels)
        elif self.way == "a scale per 16":
            k = round_span(k.unflatten(-1, (-1, 16)), self.levels).flatten(-2)
        elif self.way == "Hadamard":
            h = hadamard(k.shape[-1]).to(k)
            k = round_span(k @ h, self.levels) @ h.T
        elif self.way == "less the mean":
            mean = k.mean((0, 1), keepdim=True)
            k = round_span(k - mean, self.levels) + mean
        elif self.way == "wide channels":
            kept = torch.zeros_like(k)
            kept[..., self.wide] = half(k[..., self.wide])
            k = kept + round_span(k - kept, self.levels)
        return k, round_span(v, self.levels)


class Biased(M.GroupedQuery):
    """GroupedQuery with a bias on its keys and, for measuring, a cache's rounding."""

    def __init__(self, c):
        super().__init__(c)
        self.k_bias = torch.nn.Parameter(torch.zeros(c.num_key_value_heads, c.head_dim))
        self.rounded = None

    def forward(self, x, cos, sin):
        # In f32: beside a bias of hundreds, bf16 would leave nothing of the rest of a key.
        q, k, v = (p(x).float().unflatten(-1, (-1, self.c.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = M.rotate(q, cos, sin), M.rotate(k + self.k_bias, cos, sin)
        if self.rounded:
            k, v = self.rounded(k, v)
        with torch.autocast(x.device.type, enabled=False):
            out = M.attend(q, k, v, self.c.head_dim**-0.5)
        return self.o_proj(out)


@torch.no_grad()
def bits(model, data, windows=48):
    inputs = data[: windows * CONTEXT].long().view(windows, CONTEXT)
    targets = data[1 : windows * CONTEXT + 1].long().view(windows, CONTEXT)
    total = 0.0
    for at in range(0, windows, 12):
        logits = model(inputs[at : at + 12]).float()
        total += F.cross_entropy(logits.flatten(0, 1), targets[at : at + 12].flatten(), reduction="sum").item()
    return total / (windows * CONTEXT) / math.log(2)


def large_pairs(layer, norm):
    """The channels whose bias is more than 4 times the size that the matrix gives a key, in pairs: the rule of latten."""
    rows = layer.k_proj.weight.float() * norm.weight.float()
    size = rows.pow(2).sum(1).view_as(layer.k_bias).mean(1, keepdim=True).sqrt()
    large = layer.k_bias.abs() > 4 * size
    large = large.any(0)
    pair = large[:16] | large[16:]
    found = torch.cat([pair, pair]).nonzero().flatten().tolist()
    return found, (layer.k_bias.norm(dim=1) / size.flatten()).max().item()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parent / "data")
    p.add_argument("--epochs", type=float, default=12)
    p.add_argument("--out", type=pathlib.Path, default=pathlib.Path("key_biases.json"))
    p.add_argument("--cases", nargs="+", default=["0:slow", "50:slow", "150:mixed", "400:slow", "400:mixed", "400:fast"])
    a = p.parse_args()
    M.ATTENTION["gqa"], rows = Biased, []
    for case in a.cases:
        size, kind = float(case.split(":")[0]), case.split(":")[1]
        trainer = Trainer("gqa", a.data, "cuda" if torch.cuda.is_available() else "cpu")
        trainer.start(0, 3e-3, round(a.epochs * trainer.steps_per_epoch))
        layers = [m for m in trainer.model.modules() if isinstance(m, Biased)]
        with torch.no_grad():
            for layer in layers:
                layer.k_bias.zero_()
                for i, (pair, part) in enumerate(zip(PAIRS[kind], SIZES)):
                    layer.k_bias[:, pair + 16 * (i % 2)] = size * part
        while trainer.done < trainer.steps:
            trainer.step()
        model = trainer.model.eval()
        norms = [block.input_layernorm for block in model.model.layers]
        found = [large_pairs(layer, norm) for layer, norm in zip(layers, norms)]
        row = {"case": case, "norms": [round(l.k_bias.norm(dim=1).max().item(), 1) for l in layers],
               "wide": [len(f) for f, _ in found], "sizes": [round(s, 1) for _, s in found]}
        row["f32"] = bits(model, trainer.valid)
        for bits_of, levels in [(16, 0), (8, 127), (4, 7)]:
            ways = ["f16"] if bits_of == 16 else ["a scale per key", "a scale per 16", "Hadamard", "less the mean", "wide channels"]
            for way in ways:
                for layer, (wide, _) in zip(layers, found):
                    layer.rounded = Rounded(way, levels, wide)
                row[f"{way}, {bits_of}"] = bits(model, trainer.valid)
        for layer in layers:
            layer.rounded = None
        rows.append(row)
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        a.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
