"""Writes tests/vectors/smollm2.json: what the transformers library makes of SmolLM2-135M-Instruct, its Q4_1 weights dequantised to f32.

    python3 training/smollm2_oracle.py SmolLM2-135M-Instruct.Q4_1.gguf

Needs torch, transformers, accelerate and gguf; tests/vectors/smollm2.json says with which versions it was made. The file is the one that
./dev chat fetches. For each chat: the rendered prompt, its tokens, the greedy tokens behind them (64, or up to an end), and how far
the best logit was above the second at least. And the negative log-likelihood of tests/vectors/held_out.txt, of each of its windows
of 512 tokens by itself, without its first token.
"""

import json
import os
import sys
from importlib.metadata import version

import torch
import transformers

TOKENS = 64
WINDOW = 512
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "vectors")

SYSTEM = "You answer in one short sentence."
CHATS = [
    [("user", "What is the capital of France?")],
    [("user", "Write a haiku about the sea.")],
    [("system", SYSTEM), ("user", "Why is the sky blue?")],
    [("user", "List three uses of a paperclip.")],
    [("user", "What is 17 + 25?")],
    [("system", "You are a pirate."), ("user", "Tell me about your ship.")],
    [("user", "Translate \"good morning\" into Spanish.")],
    [("user", "My name is Ada."), ("assistant", "Hello Ada! How can I help?"), ("user", "What is my name?")],
    [("user", "Explain photosynthesis to a child.\nUse two sentences.")],
    [("user", "Write a Python function that reverses a string.")],
]


def greedy(model, ids, ends, count=TOKENS):
    made, gap = [], float("inf")
    cache, tokens = None, torch.tensor([ids])
    while len(made) < count:
        out = model(tokens, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = torch.topk(out.logits[0, -1], 2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        made.append(int(best.indices[0]))
        if made[-1] in ends:
            break
        tokens = torch.tensor([[made[-1]]])
    return made, gap


def held_out(model, tokenizer):
    with open(os.path.join(ROOT, "held_out.txt"), encoding="utf-8") as file:
        ids = tokenizer(file.read(), add_special_tokens=False)["input_ids"]
    nll = []
    for first in range(0, len(ids), WINDOW):
        window = torch.tensor([ids[first : first + WINDOW]])
        logits = torch.log_softmax(model(window, use_cache=False).logits[0, :-1].double(), -1)
        nll.append(-float(logits.gather(1, window[0, 1:, None]).sum()))
    return {"window": WINDOW, "tokens": len(ids), "ids": ids[:WINDOW], "nll": nll}


def main():
    folder, name = os.path.split(os.path.abspath(sys.argv[1]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    chats = []
    for chat in CHATS:
        messages = [{"role": role, "content": content} for role, content in chat]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        made, gap = greedy(model, ids, {tokenizer.eos_token_id})
        print(repr(tokenizer.decode(made)), f"{gap:.3f}", flush=True)
        chats.append({"messages": messages, "rendered": rendered, "ids": ids, "greedy": made, "min_gap": round(gap, 4)})
    versions = {name: version(name) for name in ["torch", "transformers", "gguf"]}
    with open(os.path.join(ROOT, "smollm2.json"), "w", encoding="utf-8") as file:
        chats = ",\n".join(json.dumps(chat) for chat in chats)
        file.write(f'{{"versions": {json.dumps(versions)},\n"chats": [\n{chats}\n],\n"held_out": {json.dumps(held_out(model, tokenizer))}}}\n')


if __name__ == "__main__":
    with torch.no_grad():
        main()
