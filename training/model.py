"""A small Llama-style byte decoder with four attentions: gqa (with mha and mqa), gta, gla and mla. Plain PyTorch, explicit form.

Maths: grouped-tied and grouped-latent attention of arXiv 2505.21487 (sections 3.3.1 and 3.3.2). Parameter names, shapes and the
order of rows are those that the Rust side of latten loads. Every weight is [out, in].
"""
import json
import math
import pathlib
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

# FFN widths (multiples of 4) bring the parameter counts within 1% of each other; see `parameter_table`.
VARIANTS = {
    "mha": dict(attention="gqa", num_key_value_heads=8, intermediate_size=116),
    "mqa": dict(attention="gqa", num_key_value_heads=1, intermediate_size=264),
    "gqa": dict(num_key_value_heads=4, intermediate_size=200),
    "gta": dict(num_key_value_heads=4, rope_dim=16, intermediate_size=236),
    "gla": dict(latent_heads=2, latent_dim=64, q_latent_dim=128, rope_dim=16, intermediate_size=168),
    "mla": dict(latent_heads=1, latent_dim=128, q_latent_dim=128, rope_dim=16, intermediate_size=128),
}
# Those in examples/models.
SHIPPED = ["gqa", "gta", "gla", "mla"]
# The same six, one size larger: what differs from the shipped size, and each variant's share of it.
LARGE = dict(hidden_size=512, num_hidden_layers=8, head_dim=64)
LARGE_VARIANTS = {
    "mha": dict(attention="gqa", num_key_value_heads=8, intermediate_size=344),
    "mqa": dict(attention="gqa", num_key_value_heads=1, intermediate_size=640),
    "gqa": dict(num_key_value_heads=4, intermediate_size=512),
    "gta": dict(num_key_value_heads=4, rope_dim=32, intermediate_size=584),
    "gla": dict(latent_heads=2, latent_dim=128, q_latent_dim=256, rope_dim=32, intermediate_size=456),
    "mla": dict(latent_heads=1, latent_dim=256, q_latent_dim=256, rope_dim=32, intermediate_size=368),
}
# Small models that propose tokens to the shipped four (speculative decoding); not among those that are compared.
DRAFTS = {
    "draft": dict(attention="gqa", hidden_size=96, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
                  intermediate_size=208),
}


@dataclass
class Config:
    attention: str
    vocab_size: int = 256
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    head_dim: int = 32
    num_key_value_heads: int = 0  # gqa, gta
    latent_heads: int = 0  # gla, mla
    latent_dim: int = 0  # width of ONE latent head
    q_latent_dim: int = 0
    rope_dim: int = 0  # gta, gla, mla; gqa rotates whole heads
    intermediate_size: int = 0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e4
    max_position_embeddings: int = 1024

    @staticmethod
    def of(variant, size="small"):
        """`size` is "small" (the shipped one) or "large"."""
        own = {**LARGE, **LARGE_VARIANTS[variant]} if size == "large" else (VARIANTS | DRAFTS)[variant]
        return Config(**{"attention": variant, **own})

    @property
    def rotated(self):
        return self.head_dim if self.attention == "gqa" else self.rope_dim

    @property
    def kv_elements(self):
        """Cached elements per token and layer."""
        if self.attention == "gqa":
            return 2 * self.num_key_value_heads * self.head_dim
        if self.attention == "gta":
            return self.num_key_value_heads * self.head_dim + self.rope_dim
        return self.latent_heads * self.latent_dim + self.rope_dim

    def to_json(self):
        """config.json: only the keys that mean something for this attention."""
        keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"]
        keys += ["num_key_value_heads"] if self.attention in ("gqa", "gta") else ["latent_heads", "latent_dim", "q_latent_dim"]
        keys += [] if self.attention == "gqa" else ["rope_dim"]
        keys += ["intermediate_size", "rms_norm_eps", "rope_theta", "max_position_embeddings"]
        fields = {key: getattr(self, key) for key in keys}
        return {"model_type": "latten", "attention": self.attention, **fields, "rope_interleaved": False,
                "tie_word_embeddings": True, "tokenizer": "bytes"}

    @staticmethod
    def from_json(fields):
        known = Config.__dataclass_fields__
        return Config(**{key: value for key, value in fields.items() if key in known})


def rope_table(length, width, theta, device=None):
    """cos and sin, [length, width / 2], in float64; the caller rounds them to the precision it computes in."""
    inv_freq = theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    angle = torch.arange(length, dtype=torch.float64, device=device)[:, None] * inv_freq
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Half-rotation (NeoX) of x [batch, length, heads, width]: pairs (i, i + width / 2)."""
    a, b = x.to(cos.dtype).chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]  # one table for all heads
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def attend(q, k, v, scale):
    """Causal attention. q [B, T, heads, dk], k and v [B, T, groups, ..] with heads / groups query heads per group -> [B, T, heads * dv].

    Values narrower than the keys are padded with zeros: the fast kernels want one width, and the result is the same."""
    per_group, dv = q.shape[2] // k.shape[2], v.shape[3]
    v = F.pad(v, (0, q.shape[3] - dv))
    k, v = (t.repeat_interleave(per_group, dim=2) for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return out[..., :dv].transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    """Over the last dimension; `shape` may have leading dimensions, each with its own gain."""

    def __init__(self, *shape, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(shape)), eps

    def forward(self, x):
        h = x.to(torch.promote_types(x.dtype, torch.float32))  # statistics never in bf16
        return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps) * self.weight


class GroupedQuery(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        width, kv_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, c.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        q, k, v = (p(x).unflatten(-1, (-1, self.c.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attend(rotate(q, cos, sin), rotate(k, cos, sin), v, self.c.head_dim ** -0.5))


class GroupedTied(nn.Module):
    """One state per group serves as value and, its first part, as key; a shared rotated key completes the key."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        width = c.num_attention_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, width, bias=False)
        self.kv_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.k_rope_proj = nn.Linear(c.hidden_size, c.rope_dim, bias=True)
        self.o_proj = nn.Linear(width, c.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        c = self.c
        nope = c.head_dim - c.rope_dim
        q_nope, q_rope = self.q_proj(x).unflatten(-1, (-1, c.head_dim)).split([nope, c.rope_dim], dim=-1)
        q = torch.cat([q_nope, rotate(q_rope, cos, sin)], dim=-1)
        tied = self.kv_proj(x).unflatten(-1, (-1, c.head_dim))  # never rotated
        k_rope = rotate(self.k_rope_proj(x).unsqueeze(2), cos, sin)
        k = torch.cat([tied[..., :nope], k_rope.expand(-1, -1, tied.shape[2], -1)], dim=-1)
        return self.o_proj(attend(q, k, tied, c.head_dim ** -0.5))


class GroupedLatent(nn.Module):
    """GLA; MLA is one latent head. Keys and values are materialised from the latents (the explicit form)."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        heads, up = c.num_attention_heads, c.num_attention_heads * 2 * c.head_dim
        self.q_a_proj = nn.Linear(c.hidden_size, c.q_latent_dim, bias=True)
        self.q_a_layernorm = RMSNorm(c.q_latent_dim, eps=c.rms_norm_eps)
        self.q_b_proj = nn.Linear(c.q_latent_dim, heads * (c.head_dim + c.rope_dim), bias=True)
        self.kv_a_proj_with_mqa = nn.Linear(c.hidden_size, c.latent_heads * c.latent_dim + c.rope_dim, bias=True)
        self.kv_a_layernorm = RMSNorm(c.latent_heads, c.latent_dim, eps=c.rms_norm_eps)
        self.kv_b_proj = nn.Linear(c.latent_dim, up, bias=True)  # row block i belongs to latent head i
        self.o_proj = nn.Linear(heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        c = self.c
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).unflatten(-1, (c.num_attention_heads, -1))
        q_nope, q_rope = q.split([c.head_dim, c.rope_dim], dim=-1)
        q = torch.cat([q_nope, rotate(q_rope, cos, sin)], dim=-1)
        latents, k_rope = self.kv_a_proj_with_mqa(x).split([c.latent_heads * c.latent_dim, c.rope_dim], dim=-1)
        latents = self.kv_a_layernorm(latents.unflatten(-1, (c.latent_heads, c.latent_dim)))
        weights, biases = self.kv_b_proj.weight.chunk(c.latent_heads), self.kv_b_proj.bias.chunk(c.latent_heads)
        up = torch.cat([F.linear(latents[:, :, i], w, b) for i, (w, b) in enumerate(zip(weights, biases))], dim=-1)
        k_nope, v = up.unflatten(-1, (c.num_attention_heads, -1)).chunk(2, dim=-1)
        k_rope = rotate(k_rope.unsqueeze(2), cos, sin)  # not normalised, shared by all heads
        k = torch.cat([k_nope, k_rope.expand(-1, -1, c.num_attention_heads, -1)], dim=-1)
        return self.o_proj(attend(q, k, v, (c.head_dim + c.rope_dim) ** -0.5))


ATTENTION = {"gqa": GroupedQuery, "gta": GroupedTied, "gla": GroupedLatent, "mla": GroupedLatent}


class SwiGLU(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.self_attn = ATTENTION[c.attention](c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = SwiGLU(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        cos, sin = rope_table(config.max_position_embeddings, config.rotated, config.rope_theta)
        self.register_buffer("cos", cos.float(), persistent=False)
        self.register_buffer("sin", sin.float(), persistent=False)
        self.initialise()

    def initialise(self, std=0.02):
        """Normal weights, zero biases, unit gains; matrices that write to the residual stream start smaller, as in GPT-2."""
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif "norm" in name:
                nn.init.ones_(p)
            else:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=std / math.sqrt(2 * self.config.num_hidden_layers) if residual else std)

    def forward(self, tokens):
        """tokens [B, T] -> logits [B, T, vocab]."""
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)  # tied

    def parameter_count(self):
        return sum(p.numel() for p in self.parameters())


def f16_state(model):
    """The weights as they are shipped: float16, on the CPU."""
    return {name: p.detach().to("cpu", torch.float16).contiguous() for name, p in model.state_dict().items()}


def save_model(folder, config, state):
    from safetensors.torch import save_file
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder):
    """A saved model in float32 (its float16 weights upcast)."""
    from safetensors.torch import load_file
    folder = pathlib.Path(folder)
    model = Decoder(Config.from_json(json.loads((folder / "config.json").read_text())))
    model.load_state_dict({name: w.float() for name, w in load_file(folder / "model.safetensors").items()})
    return model.eval()


def parameter_table(size="small"):
    rows = []
    for variant in VARIANTS:
        config = Config.of(variant, size)
        with torch.device("meta"):  # no weights are needed to count them
            rows.append((variant, Decoder(config).parameter_count(), config))
    return rows


if __name__ == "__main__":
    for size in ("small", "large"):
        rows = parameter_table(size)
        mean = sum(count for _, count, _ in rows) / len(rows)
        for variant, count, config in rows:
            print(f"{size} {variant}: {count} parameters ({100 * (count / mean - 1):+.2f}% of the mean), FFN {config.intermediate_size}, "
                  f"KV elements per token and layer {config.kv_elements}, f16 KV bytes per token {config.kv_elements * 2 * config.num_hidden_layers}")
