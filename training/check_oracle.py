#!/usr/bin/env python3
"""Compare the attention modules, in float64, with layer vectors of attention_oracle.py (the JSON that its `layer` prints).

    python3 training/check_oracle.py training/data/oracle_*.json

The oracle gives the output of the last token; the modules compute every token, causally, and their last one must agree.
"""
import json
import sys

import torch

from model import ATTENTION, Config, rope_table

LIMIT = 1e-9


def load_attention(vector):
    """The module of an oracle vector, its weights renamed."""
    w, d = {name: torch.tensor(value, dtype=torch.float64) for name, value in vector["weights"].items()}, vector["dims"]
    shape = dict(hidden_size=d["model_dim"], num_attention_heads=d["q_heads"], head_dim=d["head_dim"], rope_dim=d["rope"],
                 rms_norm_eps=vector["eps"], rope_theta=vector["theta"])
    if vector["variant"] == "gta":
        config = Config("gta", num_key_value_heads=d["groups"], **shape)
        state = {"q_proj.weight": w["w_q"], "kv_proj.weight": w["w_kv"], "k_rope_proj.weight": w["w_rope_k"],
                 "k_rope_proj.bias": w["b_rope_k"], "o_proj.weight": w["w_o"]}
    else:
        config = Config("gla", latent_heads=d["groups"], latent_dim=d["state"], q_latent_dim=d["q_latent"], **shape)
        state = {"q_a_proj.weight": w["w_dq"], "q_a_proj.bias": w["b_dq"], "q_a_layernorm.weight": w["q_gain"],
                 "q_b_proj.weight": w["w_uq"], "q_b_proj.bias": w["b_uq"],
                 "kv_a_proj_with_mqa.weight": w["w_dkv"], "kv_a_proj_with_mqa.bias": w["b_dkv"], "kv_a_layernorm.weight": w["c_gain"],
                 "kv_b_proj.weight": w["w_ukv"].flatten(0, 1), "kv_b_proj.bias": w["b_ukv"].flatten(), "o_proj.weight": w["w_o"]}
    module = ATTENTION[config.attention](config).double()
    module.load_state_dict(state)
    return config, module


def main():
    files, worst = sys.argv[1:], 0.0
    if not files:
        raise SystemExit(__doc__)
    for file in files:
        with open(file) as handle:
            vector = json.load(handle)
        config, module = load_attention(vector)
        x = torch.tensor(vector["x"], dtype=torch.float64)[None]
        cos, sin = rope_table(x.shape[1], config.rotated, config.rope_theta)
        with torch.no_grad():
            y = module(x, cos, sin)[0, -1]
        gap = (y - torch.tensor(vector["y"], dtype=torch.float64)).abs().max().item()
        worst = max(worst, gap)
        print(f"{file.split('/')[-1]}: {vector['variant']} {vector['dims']} largest difference {gap:.1e}")
        if not gap < LIMIT:
            raise SystemExit(f"{file}: above {LIMIT}")
    print(f"{len(files)} vectors agree within {worst:.1e}")


if __name__ == "__main__":
    main()
