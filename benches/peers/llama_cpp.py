"""llama.cpp on Vulkan beside latten: the same shape of model, batch 1, in one run. See README.md.

    python3 benches/peers/llama_cpp.py fetch DIR
    python3 benches/peers/llama_cpp.py run DIR [--types f16,q8_0,q4_0,q4_k] [--ours FILE.json ..]
    python3 benches/peers/llama_cpp.py answers DIR FILE.gguf
"""

import argparse
import ctypes
import glob
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

PACKAGE = "@node-llama-cpp/linux-x64-vulkan"
# The same without a GPU: Vulkan's package has no backend of processors.
PACKAGE_CPU = "@node-llama-cpp/linux-x64"
# prefill_table's 1471m with GQA-4.
SHAPE = {"layers": 24, "hidden": 2048, "heads": 16, "kv_heads": 4, "head_dim": 128, "ffn": 5632, "vocab": 50304}
# Elements that are drawn; every matrix is a part of them, over and over.
DRAWN = 3 << 20
# Seconds of the same work before anything is timed, as prefill_table has it; and most of them, as long as it gets faster.
WARM, MOST_WARM = 0.5, 5


def fetch(folder):
    """Packages into a folder, where there is a network."""
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", PACKAGE, PACKAGE_CPU], cwd=folder, check=True)
    wheel = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder, "gguf"]
    subprocess.run(wheel, check=True)
    for name in sorted(os.listdir(folder)):
        print(f"{os.path.getsize(os.path.join(folder, name)) >> 10:8} KiB  {name}")


def one(pattern):
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        sys.exit(f"{pattern}: not there; run fetch first")
    return found[-1]


# --- the model ---------------------------------------------------------------------------------------------------------


def pool(kind, elements, deviation):
    """Bytes of random matrices with this many elements, and bytes and elements of a block."""
    import numpy as np
    from gguf import quants, GGML_QUANT_SIZES, GGMLQuantizationType

    rng = np.random.default_rng(11)
    if kind == "f16":
        drawn, block = (rng.standard_normal(DRAWN, dtype=np.float32) * deviation).astype(np.float16), (1, 2)
    elif kind == "q4_k":
        # gguf has no such quantiser. For the speed any block does whose numbers are of the right size: factors of the scales
        # and the minima, then 6 bits of each of these and 4 of each number, at random.
        size, width = GGML_QUANT_SIZES[GGMLQuantizationType.Q4_K]
        drawn = rng.integers(0, 256, (DRAWN // size, width), dtype=np.uint8)
        drawn[:, :4] = np.array([deviation / 150, deviation / 20], dtype=np.float16).view(np.uint8)
        block = (size, width)
    else:
        qtype = GGMLQuantizationType[kind.upper()]
        rows = (rng.standard_normal(DRAWN, dtype=np.float32) * deviation).reshape(-1, 1024)
        drawn, block = quants.quantize(rows, qtype), GGML_QUANT_SIZES[qtype]
    drawn = np.ascontiguousarray(drawn).view(np.uint8).reshape(-1)
    size, width = block
    need = elements // size * width + drawn.size
    return np.tile(drawn, -(-need // drawn.size)), drawn.size, block


def write_model(path, kind, shape):
    """A Llama of random numbers without a tokenizer; its head is its table."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    s = shape
    matrices = [("token_embd.weight", s["vocab"], s["hidden"])]
    norms = ["output_norm.weight"]
    for i in range(s["layers"]):
        q, kv = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
        matrices += [
            (f"blk.{i}.attn_q.weight", q, s["hidden"]), (f"blk.{i}.attn_k.weight", kv, s["hidden"]),
            (f"blk.{i}.attn_v.weight", kv, s["hidden"]), (f"blk.{i}.attn_output.weight", s["hidden"], q),
            (f"blk.{i}.ffn_gate.weight", s["ffn"], s["hidden"]), (f"blk.{i}.ffn_up.weight", s["ffn"], s["hidden"]),
            (f"blk.{i}.ffn_down.weight", s["hidden"], s["ffn"]),
        ]
        norms += [f"blk.{i}.attn_norm.weight", f"blk.{i}.ffn_norm.weight"]
    largest = max(rows * width for _, rows, width in matrices)
    data, period, (size, width_bytes) = pool(kind, largest, 1.7 * s["hidden"] ** -0.5)
    out = GGUFWriter(path, "llama")
    out.add_block_count(s["layers"])
    out.add_context_length(1 << 17)
    out.add_embedding_length(s["hidden"])
    out.add_feed_forward_length(s["ffn"])
    out.add_head_count(s["heads"])
    out.add_head_count_kv(s["kv_heads"])
    out.add_rope_dimension_count(s["head_dim"])
    out.add_rope_freq_base(10000.0)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(s["vocab"])
    out.add_tokenizer_model("no_vocab")
    for index, (name, rows, width) in enumerate(matrices):
        row = width // size * width_bytes
        start = index * 1_000_003 * width_bytes % period
        part = data[start : start + rows * row].reshape(rows, row)
        if kind == "f16":
            out.add_tensor(name, part.view(np.float16))
        else:
            out.add_tensor(name, part, raw_dtype=GGMLQuantizationType[kind.upper()])
    for name in norms:
        out.add_tensor(name, np.ones(s["hidden"], dtype=np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


# --- llama.cpp, by its C API --------------------------------------------------------------------------------------------


class Params(ctypes.Structure):
    """Parameters of a model or a context, longer than either is: only fields whose place does not change are set."""

    _fields_ = [("words", ctypes.c_uint32 * 128)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32), ("token", ctypes.c_void_p), ("embd", ctypes.c_void_p), ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p), ("seq_id", ctypes.c_void_p), ("logits", ctypes.c_void_p),
    ]


class Llama:
    def __init__(self, folder, verbose):
        load = lambda name: ctypes.CDLL(one(f"{folder}/**/{name}"), mode=ctypes.RTLD_GLOBAL)
        load("libggml-base.*")
        self.ggml, self.lib = load("libggml.*"), load("libllama.*")
        for library, name, result, arguments in [
            (self.ggml, "ggml_backend_load_all_from_path", None, [ctypes.c_char_p]),
            (self.ggml, "ggml_backend_dev_count", ctypes.c_size_t, []),
            (self.ggml, "ggml_backend_dev_get", ctypes.c_void_p, [ctypes.c_size_t]),
            (self.ggml, "ggml_backend_dev_description", ctypes.c_char_p, [ctypes.c_void_p]),
            (self.lib, "llama_log_set", None, [ctypes.c_void_p, ctypes.c_void_p]),
            (self.lib, "llama_backend_init", None, []),
            (self.lib, "llama_model_default_params", Params, []),
            (self.lib, "llama_context_default_params", Params, []),
            (self.lib, "llama_model_load_from_file", ctypes.c_void_p, [ctypes.c_char_p, Params]),
            (self.lib, "llama_init_from_model", ctypes.c_void_p, [ctypes.c_void_p, Params]),
            (self.lib, "llama_model_free", None, [ctypes.c_void_p]),
            (self.lib, "llama_free", None, [ctypes.c_void_p]),
            (self.lib, "llama_set_n_threads", None, [ctypes.c_void_p] + 2 * [ctypes.c_int32]),
            (self.lib, "llama_get_memory", ctypes.c_void_p, [ctypes.c_void_p]),
            (self.lib, "llama_memory_seq_rm", ctypes.c_bool, [ctypes.c_void_p] + 3 * [ctypes.c_int32]),
            (self.lib, "llama_batch_get_one", Batch, [ctypes.c_void_p, ctypes.c_int32]),
            (self.lib, "llama_decode", ctypes.c_int32, [ctypes.c_void_p, Batch]),
            (self.lib, "llama_sampler_init_greedy", ctypes.c_void_p, []),
            (self.lib, "llama_sampler_sample", ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]),
        ]:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        if not verbose:
            self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
            self.lib.llama_log_set(ctypes.cast(self.quiet, ctypes.c_void_p), None)
        self.ggml.ggml_backend_load_all_from_path(os.path.dirname(one(f"{folder}/**/libggml.*")).encode())
        self.lib.llama_backend_init()
        count = self.ggml.ggml_backend_dev_count()
        devices = [self.ggml.ggml_backend_dev_get(i) for i in range(count)]
        self.devices = [self.ggml.ggml_backend_dev_description(device).decode() for device in devices]

    def open(self, path, context, micro_batch):
        lib = self.lib
        params = lib.llama_model_default_params()
        params.words[4] = 999  # n_gpu_layers, behind two pointers
        self.model = lib.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"{path}: llama.cpp does not load it")
        params = lib.llama_context_default_params()
        params.words[0], params.words[1], params.words[2] = context, 2048, micro_batch
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp makes no context")
        self.sampler, self.memory = lib.llama_sampler_init_greedy(), lib.llama_get_memory(self.context)

    def close(self):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def feed(self, tokens):
        """The greedy token behind some more tokens."""
        for first in range(0, len(tokens), 2048):
            part = tokens[first : first + 2048]
            array = (ctypes.c_int32 * len(part))(*part)
            failed = self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(part)))
            if failed:
                sys.exit(f"llama_decode: {failed}")
        return self.lib.llama_sampler_sample(self.sampler, self.context, -1)

    def cut(self, length):
        self.lib.llama_memory_seq_rm(self.memory, 0, length, -1)


# --- measuring ----------------------------------------------------------------------------------------------------------


def timed(work):
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def measure(llama, path, shape, args):
    """Milliseconds: cold start, prompt, a step at each length."""
    text = lambda length: [i * 2654435761 % 2**32 % shape["vocab"] for i in range(length)]
    opened, _ = timed(lambda: llama.open(path, max(args.lengths + [args.prompt]) + args.steps + 64, args.micro_batch))
    prompt = text(args.prompt)
    first, _ = timed(lambda: llama.feed(prompt))
    found = {"load_ms": 1e3 * opened, "first_token_ms": 1e3 * (opened + first), "decode_ms": {}}

    def again():
        llama.cut(0)
        return llama.feed(prompt)

    start = time.perf_counter()
    while time.perf_counter() - start < WARM:
        again()
    found["prompt_ms"] = 1e3 * statistics.median(timed(again)[0] for _ in range(7))
    for length in args.lengths:
        llama.cut(0)
        before = length - args.steps
        token, start, last = llama.feed(text(before)), time.perf_counter(), float("inf")
        while True:
            steps = []
            for _ in range(args.steps):
                seconds, token = timed(lambda: llama.feed([token]))
                steps.append(seconds)
            step, warmed = statistics.median(steps), time.perf_counter() - start
            # Its first steps compile, and a card that has waited for that runs slowly for a while.
            if warmed >= MOST_WARM or warmed >= WARM and step > 0.95 * last:
                break
            last = min(last, step)
            llama.cut(before)
        found["decode_ms"][str(length)] = 1e3 * step
    llama.close()
    return found


def of_ours(path, args):
    """The same of a file of prefill_table --json, its first variant."""
    with open(path) as file:
        table = json.load(file)
    variant = (table["decode"] or table["prefill"])[0]["variant"]
    rows = [row for row in table["decode"] if row["variant"] == variant and row["batch"] == 1]
    prompts = [row["ms"] for row in table["prefill"] if row["variant"] == variant and row["tokens"] == args.prompt]
    cold = table.get("cold_start") or {}
    return f"latten, {variant}, {table['weights']}, {table['tier']}", {
        "load_ms": cold.get("load_ms"), "first_token_ms": cold.get("first_token_ms"),
        "prompt_ms": min(prompts, default=None), "decode_ms": {str(row["length"]): row["ms"] for row in rows},
    }


def print_rows(rows, args):
    number = lambda value, form: "-" if value is None else format(value, form)
    lengths = [f"L {length:,}" for length in args.lengths]
    print("| | " + " | ".join(lengths) + f" | prompt of {args.prompt:,} | load to first token |")
    print("|---" * (len(lengths) + 3) + "|")
    for name, found in rows:
        steps = [found["decode_ms"].get(str(length)) for length in args.lengths]
        cells = [number(ms and 1e3 / ms, ".0f") for ms in steps]
        cells += [number(found["prompt_ms"], ".1f") + " ms", number(found["first_token_ms"], ".0f") + " ms"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def unpack(folder, package, temporary, verbose):
    """llama.cpp of one of the packages, and its release."""
    name = package.lstrip("@").replace("/", "-")
    with tarfile.open(one(os.path.join(folder, f"{name}-[0-9]*.tgz"))) as archive:
        archive.extractall(temporary, filter="data")
    with open(one(f"{temporary}/**/_nlcBuildMetadata.json")) as file:
        release = json.load(file)["buildOptions"]["llamaCpp"]["release"]
    return Llama(temporary, verbose), release


def run(args):
    sys.path.insert(0, one(os.path.join(args.folder, "gguf-*.whl")))
    shape = {**SHAPE, **{name: value for name, value in vars(args).items() if name in SHAPE and value}}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        llama, release = unpack(args.folder, PACKAGE, temporary, args.verbose)
        print(f"llama.cpp {release} on {', '.join(llama.devices)}; {shape}", flush=True)
        for kind in args.types:
            path = os.path.join(temporary, f"{kind}.gguf")
            made, _ = timed(lambda: write_model(path, kind, shape))
            rows.append((f"llama.cpp {release}, {kind}", measure(llama, path, shape, args)))
            print(f"{kind}: model written in {made:.1f} s, {json.dumps(rows[-1][1])}", flush=True)
            os.remove(path)
    rows += [of_ours(path, args) for path in args.ours]
    print_rows(rows, args)
    if args.json:
        with open(args.json, "w") as file:
            json.dump([{"name": name, **found} for name, found in rows], file, indent=1)


def answers(args):
    """Greedy answers to the prompts of tests/vectors/smollm2.json, beside those of transformers with the same weights in f32,
    which latten's are equal to (tests/tokenizer/real.rs)."""
    with open(os.path.join(os.path.dirname(__file__), "../../tests/vectors/smollm2.json")) as file:
        chats = json.load(file)["chats"]
    equal = at_all = 0
    with tempfile.TemporaryDirectory() as temporary:
        llama, release = unpack(args.folder, PACKAGE_CPU, temporary, args.verbose)
        llama.open(args.file, 4096, 512)
        llama.lib.llama_set_n_threads(llama.context, args.threads, args.threads)
        print(f"llama.cpp {release} on {', '.join(llama.devices)}; {os.path.basename(args.file)}")
        for number, chat in enumerate(chats):
            llama.cut(0)
            made = [llama.feed(chat["ids"])]
            while len(made) < len(chat["greedy"]):
                made.append(llama.feed([made[-1]]))
            same = next((i for i, (a, b) in enumerate(zip(made, chat["greedy"])) if a != b), len(made))
            equal, at_all = equal + (same == len(made)), at_all + same
            where = "equal" if same == len(made) else f"differs at token {same}"
            print(f"prompt {number}: {len(made)} tokens, {where}; f32's least lead of the best logit {chat['min_gap']:.3f}")
        llama.close()
    tokens = sum(len(chat["greedy"]) for chat in chats)
    print(f"{equal} of {len(chats)} answers are equal, {at_all} of {tokens} tokens come before a first difference")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="packages into a folder").add_argument("folder")
    command = commands.add_parser("run", help="measure, with what fetch has put into the folder")
    command.add_argument("folder")
    comma = lambda convert: lambda text: [convert(part) for part in text.split(",")]
    command.add_argument("--types", type=comma(str), default=["f16", "q8_0", "q4_0", "q4_k"], help="of the weights")
    command.add_argument("--lengths", type=comma(int), default=[128, 4096, 16384], help="tokens at the end of the steps")
    command.add_argument("--prompt", type=int, default=2048, help="its tokens")
    command.add_argument("--steps", type=int, default=64, help="whose median counts")
    command.add_argument("--micro-batch", type=int, default=2048, help="llama.cpp's n_ubatch")
    command.add_argument("--ours", nargs="*", default=[], help="files of prefill_table --json")
    command.add_argument("--json", help="write what was measured")
    command.add_argument("--verbose", action="store_true", help="llama.cpp's log")
    for name in ["layers", "vocab"]:
        command.add_argument(f"--{name}", type=int, help="instead of the shape's")
    command = commands.add_parser("answers", help="greedy answers of a real model on the processor, beside f32's")
    command.add_argument("folder")
    command.add_argument("--threads", type=int, default=os.cpu_count(), help="more than there are idle cores wait for each other")
    command.add_argument("file", help="SmolLM2-135M-Instruct.Q4_1.gguf, as ./dev chat fetches it")
    command.add_argument("--verbose", action="store_true", help="llama.cpp's log")
    args = parser.parse_args()
    {"fetch": lambda args: fetch(args.folder), "run": run, "answers": answers}[args.command](args)


if __name__ == "__main__":
    main()
