"""Tiny random models of published families, run by the transformers library on the CPU in float32: tests/vectors/hf/.

    python3 training/hf_oracle.py [family ..]        # PyTorch and transformers 5 (5.24 was used); a minute on two cores

Per case a folder with config.json, as transformers writes it or in an older form that it reads, and vectors.json: names
and shapes of the tensors that transformers saves, logits of a prompt, greedy tokens after it. Weights follow from the names
(`values`), so they are not kept, but for one case, whose folder is what save_pretrained wrote: bf16 in several files.
"""

import json
import os
import shutil
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from weights import OUT, packed_values, values, write_vectors

VOCAB = 300
PROMPT = 24  # or what a case says
NEW = 16

BASE = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
    "max_position_embeddings": 128, "hidden_act": "silu", "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}
GQA = {**BASE, "num_key_value_heads": 2}
MLA = {
    **BASE, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 24, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 20, "first_k_dense_replace": 2, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1, "num_nextn_predict_layers": 0,
}
EXPERTS = {
    **MLA, "first_k_dense_replace": 1, "n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 20,
    "n_shared_experts": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def yarn(**more):
    usual = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    return {**usual, **more}


# An eps of 0.03 tells apart the norms that have it from those that have not.
# Keys in "old" replace those that transformers writes: the form of files before transformers 5. None removes a key.
CASES = {
    "llama": {
        "config": {**GQA, "model_type": "llama", "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-5},
        "keep_weights": True,
    },
    "llama_linear": {
        "config": {**GQA, "model_type": "llama", "tie_word_embeddings": True},
        "old": {
            "rope_parameters": None, "head_dim": None, "rope_theta": 500.0,
            "rope_scaling": {"type": "linear", "factor": 4.0},
        },
    },
    "llama_llama3": {
        "config": {
            **GQA, "model_type": "llama", "head_dim": 12, "num_key_value_heads": 8, "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        },
    },
    "llama_yarn": {
        "config": {**GQA, "model_type": "llama"},
        "old": {
            "rope_parameters": None, "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16},
        },
    },
    "mistral": {
        "config": {
            **GQA, "model_type": "mistral", "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24,
            "sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    },
    # Tokens see the last eight alone, in every layer; of Qwen2 the layers from max_window_layers on.
    "mistral_window": {
        "config": {
            **GQA, "model_type": "mistral", "sliding_window": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
        "prompt": 30,
    },
    "qwen2_window": {
        "config": {
            **GQA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
        "prompt": 30,
    },
    # The layers from max_window_layers on have it.
    "qwen2_some_windows": {
        "config": {
            **GQA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
        "prompt": 30,
    },
    "qwen2": {
        "config": {
            **GQA, "model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False,
            "rope_parameters": yarn(
                rope_theta=100.0, original_max_position_embeddings=64, attention_factor=1.3, beta_fast=8.0,
                beta_slow=0.5, truncate=False,
            ),
        },
    },
    # A norm of each head of queries and keys, before it rotates.
    "qwen3": {
        "config": {
            **GQA, "model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": True, "rms_norm_eps": 0.03,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    "qwen3_window": {
        "config": {
            **GQA, "model_type": "qwen3", "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 4, "attention_bias": True,
            "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
        "prompt": 30,
    },
    "qwen3_moe": {
        "config": {
            **GQA, "model_type": "qwen3_moe", "head_dim": 12, "num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 20,
            "norm_topk_prob": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    "mixtral": {
        "config": {
            **GQA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 20,
            "sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    # Queries, keys and values in one matrix, gate and up in another.
    "phi3": {
        "config": {
            **GQA, "model_type": "phi3", "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    # Multipliers of embeddings, of what layers add, of scores and of logits.
    "granite": {
        "config": {
            **GQA, "model_type": "granite", "embedding_multiplier": 3.0, "residual_multiplier": 0.8,
            "attention_multiplier": 0.5, "logits_scaling": 0.5, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    # Every fourth layer does not rotate.
    "smollm3": {
        "config": {
            **GQA, "model_type": "smollm3", "num_hidden_layers": 4, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    # A sink in each head, biases in all products, experts of a clamped SwiGLU, a window in every other layer.
    "gpt_oss": {
        "config": {
            **GQA, "model_type": "gpt_oss", "head_dim": 16, "intermediate_size": 32, "num_local_experts": 6, "num_experts_per_tok": 2,
            "sliding_window": 8, "swiglu_limit": 0.75, "attention_bias": True,
            "rope_parameters": yarn(rope_theta=1000.0, beta_fast=8.0, beta_slow=0.5, truncate=False),
        },
        "prompt": 30,
    },
    # Its experts' matrices in MXFP4, as published; keys of older files.
    "gpt_oss_mxfp4": {
        "config": {
            **GQA, "model_type": "gpt_oss", "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 64, "num_local_experts": 4,
            "num_experts_per_tok": 3, "sliding_window": 8, "attention_bias": True,
        },
        "old": {
            "rope_parameters": None, "rope_theta": 1000.0, "swiglu_limit": 1.0, "swiglu_alpha": None, "initial_context_length": 16,
            "experts_per_token": 3, "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": False,
                "original_max_position_embeddings": 16,
            },
        },
        "mxfp4": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        },
        "prompt": 30,
    },
    # Three quarters of a head rotate, by factors for each pair: the short ones up to 64 tokens, the long ones beyond.
    "phi3_longrope": {
        "config": {
            **GQA, "model_type": "phi3", "num_attention_heads": 4, "sliding_window": None, "tie_word_embeddings": True,
            "original_max_position_embeddings": 64, "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1000.0, "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5], "long_factor": [1.0, 2.0, 4.0, 6.0, 8.0, 9.0],
            },
        },
    },
    "phi3_longrope_long": {
        "config": {
            **GQA, "model_type": "phi3", "num_attention_heads": 4, "sliding_window": None, "tie_word_embeddings": True,
            "original_max_position_embeddings": 8, "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1000.0, "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5], "long_factor": [1.0, 2.0, 4.0, 6.0, 8.0, 9.0],
            },
        },
    },
    # Within max_position_embeddings this is no scaling.
    "llama_dynamic": {
        "config": {
            **GQA, "model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0},
        },
    },
    # Norms behind attention and feed-forward, none before; one norm over all queries, one over all keys.
    "olmo2": {
        "config": {
            **GQA, "model_type": "olmo2", "rms_norm_eps": 0.03,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    # Half of a head rotates, in neighbours; norms before and behind.
    "glm4": {
        "config": {
            **GQA, "model_type": "glm4", "head_dim": 16, "attention_bias": True, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
        },
    },
    "glm": {
        "config": {
            **GQA, "model_type": "glm", "head_dim": 12, "attention_bias": True, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
        },
    },
    "glm4_moe_lite": {
        "config": {
            **EXPERTS, "model_type": "glm4_moe_lite", "q_lora_rank": 28, "n_group": 1, "topk_group": 1,
            "norm_topk_prob": True, "routed_scaling_factor": 1.8, "rms_norm_eps": 1e-5,
        },
    },
    # A window in every other layer, softcaps on scores and logits, a scale of queries, GeGLU, norms of gain 1 + weight.
    "gemma2": {
        "config": {
            **GQA, "model_type": "gemma2", "num_hidden_layers": 3, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 6.0,
            "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
        "old": {"hidden_act": None},
        "prompt": 30,
    },
    # A window in five of six layers, which rotate by a base of their own; norms of heads.
    "gemma3": {
        "config": {
            **GQA, "model_type": "gemma3_text", "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 8, "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            },
        },
        "old": {"hidden_act": None},
        "prompt": 30,
    },
    "deepseek_v2_lite": {
        "config": {
            **MLA, "model_type": "deepseek_v2", "q_lora_rank": None, "rms_norm_eps": 0.03,
            "rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.707, beta_fast=32, beta_slow=1),
        },
    },
    "deepseek_v2": {
        "config": {
            **MLA, "model_type": "deepseek_v2", "q_lora_rank": 28, "attention_bias": True,
            "rope_parameters": yarn(mscale=1.0, mscale_all_dim=0.5),
        },
    },
    "deepseek_v3": {
        "config": {**MLA, "model_type": "deepseek_v3", "q_lora_rank": 28, "rms_norm_eps": 0.03},
        "old": {
            "rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {
                "type": "yarn", "factor": 8, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
                "mscale": 1.0, "mscale_all_dim": 1.0,
            },
        },
    },
    # A dense layer, then one with experts: chosen among all, or among the groups of the best. As V3 does, in both layers.
    "deepseek_v2_greedy": {
        "config": {**EXPERTS, "model_type": "deepseek_v2", "q_lora_rank": None, "topk_method": "greedy"},
        "old": {"scoring_func": "softmax", "moe_layer_freq": 1, "norm_topk_prob": False},
    },
    "deepseek_v2_groups": {
        "config": {
            **EXPERTS, "model_type": "deepseek_v2", "q_lora_rank": 28, "topk_method": "group_limited_greedy",
            "n_group": 4, "topk_group": 2, "routed_scaling_factor": 4.0,
        },
    },
    "deepseek_v3_experts": {
        "config": {
            **EXPERTS, "model_type": "deepseek_v3", "q_lora_rank": 28, "n_group": 6, "topk_group": 2,
            "first_k_dense_replace": 0, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        },
        "old": {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1},
    },
    "deepseek_v3_halves": {
        "config": {
            **MLA, "model_type": "deepseek_v3", "q_lora_rank": None, "rope_interleave": False, "v_head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
}


def in_mxfp4(tensors):
    """Puts experts that are in MXFP4 in the place of those in numbers, read by the library; returns the shapes of what is in the files."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, in_dim, out_dim = shapes.pop(name)
        packed = {f"{name}_blocks": [experts, out_dim, in_dim // 32, 16], f"{name}_scales": [experts, out_dim, in_dim // 32]}
        blocks, scales = [packed_values(part, shape) for part, shape in packed.items()]
        tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
        shapes.update(packed)
    return shapes


def prepared(case, folder):
    """Writes the folder of a case, weights in f32, and returns the names and shapes of its tensors."""
    settings = dict(case["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    weights = os.path.join(folder, "model.safetensors")
    tensors = {name: values(name, tensor.shape).contiguous() for name, tensor in load_file(weights).items()}
    shapes = in_mxfp4(tensors) if "mxfp4" in case else {name: list(tensor.shape) for name, tensor in tensors.items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    for key, value in case.get("old", {}).items():
        config[key] = value
        if value is None:
            del config[key]
    with open(path, "w") as file:
        json.dump(config, file, indent=1)
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    return dict(sorted(shapes.items()))


def make(name, case):
    with tempfile.TemporaryDirectory() as folder:
        tensors = prepared(case, folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        out = os.path.join(OUT, name)
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        logits = lambda tokens: model(tokens[None], use_cache=False).logits[0]
        write_vectors(name, logits, tensors, case.get("prompt", PROMPT), NEW, VOCAB)
        if case.get("keep_weights"):
            model.to(torch.bfloat16).save_pretrained(out, max_shard_size="80KB")
            extra = os.path.join(out, "generation_config.json")
            if os.path.exists(extra):
                os.remove(extra)
        else:
            shutil.copy(os.path.join(folder, "config.json"), out)
        if "mxfp4" in case:
            path = os.path.join(out, "config.json")
            with open(path) as file:
                config = json.load(file)
            with open(path, "w") as file:
                json.dump({**config, "quantization_config": case["mxfp4"]}, file, indent=1)


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        make(name, CASES[name])
