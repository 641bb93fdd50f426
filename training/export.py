#!/usr/bin/env python3
"""The shipped models and their expected logits.

    python3 training/export.py --models out/models.tar --results out/results.json
    python3 training/export.py --models out/small_gqa.tar out/small_gta.tar --variants gqa gta --if-better     (of study.py)

Unpacks {variant}/config.json and {variant}/model.safetensors (float16) into examples/models/ and writes
tests/vectors/logits_{variant}.json, computed in float32 on the CPU from the float16 weights: logits after three prompts, 200 greedy
bytes recomputed in full at each step, and bits per byte over the whole of valid.txt. Needs PyTorch, no GPU; about 2 minutes a model.
"""
import argparse
import json
import pathlib
import shutil
import tarfile
import tempfile

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import SHIPPED, VARIANTS, load_model, rope_table
from train import bits_per_byte, load_bytes

HERE = pathlib.Path(__file__).parent
# (start in valid.txt, length, positions)
PROMPTS = [(20000, 17, [0, 8, 16]), (61000, 100, [0, 49, 99]), (150000, 600, [0, 299, 511, 599])]
GREEDY_PROMPTS = ["ROMEO:\n", "ROMEO.\n", "JULIET.\n", "KING HENRY.\n", "HAMLET.\nTo be, or not to be", "My lord, ", "ACT II.\n\n", "DUKE.\n"]
GREEDY_BYTES = 200
MIN_GAP = 1e-3  # a smaller gap between best and second logit could be decided by rounding


@torch.no_grad()
def logits_of(model, tokens):
    with sdpa_kernel(SDPBackend.MATH):
        return model(torch.tensor([tokens]))[0]


def in_double(folder):
    """The same weights and formula in float64, to say how far float32 is off."""
    model = load_model(folder).double()
    c = model.config
    model.cos, model.sin = rope_table(c.max_position_embeddings, c.rotated, c.rope_theta)
    return model


def greedy(model, prompt):
    """(bytes chosen, smallest gap between the best and the second logit on the way)."""
    tokens, gap = list(prompt), float("inf")
    for _ in range(GREEDY_BYTES):
        best = logits_of(model, tokens)[-1].topk(2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
    return tokens[len(prompt):], gap


def rounded(row):
    return [float(f"{value:.7g}") for value in row.tolist()]


def vector(variant, folder, valid):
    model, double = load_model(folder), in_double(folder)
    prompts, worst = [], 0.0
    for start, length, positions in PROMPTS:
        tokens = valid[start: start + length].tolist()
        logits = logits_of(model, tokens)[positions]
        worst = max(worst, (logits.double() - logits_of(double, tokens)[positions]).abs().max().item())
        prompts.append(dict(tokens=tokens, positions=positions, logits=[rounded(row) for row in logits]))
    for text in GREEDY_PROMPTS:
        prompt = list(text.encode())
        chosen, gap = greedy(model, prompt)
        print(f"{variant}: greedy from {text!r}, smallest gap {gap:.2g}: {bytes(chosen)[:60]!r}", flush=True)
        if gap >= MIN_GAP:
            break
    else:
        raise SystemExit(f"{variant}: every greedy prompt passes a gap below {MIN_GAP}")
    return dict(model=variant, prompts=prompts, greedy=dict(prompt=prompt, tokens=chosen, min_gap=rounded(torch.tensor([gap]))[0]),
                bits_per_byte=round(bits_per_byte(model, valid, 3), 6), max_abs_difference_from_f64=float(f"{worst:.2g}"))


def unpack(a, models, vectors, valid):
    """Puts the new models into examples/models; the variants that were taken."""
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        for path in a.models:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        for variant in a.variants:
            new, old = pathlib.Path(folder) / variant, vectors / f"logits_{variant}.json"
            if not new.exists():
                raise SystemExit(f"{variant} is in none of {[str(path) for path in a.models]}")
            if a.if_better and old.exists():
                before, after = json.loads(old.read_text())["bits_per_byte"], bits_per_byte(load_model(new), valid, 3)
                print(f"{variant}: {after:.4f} bits per byte, shipped {before:.4f}: {'taken' if after < before else 'left as it is'}", flush=True)
                if after >= before:
                    continue
            shutil.copytree(new, models / variant, dirs_exist_ok=True, copy_function=shutil.copyfile)
            taken.append(variant)
    return taken


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", default=[], type=pathlib.Path,
                   help="models.tar of run_all.py, or files of study.py; left out: use what is in examples/models")
    p.add_argument("--if-better", action="store_true", help="leave a shipped model as it is where the new one's bits per byte are no fewer")
    p.add_argument("--results", type=pathlib.Path, help="results.json of the same runs, to compare bits per byte")
    p.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=SHIPPED)
    p.add_argument("--data", default=HERE / "data", type=pathlib.Path)
    p.add_argument("--root", default=HERE.parent, type=pathlib.Path)
    a = p.parse_args()
    torch.set_float32_matmul_precision("highest")
    models, vectors = a.root / "examples" / "models", a.root / "tests" / "vectors"
    valid = load_bytes(a.data / "valid.txt", "cpu")
    if a.models:
        a.variants = unpack(a, models, vectors, valid)
    vectors.mkdir(parents=True, exist_ok=True)
    runs = json.loads(a.results.read_text())["runs"] if a.results else []
    for variant in a.variants:
        found = vector(variant, models / variant, valid)
        path = vectors / f"logits_{variant}.json"
        path.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        trained = sorted(r["best"]["valid_bits"] for r in runs if r["variant"] == variant)
        print(f"{variant}: {path.name} {path.stat().st_size} bytes; bits per byte {found['bits_per_byte']} "
              f"(while training, best of the seeds: {trained[:1]}); f32 within {found['max_abs_difference_from_f64']:.2g} of f64", flush=True)


if __name__ == "__main__":
    main()
