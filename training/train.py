#!/usr/bin/env python3
"""Train one variant on bytes of Shakespeare, one run per seed, and keep each run's best checkpoint.

    python3 training/train.py gta --seeds 0 1 2 --epochs 20 --out runs
    python3 training/train.py gta --device cpu --no-compile --batch 2 --epochs 0.01 --out /tmp/runs      (a dry run)

Writes {out}/{variant}_s{seed}.json (settings and validation curve, rewritten at each validation) and
{out}/{variant}_s{seed}/ (config.json and float16 model.safetensors of the best checkpoint so far).
"""
import argparse
import json
import math
import os
import pathlib
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import DRAFTS, VARIANTS, Config, Decoder, f16_state, save_model

CONTEXT = 1024
RECIPE = dict(optimiser="AdamW", betas=[0.9, 0.95], weight_decay=0.1, grad_clip=1.0, warmup_steps=200, schedule="cosine to 0",
              precision="bf16 autocast, f32 weights", dropout=0.0, context=CONTEXT)


def load_bytes(path, device):
    return torch.frombuffer(bytearray(pathlib.Path(path).read_bytes()), dtype=torch.uint8).to(device)


@torch.no_grad()
def bits_per_byte(model, data, windows_at_once=30):
    """Mean code length over the whole of `data`: non-overlapping windows of 1024 bytes, each predicting its next bytes in f32.

    Every byte but the first is predicted once; the last window is shorter (padded behind, where causality hides it)."""
    count = data.numel() - 1
    windows = math.ceil(count / CONTEXT)
    padded = F.pad(data, (0, windows * CONTEXT + 1 - data.numel())).long()
    inputs, targets = padded[:-1].view(windows, CONTEXT), padded[1:].view(windows, CONTEXT)
    total = torch.zeros((), dtype=torch.float64, device=data.device)
    with sdpa_kernel(SDPBackend.MATH):  # the plain formula, in f32 throughout
        for at in range(0, windows, windows_at_once):
            chunk = slice(at, at + windows_at_once)
            losses = F.cross_entropy(model(inputs[chunk]).flatten(0, 1), targets[chunk].flatten(), reduction="none")
            total += losses[: max(0, count - at * CONTEXT)].double().sum()
    return total.item() / count / math.log(2)


class Trainer:
    """One compiled model, trained again from fresh weights for each seed (so that compilation is paid once)."""

    def __init__(self, variant, folder, device="cuda", batch=32, compiled=True):
        torch.set_float32_matmul_precision("highest")  # no TF32: validation is real f32
        if device == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(False)  # flash attention has no per-shape planning
        self.variant, self.device, self.batch = variant, device, batch
        self.data = load_bytes(pathlib.Path(folder) / "train.txt", device)
        self.valid = load_bytes(pathlib.Path(folder) / "valid.txt", device)
        self.config = Config.of(variant)
        self.model = Decoder(self.config).to(device)
        self.shipped = Decoder(self.config).to(device).eval()  # f32 copy of the f16-rounded weights
        self.loss = torch.compile(self.plain_loss, fullgraph=True, dynamic=False) if compiled else self.plain_loss
        self.window = torch.arange(CONTEXT + 1, device=device)
        self.steps_per_epoch = self.data.numel() / (batch * CONTEXT)

    def plain_loss(self, tokens):
        with torch.autocast(self.device, torch.bfloat16):
            logits = self.model(tokens[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def start(self, seed, lr, steps):
        torch.manual_seed(seed)
        self.model.initialise()
        self.generator = torch.Generator(self.device).manual_seed(1000 + seed)
        decayed, rest = [], []
        for name, p in self.model.named_parameters():
            (rest if "norm" in name or name.endswith("bias") else decayed).append(p)
        groups = [dict(params=decayed, weight_decay=RECIPE["weight_decay"]), dict(params=rest, weight_decay=0.0)]
        self.optimiser = torch.optim.AdamW(groups, lr=lr, betas=tuple(RECIPE["betas"]), fused=self.device == "cuda")
        self.lr, self.steps, self.done = lr, steps, 0
        self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0

    def rate(self):
        warmup = min(RECIPE["warmup_steps"], self.steps // 5)
        if self.done < warmup:
            return self.lr * (self.done + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (self.done - warmup) / max(1, self.steps - warmup)))

    def step(self):
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        starts = torch.randint(self.data.numel() - CONTEXT, (self.batch, 1), generator=self.generator, device=self.device)
        loss = self.loss(self.data[starts + self.window].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), RECIPE["grad_clip"])
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.loss_sum += loss.detach()
        self.loss_count += 1
        self.done += 1

    def validate(self):
        """(bits per byte of the weights as shipped, those weights)."""
        state = f16_state(self.model)
        self.shipped.load_state_dict({name: w.float() for name, w in state.items()})
        return bits_per_byte(self.shipped, self.valid), state

    def mean_train_bits(self):
        mean = self.loss_sum.item() / max(1, self.loss_count) / math.log(2)
        self.loss_sum.zero_()
        self.loss_count = 0
        return mean


def train_run(trainer, seed, epochs, lr, out, deadline):
    """One run. Stops early at `deadline` (Unix time); the record then says so."""
    steps = max(1, round(epochs * trainer.steps_per_epoch))
    trainer.start(seed, lr, steps)
    every = max(1, round(trainer.steps_per_epoch))
    record = dict(variant=trainer.variant, seed=seed, epochs=epochs, steps=steps, lr=lr, batch=trainer.batch, recipe=RECIPE,
                  parameters=trainer.model.parameter_count(), config=trainer.config.to_json(), complete=False, best=None, curve=[])
    device = torch.cuda.get_device_name() if trainer.device == "cuda" else trainer.device
    record.update(device=device, torch=torch.__version__)
    begun, path = time.time(), pathlib.Path(out) / f"{trainer.variant}_s{seed}"
    while trainer.done < steps:
        trainer.step()
        last = trainer.done == steps
        if trainer.done % every and not last:
            continue
        train_bits = trainer.mean_train_bits()
        valid_bits, state = trainer.validate()
        tokens = trainer.done * trainer.batch * CONTEXT
        point = dict(step=trainer.done, tokens=tokens, epoch=round(tokens / trainer.data.numel(), 3),
                     train_bits=round(train_bits, 5), valid_bits=round(valid_bits, 6), seconds=round(time.time() - begun, 1))
        record["curve"].append(point)
        record["seconds"], record["complete"] = point["seconds"], last
        if record["best"] is None or valid_bits < record["best"]["valid_bits"]:
            record["best"] = point
            save_model(path, trainer.config, state)
        path.with_suffix(".part").write_text(json.dumps(record))
        os.replace(path.with_suffix(".part"), path.with_suffix(".json"))  # run_all.py may be reading it
        print(f"{trainer.variant} seed {seed} {json.dumps(point)}", flush=True)
        if time.time() > deadline:
            break
    return record


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("variant", choices=[*VARIANTS, *DRAFTS])
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--epochs", type=float, default=20)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--data", default=pathlib.Path(__file__).parent / "data", type=pathlib.Path)
    p.add_argument("--out", default="runs", type=pathlib.Path)
    p.add_argument("--device", default="cuda")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--deadline", type=float, default=math.inf, help="Unix time after which training stops")
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(a.variant, a.data, a.device, a.batch, not a.no_compile)
    for seed in a.seeds:
        if time.time() < a.deadline:
            train_run(trainer, seed, a.epochs, a.lr, a.out, a.deadline)


if __name__ == "__main__":
    main()
