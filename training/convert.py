#!/usr/bin/env python3
"""Turn trained GQA models into GTA and GLA, train them a little, and say what it costs in bits per byte.

    python3 training/convert.py --models gqa_seeds.tar --out out

--models is what study.py keeps of GQA: the models of a few seeds. Conversion is in closed form (below). Then each is trained with 1% and 5%
of the tokens of its first training, at three learning rates, and so is the GQA model itself, as the control: what further
training gives without a conversion. Writes {out}/conversion.json after each set.

GQA rotates whole heads: dimensions j and j + head_dim / 2 are a complex number that turns with frequency j. The rotated part of GTA and
GLA has every second of these frequencies exactly. So those pairs of all groups become the one shared rope key: per pair, the best
complex multiple of one row for each group (a rank-1 SVD); the factor goes into the queries. The other pairs lose their rotation, which is
the part that no weight can keep. GTA ties them with the values: the stacked rows of a group's keys and values are cut to rank head_dim by
an SVD, and the basis is turned so that keys need its first half only; what is left of both goes into queries and o_proj. GLA cuts the
stacked rows of all groups of a latent head to the latent's width, and the queries to theirs; the norms that it has on both take the mean
size of the latents as gains. Each SVD counts errors by the second moments of the layer's own input. The FFN stays GQA's.
"""
import argparse
import copy
import json
import math
import pathlib
import tarfile
import tempfile
import time

import torch

import stacked
from model import Config, load_model
from study import HERE, load_text

RATES, SHARES = [3e-4, 1e-3, 3e-3], [0.01, 0.05]
FIRST_TRAINING = 48_377_740  # tokens of study.py's final runs at the shipped size


@torch.no_grad()
def input_moments(model, tokens):
    """Per layer, the mean of x x^T over the inputs x of attention, in float64."""
    found = []
    hooks = [layer.self_attn.register_forward_pre_hook(
        lambda _, inputs: found.append(torch.einsum("btd,bte->de", inputs[0].double(), inputs[0].double()) / inputs[0][..., 0].numel()))
        for layer in model.model.layers]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return found


def roots(moments):
    """(L, its inverse) with L L^T the moments, kept away from singular."""
    values, vectors = torch.linalg.eigh(moments)
    values = values.clamp(min=1e-6 * values.max().item()).sqrt()
    return vectors * values, (vectors / values).T


def cut(rows, rank, root):
    """rows [n, D] as U [n, rank] @ basis [rank, D], the best by the input's moments."""
    l, inverse = root
    u, s, v = torch.linalg.svd(rows @ l.to(rows.dtype), full_matrices=False)
    kept = min(rank, len(s))
    basis = (s[:kept, None] * v[:kept]) @ inverse.to(rows.dtype)
    u = torch.cat([u[:, :kept], u.new_zeros(len(rows), rank - kept)], 1)
    return u, torch.cat([basis, basis.new_zeros(rank - kept, rows.shape[1])])


def halves(pairs, heads_dim):
    """Dimensions of these pairs: first components, then second ones."""
    return list(pairs) + [j + heads_dim // 2 for j in pairs]


class Layer:
    """A GQA layer's projections by head, and the two sorts of its pairs."""

    def __init__(self, c, state, prefix, moments, rope_dim):
        w = {name: state[f"{prefix}{name}_proj.weight"].double() for name in "qkvo"}
        self.q, self.k, self.v = (w[n].unflatten(0, (-1, c.head_dim)) for n in "qkv")
        self.o = w["o"].unflatten(1, (-1, c.head_dim))  # [D, heads, head_dim]
        every = c.head_dim // rope_dim
        self.turned = range(0, c.head_dim // 2, every)
        self.still = [j for j in range(c.head_dim // 2) if j % every]
        self.root, self.moments, self.per_group = roots(moments), moments, len(self.q) // len(self.k)
        self.c, self.rope_dim = c, rope_dim

    def shared_rope_key(self):
        """(the shared key's rows [rope_dim, D], the queries' rows for it [heads, rope_dim, D])."""
        half, groups = self.c.head_dim // 2, len(self.k)
        key, queries = [], []
        for j in self.turned:
            factors, row = cut(torch.complex(self.k[:, j], self.k[:, j + half]), 1, self.root)
            # Neither side large: the factors are about 1.
            factors, row = factors[:, 0] * math.sqrt(groups), row[0] / math.sqrt(groups)
            key.append(row)
            queries.append(torch.complex(self.q[:, j], self.q[:, j + half]) * factors.conj().repeat_interleave(self.per_group)[:, None])
        key, queries = torch.stack(key), torch.stack(queries, 1)
        return torch.cat([key.real, key.imag]), torch.cat([queries.real, queries.imag], 1)

    def keys_and_values(self, groups, rank):
        """The stacked rows of some groups cut to a rank: (U of the keys, U of the values, each [groups, rows, rank]; basis)."""
        still = halves(self.still, self.c.head_dim)
        keys, values = self.k[groups][:, still], self.v[groups]
        size = [(rows.flatten(0, 1) @ self.root[0]).norm() / math.sqrt(rows.shape[0] * rows.shape[1]) for rows in (keys, values)]
        weight = (size[1] / size[0]).clamp(1e-3, 1e3) if size[0] > 0 else torch.ones(())  # a row of keys counts as much as one of values
        u, basis = cut(torch.cat([weight * keys, values], 1).flatten(0, 1), rank, self.root)
        u = u.unflatten(0, (len(groups), -1))
        return u[:, : len(still)] / weight, u[:, len(still):], basis

    def size_of(self, basis):
        """Root of the mean square of basis @ x."""
        return ((basis @ self.moments) * basis).sum().div(len(basis)).sqrt()

    def gta(self):
        c, still = self.c, halves(self.still, self.c.head_dim)
        k_rope, q_rope = self.shared_rope_key()
        q, tied, o = [], [], []
        for g in range(len(self.k)):
            keys, values, basis = (t[0] if t.dim() == 3 else t for t in self.keys_and_values([g], c.head_dim))
            turn, lower = torch.linalg.qr(keys.T, mode="complete")  # keys = [R^T, 0] turn^T
            tied.append(turn.T @ basis)
            for h in range(g * self.per_group, (g + 1) * self.per_group):
                q.append(torch.cat([lower[: len(still)] @ self.q[h][still], q_rope[h]]))
                o.append(self.o[:, h] @ values @ turn)
        return {"q_proj.weight": torch.cat(q), "kv_proj.weight": torch.cat(tied), "k_rope_proj.weight": k_rope,
                "k_rope_proj.bias": torch.zeros(len(k_rope)), "o_proj.weight": torch.cat(o, 1)}

    def gla(self, target):
        c, still, heads = self.c, halves(self.still, self.c.head_dim), len(self.q)
        k_rope, q_rope = self.shared_rope_key()
        spare = c.head_dim - len(still)
        scale = math.sqrt((c.head_dim + self.rope_dim) / c.head_dim)  # GLA divides scores by the root of the wider head
        rows = torch.cat([self.q[:, still], q_rope], 1).flatten(0, 1) * scale
        u, q_a = cut(rows, target.q_latent_dim, self.root)
        u = u.unflatten(0, (heads, -1))
        # Spare unrotated dimensions: keys get small numbers and queries none, so that training can find a use for them.
        q_b = torch.cat([u[:, : len(still)], u.new_zeros(heads, spare, u.shape[2]), u[:, len(still):]], 1)
        generator = torch.Generator().manual_seed(1)
        latents, kv_b, gains, per_latent = [], [], [], len(self.k) // target.latent_heads
        for i in range(target.latent_heads):
            groups = list(range(i * per_latent, (i + 1) * per_latent))
            keys, values, basis = self.keys_and_values(groups, target.latent_dim)
            latents.append(basis)
            gains.append(self.size_of(basis).expand(target.latent_dim))
            for g in range(per_latent):
                small = 0.02 * torch.randn(spare, target.latent_dim, generator=generator).double() / gains[-1]
                kv_b += [torch.cat([keys[g], small, values[g]])] * self.per_group
        zeros = torch.zeros
        return {"q_a_proj.weight": q_a, "q_a_proj.bias": zeros(len(q_a)), "q_a_layernorm.weight": self.size_of(q_a).expand(len(q_a)),
                "q_b_proj.weight": q_b.flatten(0, 1), "q_b_proj.bias": zeros(heads * (c.head_dim + self.rope_dim)),
                "kv_a_proj_with_mqa.weight": torch.cat([*latents, k_rope]),
                "kv_a_proj_with_mqa.bias": zeros(target.latent_heads * target.latent_dim + self.rope_dim),
                "kv_a_layernorm.weight": torch.stack(gains), "kv_b_proj.weight": torch.cat(kv_b),
                "kv_b_proj.bias": zeros(2 * heads * c.head_dim), "o_proj.weight": self.o.flatten(1)}


def converted_config(c, variant):
    target = copy.copy(Config.of(variant))
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size", "max_position_embeddings"):
        setattr(target, name, getattr(c, name))
    if c.head_dim != Config.of(variant).head_dim:  # tiny models of tests: the same proportions
        target.rope_dim = c.head_dim // 2
        target.latent_dim, target.q_latent_dim = (4 * c.head_dim // target.latent_heads, 4 * c.head_dim) if target.latent_heads else (0, 0)
    target.num_key_value_heads = c.num_key_value_heads if variant == "gta" else 0
    return target


def convert(model, variant, tokens):
    """(configuration, weights by name) of a Decoder with GQA; `tokens` [windows, T] are text that its layers' inputs are taken from."""
    c, state = model.config, {name: w.detach() for name, w in model.state_dict().items()}
    target = converted_config(c, variant)
    new = {name: w for name, w in state.items() if ".self_attn." not in name}
    for i, moments in enumerate(input_moments(model, tokens)):
        prefix = f"model.layers.{i}.self_attn."
        layer = Layer(c, state, prefix, moments, target.rope_dim)
        own = layer.gta() if variant == "gta" else layer.gla(target)
        new.update({prefix + name: w.to(state["model.norm.weight"].dtype).contiguous() for name, w in own.items()})
    return target, new


def retrain(stack, states, data, seeds, rate, steps, batch, length):
    """Trains copies with a fresh AdamW. The data order has its own seeds: no window is the first training's by design."""
    stack.start(states)
    order = torch.stack([stacked.starts(5000 + seed, steps, batch, data.numel(), length, False) for seed in seeds], 1).to(stack.device)
    window = torch.arange(length + 1, device=stack.device)
    rates = torch.full((len(seeds),), rate, device=stack.device)
    for step in range(steps):
        stack.step(data[order[step][..., None] + window].long(), rates * stacked.rate_at(step, steps))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", required=True, type=pathlib.Path, help="gqa_seeds.tar of study.py")
    p.add_argument("--out", default="out", type=pathlib.Path)
    p.add_argument("--data", default=HERE / "data", type=pathlib.Path)
    p.add_argument("--device", default="cuda")
    p.add_argument("--rates", type=float, nargs="+", default=RATES)
    p.add_argument("--shares", type=float, nargs="+", default=SHARES)
    p.add_argument("--tokens", type=float, default=FIRST_TRAINING, help="of the first training")
    p.add_argument("--batch", type=int, default=32)
    a = p.parse_args()
    torch.set_float32_matmul_precision("highest")
    if a.device == "cpu":
        torch.set_num_threads(1)
    else:
        stacked.set_kernel("flash", False)
    a.out.mkdir(parents=True, exist_ok=True)
    begun, data, valid = time.time(), load_text(a.data, "train.txt", a.device), load_text(a.data, "valid.txt", a.device)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(a.models) as archive:
            archive.extractall(folder, filter="data")
        paths = sorted((pathlib.Path(folder) / "gqa_seeds").iterdir(), key=lambda path: int(path.name[1:]))
        models, seeds = [load_model(path) for path in paths], [int(path.name[1:]) for path in paths]
    length = models[0].config.max_position_embeddings
    sample = data[: 32 * length].cpu().long().view(-1, length)
    sets = []
    for variant in ("gqa", "gta", "gla"):
        pairs = [(m.config, m.state_dict()) if variant == "gqa" else convert(m, variant, sample) for m in models]
        config, states = pairs[0][0], [state for _, state in pairs]
        stack = stacked.Stack(config, len(states), a.device)
        stack.start(states)
        found = dict(variant=variant, seeds=seeds, config=config.to_json(), parameters=stack.size, kv_elements=config.kv_elements,
                     first_training=a.tokens, batch=a.batch, converted=stack.bits_per_byte(valid, length), retrained=[])
        sets.append(found)
        for share in a.shares:
            steps = max(1, round(share * a.tokens / (a.batch * length)))
            for rate in a.rates:
                retrain(stack, states, data, seeds, rate, steps, a.batch, length)
                found["retrained"].append(dict(share=share, steps=steps, rate=rate, valid_bits=stack.bits_per_byte(valid, length)))
                (a.out / "conversion.json").write_text(json.dumps(dict(device=a.device, torch=torch.__version__, sets=sets)))
        mean = lambda bits: f"{sum(bits) / len(bits):.4f}"
        print(f"{variant}: converted {mean(found['converted'])}; " + ", ".join(
            f"{r['share']:.0%} at {r['rate']:g} {mean(r['valid_bits'])}" for r in found["retrained"]) + f"; {time.time() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
