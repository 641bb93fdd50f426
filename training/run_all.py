#!/usr/bin/env python3
"""All runs on one GPU: one process per variant, its seeds one after the other, with a hard stop.

    python3 training/run_all.py --epochs 20 --seeds 0 1 2 --limit 540 --out out

While it runs and at its end it bundles what there is so far into two files: {out}/results.json (every run with its validation
curve) and {out}/models.tar (each variant's best run by validation: config.json and model.safetensors).
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

from model import SHIPPED, VARIANTS

HERE = pathlib.Path(__file__).parent


def bundle(work, out):
    records = [json.loads(path.read_text()) for path in sorted(work.glob("*_s*.json"))]
    runs = [r for r in records if r["best"]]
    if not runs:
        return runs
    (out / "results.json").write_text(json.dumps(dict(runs=runs)))
    with tarfile.open(out / "models.part", "w") as archive:
        for variant in VARIANTS:
            # A finished run goes before a cut one, whatever its figure.
            mine = sorted((not r["complete"], r["best"]["valid_bits"], r["seed"]) for r in runs if r["variant"] == variant)
            if mine:
                archive.add(work / f"{variant}_s{mine[0][2]}", arcname=variant)
    os.replace(out / "models.part", out / "models.tar")
    return runs


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--epochs", type=float, default=20)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=SHIPPED)
    p.add_argument("--limit", type=float, default=1e9, help="seconds until training stops")
    p.add_argument("--work", default="/tmp/latten_runs", type=pathlib.Path)
    p.add_argument("--out", default="out", type=pathlib.Path)
    p.add_argument("--data", default=HERE / "data", type=pathlib.Path)
    p.add_argument("--device", default="cuda")
    p.add_argument("--batch", type=int, default=32)
    a = p.parse_args()
    begun = time.time()
    shutil.rmtree(a.work, ignore_errors=True)
    a.work.mkdir(parents=True)
    a.out.mkdir(parents=True, exist_ok=True)
    jobs = []
    for variant in a.variants:
        command = [sys.executable, HERE / "train.py", variant, "--seeds", *map(str, a.seeds), "--epochs", str(a.epochs),
                   "--lr", str(a.lr), "--batch", str(a.batch), "--data", a.data, "--out", a.work, "--device", a.device,
                   "--deadline", str(begun + a.limit)] + (["--no-compile"] if a.device == "cpu" else [])
        with open(a.work / f"{variant}.log", "w") as log:
            jobs.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    while any(job.poll() is None for job in jobs):
        time.sleep(1)
        if time.time() - begun > a.limit + 12:  # a stuck process must not cost the others their results
            for job in jobs:
                job.kill()
        if int(time.time() - begun) % 20 == 0:
            bundle(a.work, a.out)
    runs = bundle(a.work, a.out)
    for variant, job in zip(a.variants, jobs):
        if job.returncode:
            print(variant, "failed:", (a.work / f"{variant}.log").read_text()[-1500:])
    for r in runs:
        print(f"{r['variant']} seed {r['seed']}: best {r['best']['valid_bits']:.4f} at epoch {r['best']['epoch']}, "
              f"last {r['curve'][-1]['valid_bits']:.4f} at {r['curve'][-1]['epoch']}, {r['seconds']} s, complete {r['complete']}")
    print(f"{time.time() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
