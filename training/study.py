#!/usr/bin/env python3
"""The study: every variant with the same data, seeds and number of learning rates, many models at once on one GPU.

    python3 training/study.py --size small --out out                                      all six variants
    python3 training/study.py --size small --variants gla mla mqa --have out/results_small.json --limit 540 --out out2
    python3 training/study.py --size large --speed --out out                              speeds alone, and what the plan would take

For each variant: a pilot (three learning rates by four seeds of its own, a short schedule), then the final runs at the rate whose
mean is best, one model per seed. A unit is a pilot or the final runs of one variant. A unit in a file of --have is not run again; one that
would not end before --limit is not begun.

Writes {out}/results_{size}.json after each unit, and for the shipped size {out}/small_{variant}.tar (the best seed: config.json and
model.safetensors) and {out}/gqa_seeds.tar (five seeds of GQA, for convert.py). One process per variant: while one trains, the
others compile and wait.
"""
import argparse
import contextlib
import fcntl
import json
import lzma
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

import torch

import stacked
from model import VARIANTS, save_model

HERE = pathlib.Path(__file__).parent
PILOT_SEED, KEPT_SEEDS = 100, 5
# Text of each size, and the recipe. Steps are of `batch` windows of `length` bytes for each model.
SIZES = {
    "small": dict(text="{}.txt", length=1024, batch=32, rates=[1.5e-3, 3e-3, 6e-3], seeds=12, pilot_seeds=4, tokens=48_377_740,
                  pilot_tokens=19_351_096, evaluate=[0.5, 0.75, 1.0], once=False),
    "large": dict(text="docs_{}.txt.xz", length=1024, batch=32, rates=[1e-3, 2e-3, 4e-3], seeds=4, pilot_seeds=1, tokens=60_000_000,
                  pilot_tokens=12_000_000, evaluate=[1.0], once=True),
}
GRADIENT_LIMIT = 0.1  # bf16 against float32; measured differences are in the records


def load_text(folder, name, device):
    path = pathlib.Path(folder) / name
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)


@contextlib.contextmanager
def alone_on(path):
    """One process at a time has the GPU to itself."""
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Runner:
    def __init__(self, variant, a):
        self.variant, self.a, self.plan, self.begun = variant, a, SIZES[a.size], time.time()
        self.cuda = a.device == "cuda"
        torch.set_float32_matmul_precision("highest")  # no TF32: validation is real f32
        if a.device == "cpu":
            torch.set_num_threads(1)
        self.train = load_text(a.data, self.plan["text"].format("train"), a.device)
        self.valid = load_text(a.data, self.plan["text"].format("valid"), a.device)
        self.length, self.batch = (32, 2) if a.tiny else (self.plan["length"], self.plan["batch"])
        self.config = stacked.config_of(variant, a.size, a.tiny)
        self.models = a.seeds
        self.kernel = "math"
        if self.cuda:
            with alone_on(a.work / "lock"):
                self.kernel = stacked.choose_kernel(self.config, self.models, self.batch, self.length, self.say)
        self.build()

    def say(self, text):
        print(f"{self.variant}: {text}", flush=True)

    def build(self):
        """Compiles, and compares with the plain form in float32. What does not work there gives way to what is plainer."""
        attempts = [(self.kernel, True), ("flash", True), ("flash", False)] if self.cuda else [("math", False)]
        for kernel, compiled in attempts:
            try:
                if self.cuda and kernel != self.kernel:
                    stacked.set_kernel(kernel, False)
                self.kernel = kernel if compiled or not self.cuda else f"{kernel}, not compiled"
                self.stack = stacked.Stack(self.config, self.models, self.a.device, compiled=compiled)
                self.difference, loss = stacked.check_fast(self.stack, self.train, self.length, self.batch)
                if self.difference < GRADIENT_LIMIT and loss < 0.1:
                    break
                raise ValueError(f"the fast form is off: gradients by {self.difference:.3g}, losses by {loss:.3g}")
            except Exception as error:
                if (kernel, compiled) == attempts[-1]:
                    raise
                self.say(f"{self.kernel} did not work: {type(error).__name__} {str(error)[:400]}")
                torch._dynamo.reset()
        if self.cuda:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2 ** 30
            torch.cuda.empty_cache()
            self.say(f"ready in {time.time() - self.begun:.0f} s; gradients differ by {self.difference:.2g} from float32; {peak:.1f} GiB")

    def tokens(self, begins):
        """begins [M, windows] on the device -> [M, windows, length + 1]."""
        return self.train[begins[..., None] + torch.arange(self.length + 1, device=self.a.device)].long()

    def speed(self):
        """(seconds a step, seconds a validation)."""
        self.stack.start([stacked.initial(self.config, seed) for seed in range(self.models)])
        begins = torch.zeros(self.models, self.batch, dtype=torch.long, device=self.a.device)
        rates = torch.zeros(self.models, device=self.a.device)
        times = []
        for steps in (3, 8):
            self.wait()
            begin = time.time()
            for _ in range(steps):
                self.stack.step(self.tokens(begins), rates)
            self.wait()
            times.append((time.time() - begin) / steps)
        begin = time.time()
        self.stack.bits_per_byte(self.valid[: self.valid.numel() // 4], self.length)
        self.wait()
        return times[-1], 4 * (time.time() - begin)

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def steps_of(self, kind):
        return max(5, round(self.a.tokens[kind] / (self.batch * self.length)))

    def unit(self, kind, seeds, rates):
        """Trains the stack once; the record. `complete` is false where the deadline came first."""
        a, steps, begun = self.a, self.steps_of(kind), time.time()
        self.stack.start([stacked.initial(self.config, seed) for seed in seeds])
        order = {seed: stacked.starts(seed, steps, self.batch, self.train.numel(), self.length, self.plan["once"]) for seed in set(seeds)}
        order = torch.stack([order[seed] for seed in seeds], 1).to(a.device)
        peak = torch.tensor(rates, device=a.device)
        at = [steps] if kind == "pilot" else sorted({max(1, round(share * steps)) for share in self.plan["evaluate"]})
        record = dict(size=a.size, variant=self.variant, kind=kind, seeds=seeds, rates=rates, steps=steps, batch=self.batch, length=self.length,
                      tokens=steps * self.batch * self.length, config=self.config.to_json(), parameters=self.stack.size, kernel=self.kernel,
                      kv_elements=self.config.kv_elements, gradient_difference=self.difference, torch=torch.__version__,
                      device=torch.cuda.get_device_name() if self.cuda else "cpu", complete=False, curve=[])
        losses, counted = torch.zeros(self.models, device=a.device), 0
        for step in range(steps):
            losses += self.stack.step(self.tokens(order[step]), peak * stacked.rate_at(step, steps))
            counted += 1
            if step % 20 == 19:
                self.wait()  # or the host would run far ahead of the clock that the deadline is of
                if time.time() > a.deadline:
                    break
            if step + 1 in at:
                record["curve"].append(dict(step=step + 1, train_bits=(losses / counted / math.log(2)).tolist(),
                                            valid_bits=self.stack.bits_per_byte(self.valid, self.length), seconds=round(time.time() - begun, 1)))
                losses.zero_()
                counted = 0
        record.update(seconds=round(time.time() - begun, 1), complete=bool(record["curve"]) and record["curve"][-1]["step"] == steps)
        self.keep(record)
        return record

    def keep(self, record):
        path = self.a.work / f"{self.variant}_{record['kind']}.json"
        path.with_suffix(".part").write_text(json.dumps(record))
        os.replace(path.with_suffix(".part"), path)
        if record["complete"]:
            self.say(f"{record['kind']}: {record['seconds']} s, bits per byte {[round(b, 4) for b in record['curve'][-1]['valid_bits']]}")

    def keep_models(self, record):
        bits = record["curve"][-1]["valid_bits"]
        order = sorted(range(self.models), key=lambda i: (math.isnan(bits[i]), bits[i]))
        save_model(self.a.work / self.variant, self.config, self.stack.shipped(order[0]))
        if self.variant == "gqa":
            for i in range(min(KEPT_SEEDS, self.models)):
                save_model(self.a.work / "gqa_seeds" / f"s{record['seeds'][i]}", self.config, self.stack.shipped(i))
        (self.a.work / f"{self.variant}.kept").touch()

    def needed(self, kind, step_s, validation_s):
        """Seconds of a unit."""
        return 1.02 * self.steps_of(kind) * step_s + (1 if kind == "pilot" else len(self.plan["evaluate"])) * validation_s

    def fits(self, kind, step_s, validation_s):
        needed = self.needed(kind, step_s, validation_s)
        left = self.a.deadline - time.time()
        if needed > left:
            self.say(f"{kind} not begun: it needs {needed:.0f} s, {max(0, left):.0f} s are left")
        return needed <= left

    def run(self):
        a = self.a
        have = {unit["kind"]: unit for path in a.have for unit in json.loads(path.read_text())["units"]
                if unit["complete"] and unit["size"] == a.size and unit["variant"] == self.variant}
        with alone_on(a.work / "lock"):
            step_s, validation_s = self.speed()
            tokens = self.models * self.batch * self.length
            estimate = {kind: self.needed(kind, step_s, validation_s) for kind in ("pilot", "final")}
            self.say(f"{1e3 * step_s:.1f} ms a step of {self.models} models, {tokens / step_s / 1e6:.2f} M tokens/s ({self.kernel}), validation "
                     f"{validation_s:.1f} s; pilot {estimate['pilot']:.0f} s, final {estimate['final']:.0f} s")
            (a.work / f"{self.variant}_speed.json").write_text(json.dumps(dict(
                size=a.size, variant=self.variant, kernel=self.kernel, models=self.models, step_s=step_s, validation_s=validation_s,
                tokens_per_s=tokens / step_s, pilot_s=estimate["pilot"], final_s=estimate["final"], gradient_difference=self.difference)))
            if a.speed:
                return
            pilot = have.get("pilot")
            if pilot is None:
                if not self.fits("pilot", step_s, validation_s):
                    return
                seeds, rates = pilot_models(a.rates, a.pilot_seeds, self.models)
                pilot = self.unit("pilot", seeds, rates)
                if not pilot["complete"]:
                    return
            if "final" in have or not self.fits("final", step_s, validation_s):
                return
            rate = best_rate(pilot)
            final = self.unit("final", list(range(self.models)), [rate] * self.models)
            if final["complete"] and a.size == "small":
                self.keep_models(final)


def pilot_models(rates, seeds, models):
    """(seeds, rates) of the pilot's models: every rate by every seed; what is left of the stack is the middle rate with further seeds."""
    pairs = [(PILOT_SEED + s, rate) for s in range(seeds) for rate in rates]
    assert len(pairs) <= models, f"{len(pairs)} pilot runs do not fit in a stack of {models}"
    more = [(PILOT_SEED + seeds + i, sorted(rates)[len(rates) // 2]) for i in range(models - len(pairs))]
    return [s for s, _ in pairs + more], [rate for _, rate in pairs + more]


def rate_means(pilot):
    """Mean bits per byte of each rate over the seeds that ran with all rates; a run that diverged counts as infinite."""
    bits = pilot["curve"][-1]["valid_bits"]
    by_seed = {seed: {r for s, r in zip(pilot["seeds"], pilot["rates"]) if s == seed} for seed in pilot["seeds"]}
    full = {seed for seed, rates in by_seed.items() if rates == set(pilot["rates"])}
    means = {}
    for rate in sorted(set(pilot["rates"])):
        mine = [math.inf if math.isnan(b) else b for b, s, r in zip(bits, pilot["seeds"], pilot["rates"]) if r == rate and s in full]
        means[rate] = sum(mine) / len(mine)
    return means


def best_rate(pilot):
    means = rate_means(pilot)
    return min(means, key=means.get)


def bundle(a):
    units = [json.loads(path.read_text()) for kind in ("pilot", "final") for path in sorted(a.work.glob(f"*_{kind}.json"))]
    speeds = [json.loads(path.read_text()) for path in sorted(a.work.glob("*_speed.json"))]
    for path in a.have:
        mine = {(u["variant"], u["kind"]) for u in units if u["complete"]}
        units = [u for u in json.loads(path.read_text())["units"] if (u["variant"], u["kind"]) not in mine] + units
    part = a.out / f"results_{a.size}.part"
    part.write_text(json.dumps(dict(units=units, speeds=speeds)))
    os.replace(part, a.out / f"results_{a.size}.json")
    for kept in a.work.glob("*.kept"):
        names = [kept.stem] + (["gqa_seeds"] if kept.stem == "gqa" else [])
        for name in names:
            target = a.out / (f"small_{name}.tar" if name in VARIANTS else f"{name}.tar")
            if not target.exists():
                with tarfile.open(target.with_suffix(".part"), "w") as archive:
                    archive.add(a.work / name, arcname=name)
                os.replace(target.with_suffix(".part"), target)
    return units, speeds


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", choices=list(SIZES), default="small")
    p.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    p.add_argument("--seeds", type=int, help="models of a stack; without it the size's")
    p.add_argument("--pilot-seeds", type=int)
    p.add_argument("--rates", type=float, nargs="+")
    p.add_argument("--tokens", type=float, help="of a final run; without it the size's")
    p.add_argument("--pilot-tokens", type=float)
    p.add_argument("--have", nargs="*", default=[], type=pathlib.Path, help="results of earlier calls")
    p.add_argument("--limit", type=float, default=1e9, help="seconds until training stops")
    p.add_argument("--grace", type=float, default=20, help="seconds after --limit until processes that still run are killed")
    p.add_argument("--at-once", type=int, default=3, help="processes; one trains, the others compile")
    p.add_argument("--speed", action="store_true", help="measure speeds alone")
    p.add_argument("--work", default="/tmp/latten_study", type=pathlib.Path)
    p.add_argument("--out", default="out", type=pathlib.Path)
    p.add_argument("--data", default=HERE / "data", type=pathlib.Path)
    p.add_argument("--device", default="cuda")
    p.add_argument("--tiny", action="store_true", help="a tiny model, to test this file on a CPU")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    p.add_argument("--deadline", type=float, default=0, help=argparse.SUPPRESS)
    a = p.parse_args()
    plan = SIZES[a.size]
    a.seeds, a.pilot_seeds, a.rates = a.seeds or plan["seeds"], a.pilot_seeds or plan["pilot_seeds"], a.rates or plan["rates"]
    a.tokens = dict(final=a.tokens or plan["tokens"], pilot=a.pilot_tokens or plan["pilot_tokens"])
    if a.worker:
        return Runner(a.worker, a).run()
    begun = time.time()
    shutil.rmtree(a.work, ignore_errors=True)
    a.work.mkdir(parents=True)
    a.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    waiting, jobs, failed = list(a.variants), {}, []
    while waiting or jobs:
        while waiting and len(jobs) < a.at_once:
            variant = waiting.pop(0)
            jobs[variant] = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--worker", variant, "--deadline", str(begun + a.limit)])
        time.sleep(0.2 if a.tiny else 1)
        ended = [variant for variant, job in jobs.items() if job.poll() is not None]
        failed += [variant for variant in ended if jobs.pop(variant).returncode]
        if ended or int(time.time() - begun) % 15 == 0:
            bundle(a)
        if time.time() - begun > a.limit + a.grace:  # a stuck process must not cost the others their results
            for variant, job in jobs.items():
                job.kill()
    units, speeds = bundle(a)
    if speeds:
        sums = {kind: sum(s[f"{kind}_s"] for s in speeds) for kind in ("pilot", "final")}
        print(f"{a.size}, {len(speeds)} variants: pilots {sums['pilot']:.0f} s, final runs {sums['final']:.0f} s by the speeds measured")
    for u in units:
        bits = u["curve"][-1]["valid_bits"] if u["curve"] else []
        chosen = f", best rate {best_rate(u):g} of {rate_means(u)}" if u["kind"] == "pilot" and u["complete"] else ""
        mean = f"mean {sum(bits) / len(bits):.4f}" if bits else "nothing"
        print(f"{u['variant']} {u['kind']}: {mean}, {u['seconds']} s, complete {u['complete']}{chosen}")
    print(f"{time.time() - begun:.0f} s in all")
    if failed:
        raise SystemExit(f"failed: {failed}")


if __name__ == "__main__":
    main()
