#!/usr/bin/env python3
"""Speeds before a long run: all variants at once on one GPU, as run_all.py trains them. Prints what fits into a time budget.

    python3 training/smoke.py --limit 95 --train-seconds 440 --seeds 3

Each variant's process compiles, then all four train together for some seconds (step and validation times), then each makes
short runs at a few learning rates (one shared rate is chosen by eye from their sum). Nothing trained here is kept.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import time

from model import SHIPPED

HERE = pathlib.Path(__file__).parent


def wait_for(folder, names, deadline):
    while time.time() < deadline and not all((folder / name).exists() for name in names):
        time.sleep(0.02)


def worker(a):
    import torch
    from train import Trainer
    synchronise = torch.cuda.synchronize if a.device == "cuda" else (lambda: None)
    folder, begun, found = a.folder, time.time(), {}
    trainer = Trainer(a.worker, a.data, a.device, a.batch, a.device == "cuda")
    trainer.start(0, 1e-3, 10 ** 6)
    for _ in range(3):
        trainer.step()
    trainer.validate()
    synchronise()
    found["ready_s"] = round(time.time() - begun, 1)
    order = list(SHIPPED)
    (folder / f"{a.worker}.ready").touch()
    wait_for(folder, [f"{v}.ready" for v in order], a.deadline)

    def timed(seconds):
        synchronise()
        start, steps = time.time(), 0
        while time.time() - start < seconds and time.time() < a.deadline:
            for _ in range(10 if a.device == "cuda" else 1):
                trainer.step()
                steps += 1
            synchronise()
        return (time.time() - start) / max(1, steps)

    # Alone, one after the other; then all together, which is how run_all.py uses the GPU.
    for variant in order:
        if variant == a.worker:
            found["alone_ms"] = round(1e3 * timed(a.seconds / 8), 2)
            (folder / f"{variant}.alone").touch()
        wait_for(folder, [f"{variant}.alone"], a.deadline)
    found["together_ms"] = round(1e3 * timed(a.seconds), 2)
    start = time.time()
    trainer.validate()
    found["validation_ms"] = round(1e3 * (time.time() - start), 1)
    (folder / f"{a.worker}.json").write_text(json.dumps(found))
    for lr in a.rates:
        trainer.start(0, lr, a.pilot_steps)
        for _ in range(a.pilot_steps):
            trainer.step()
            if trainer.done % 20 == 0:
                synchronise()
                if time.time() > a.deadline:
                    return
        found[f"lr {lr:g}"] = round(trainer.validate()[0], 4)
        (folder / f"{a.worker}.json").write_text(json.dumps(found))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--limit", type=float, default=95, help="seconds for all of this")
    p.add_argument("--seconds", type=float, default=6, help="seconds of timed training")
    p.add_argument("--train-seconds", type=float, default=440)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--rates", type=float, nargs="*", default=[3e-3, 1.5e-3, 6e-3])
    p.add_argument("--pilot-steps", type=int, default=250)
    p.add_argument("--device", default="cuda")
    p.add_argument("--data", default=HERE / "data", type=pathlib.Path)
    p.add_argument("--folder", default="/tmp/latten_smoke", type=pathlib.Path)
    p.add_argument("--worker", help=argparse.SUPPRESS)
    p.add_argument("--deadline", type=float, default=0, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker:
        return worker(a)
    a.folder.mkdir(parents=True, exist_ok=True)
    for old in a.folder.iterdir():
        old.unlink()
    deadline = time.time() + a.limit
    jobs = [subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--worker", v, "--deadline", str(deadline)]) for v in SHIPPED]
    for job in jobs:
        try:
            job.wait(max(0.1, deadline + 5 - time.time()))
        except subprocess.TimeoutExpired:
            job.kill()
    found = {v: json.loads((a.folder / f"{v}.json").read_text()) for v in SHIPPED if (a.folder / f"{v}.json").exists()}
    for variant, numbers in found.items():
        print(variant, json.dumps(numbers))
    if len(found) < len(SHIPPED):
        raise SystemExit("a variant did not get as far as its timings")
    # While four processes share the GPU each has a quarter of it, so a step costs a quarter of its wall time.
    per_epoch = 4837774 / (a.batch * 1024)
    epoch_s = sum(n["together_ms"] * per_epoch + n["validation_ms"] for n in found.values()) / len(SHIPPED) / 1e3
    tokens = sum(a.batch * 1024e3 / n["together_ms"] for n in found.values())
    print(f"together {tokens / 1e6:.2f}M tokens/s; one epoch of all four {epoch_s:.1f} s; "
          f"{a.seeds} seeds fit {a.train_seconds / a.seeds / epoch_s:.1f} epochs in {a.train_seconds:g} s")


if __name__ == "__main__":
    main()
