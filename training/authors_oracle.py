"""Tiny random models around the GTA and GLA layers of the paper (arXiv 2505.21487), under the parameter names of its
authors' code (github.com/Dao-AILab/grouped-latent-attention): tests/vectors/hf/authors_*.

    python3 training/authors_oracle.py [case ..]     # PyTorch alone; half a minute on two cores

Written from the paper's equations, in the explicit form that training has, without a cache. Around the layers is a
Llama: RMSNorm, SwiGLU, rotations in halves. Of the authors' code names, shapes, config keys and which matrices have
biases were looked up: W_* always, the others with attention_bias and mlp_bias. Files are as hf_oracle.py writes them.
"""

import json
import os
import shutil
import sys

import torch

from weights import OUT, values, write_vectors

VOCAB = 300
PROMPT = 24
NEW = 16
BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 64,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "hidden_act": "silu", "rope_theta": 100.0, "rope_scaling": None,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}
# An eps of 0.03 tells apart the norms that have it from those that have not.
CASES = {
    "authors_gta": {**BASE, "rope_dim": 8, "partial_rotary_factor": 0.5, "attention_bias": True, "rms_norm_eps": 1e-5},
    "authors_gta_plain": {
        **BASE, "head_dim": 20, "rope_dim": 6, "num_key_value_heads": 1, "tie_word_embeddings": False,
        "partial_rotary_factor": 0.3, "rms_norm_eps": 1e-6,
    },
    "authors_gla": {**BASE, "qk_rope_dim": 8, "partial_rotary_factor": 0.5, "rms_norm_eps": 0.03},
    "authors_gla_biased": {
        **BASE, "num_attention_heads": 6, "head_dim": 12, "qk_rope_dim": 4, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    },
}


def head_dim(c):
    return c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])


def shapes(c):
    """Of all tensors, by name."""
    made = {}
    width, heads, dim = c["hidden_size"], c["num_attention_heads"], head_dim(c)

    def linear(name, rows, columns, bias):
        made[f"{name}.weight"] = [rows, columns]
        if bias:
            made[f"{name}.bias"] = [rows]

    made["model.embed_tokens.weight"] = [c["vocab_size"], width]
    made["model.norm.weight"] = [width]
    if not c["tie_word_embeddings"]:
        linear("lm_head", c["vocab_size"], width, False)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        made[f"{layer}.input_layernorm.weight"] = [width]
        made[f"{layer}.post_attention_layernorm.weight"] = [width]
        linear(f"{layer}.mlp.gate_proj", c["intermediate_size"], width, c["mlp_bias"])
        linear(f"{layer}.mlp.up_proj", c["intermediate_size"], width, c["mlp_bias"])
        linear(f"{layer}.mlp.down_proj", width, c["intermediate_size"], c["mlp_bias"])
        at = f"{layer}.self_attn"
        linear(f"{at}.o_proj", width, heads * dim, c["attention_bias"])
        if "rope_dim" in c:
            linear(f"{at}.q_proj", heads * dim, width, c["attention_bias"])
            linear(f"{at}.kv_proj", c["num_key_value_heads"] * dim, width, c["attention_bias"])
            linear(f"{at}.W_rope_k", c["rope_dim"], width, True)
            continue
        rope = c["qk_rope_dim"]
        linear(f"{at}.W_dQ", 8 * dim, width, True)
        made[f"{at}.q_norm.weight"] = [8 * dim]
        linear(f"{at}.W_uQ_rope", heads * (dim + rope), 8 * dim, True)
        linear(f"{at}.W_dKV", 4 * dim + rope, width, True)
        for latent in (1, 2):
            made[f"{at}.kv_norm_{latent}.weight"] = [2 * dim]
            linear(f"{at}.W_ukv_{latent}", heads * dim, 2 * dim, True)
    return made


class Model:
    """(tokens) -> logits (tokens, vocab_size), in f32."""

    def __init__(self, config):
        self.c = config
        self.w = {name: values(name, shape) for name, shape in shapes(config).items()}

    def linear(self, name, x):
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, name, x):
        mean = (x * x).mean(-1, keepdim=True)
        return x / torch.sqrt(mean + self.c["rms_norm_eps"]) * self.w[f"{name}.weight"]

    def rotate(self, x):
        """(tokens, heads, d): pairs are i and i + d / 2."""
        half = x.shape[-1] // 2
        frequencies = self.c["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(x.shape[0], dtype=torch.float32)[:, None, None] * frequencies
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def attend(self, q, k, v):
        """(tokens, heads, width): each token sees itself and those before it."""
        scores = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        return torch.einsum("hij,jhd->ihd", weights, v).flatten(1)

    def gta(self, at, x):
        tokens, dim, rope = x.shape[0], head_dim(self.c), self.c["rope_dim"]
        heads, groups = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        q = self.linear(f"{at}.q_proj", x).reshape(tokens, heads, dim)
        q = torch.cat([q[..., : dim - rope], self.rotate(q[..., dim - rope :])], -1)
        tied = self.linear(f"{at}.kv_proj", x).reshape(tokens, groups, dim).repeat_interleave(heads // groups, 1)
        rotated = self.rotate(self.linear(f"{at}.W_rope_k", x)[:, None]).expand(-1, heads, -1)
        return self.attend(q, torch.cat([tied[..., : dim - rope], rotated], -1), tied)

    def gla(self, at, x):
        tokens, dim, rope, heads = x.shape[0], head_dim(self.c), self.c["qk_rope_dim"], self.c["num_attention_heads"]
        latent_q = self.norm(f"{at}.q_norm", self.linear(f"{at}.W_dQ", x))
        q = self.linear(f"{at}.W_uQ_rope", latent_q).reshape(tokens, heads, dim + rope)
        q = torch.cat([q[..., :dim], self.rotate(q[..., dim:])], -1)
        first, second, rotated = self.linear(f"{at}.W_dKV", x).split([2 * dim, 2 * dim, rope], -1)
        made = []
        for number, latent in ((1, first), (2, second)):
            up = self.linear(f"{at}.W_ukv_{number}", self.norm(f"{at}.kv_norm_{number}", latent))
            made.append(up.reshape(tokens, heads // 2, 2 * dim))
        k, v = torch.cat(made, 1).split(dim, -1)
        rotated = self.rotate(rotated[:, None]).expand(-1, heads, -1)
        return self.attend(q, torch.cat([k, rotated], -1), v)

    def __call__(self, tokens):
        x = self.w["model.embed_tokens.weight"][tokens]
        for i in range(self.c["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            at = f"{layer}.self_attn"
            attention = self.gta if "rope_dim" in self.c else self.gla
            x = x + self.linear(f"{at}.o_proj", attention(at, self.norm(f"{layer}.input_layernorm", x)))
            y = self.norm(f"{layer}.post_attention_layernorm", x)
            gate, up = (self.linear(f"{layer}.mlp.{part}_proj", y) for part in ("gate", "up"))
            x = x + self.linear(f"{layer}.mlp.down_proj", torch.nn.functional.silu(gate) * up)
        head = "model.embed_tokens" if self.c["tie_word_embeddings"] else "lm_head"
        return self.linear(head, self.norm("model.norm", x))


def make(name, config):
    out = os.path.join(OUT, name)
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    write_vectors(name, Model(config), shapes(config), PROMPT, NEW, VOCAB)


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        make(name, CASES[name])
