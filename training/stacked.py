"""Many models of one variant trained at once: their weights lie side by side and every product is a batched one.

One model of 1.5 million parameters leaves most of an H200 idle. Twelve of them (seeds, learning rates) make each kernel twelve times
as large. The models share nothing: each has its own weights, data order, learning rate, gradient clip and AdamW state, so that a
model is what it would have been alone. `model.py` says what a model computes; `test_study.py` compares the two in float64.
"""
import math
import zlib

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import Config, Decoder, rope_table

BETAS, EPS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}


class Kernel:
    """How attention is computed: one choice for the process, made by `choose_kernel` before anything is compiled."""
    native_groups = False  # keys and values of a group are given once, not once per query head


def initial(config, seed):
    """One model's weights by name. A weight's random numbers depend on the seed and its name alone, so that weights of the same name
    and shape start the same in all variants."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Decoder(config).named_parameters()}
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            weights[name] = torch.zeros(shape)
        elif "norm" in name:
            weights[name] = torch.ones(shape)
        else:
            std = 0.02 / (math.sqrt(2 * config.num_hidden_layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1)
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            weights[name] = torch.randn(shape, generator=generator) * std
    return weights


def linear(x, weight, bias=None):
    """x [M, N, in], weight [M, out, in] -> [M, N, out] in the type of x."""
    weight = weight.to(x.dtype).transpose(1, 2)
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.to(x.dtype)[:, None], x, weight)


def norm(x, gain, eps, dtype):
    h = x.to(torch.promote_types(x.dtype, torch.float32))
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * gain[:, None]).to(dtype)


def rotate(x, cos, sin, windows):
    """x [M, windows * T, heads, width]; cos and sin [T, width / 2]."""
    m, n = x.shape[:2]
    h = x.unflatten(1, (windows, -1)).to(cos.dtype)
    a, b = h.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype).view(m, n, *x.shape[2:])


def attend(q, k, v, windows, scale):
    """Causal attention of [M, windows * T, heads or groups, width] -> [M, windows * T, heads * dv]."""
    m, n, heads, width = q.shape
    dv, length = v.shape[3], n // windows
    if dv < width:
        v = F.pad(v, (0, width - dv))  # the fast kernels want one width, and the result is the same
    if not Kernel.native_groups and k.shape[2] < heads:
        k, v = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (k, v))
    q, k, v = (t.reshape(m * windows, length, t.shape[2], width).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=k.shape[1] < heads)
    return out[..., :dv].transpose(1, 2).reshape(m, n, heads * dv)


def grouped_query(c, w, x, cos, sin, windows):
    q, k, v = (linear(x, w[f"{name}_proj.weight"]).unflatten(-1, (-1, c.head_dim)) for name in "qkv")
    return attend(rotate(q, cos, sin, windows), rotate(k, cos, sin, windows), v, windows, c.head_dim ** -0.5)


def grouped_tied(c, w, x, cos, sin, windows):
    nope = c.head_dim - c.rope_dim
    q_nope, q_rope = linear(x, w["q_proj.weight"]).unflatten(-1, (-1, c.head_dim)).split([nope, c.rope_dim], dim=-1)
    q = torch.cat([q_nope, rotate(q_rope, cos, sin, windows)], dim=-1)
    tied = linear(x, w["kv_proj.weight"]).unflatten(-1, (-1, c.head_dim))
    k_rope = rotate(linear(x, w["k_rope_proj.weight"], w["k_rope_proj.bias"]).unsqueeze(2), cos, sin, windows)
    k = torch.cat([tied[..., :nope], k_rope.expand(-1, -1, tied.shape[2], -1)], dim=-1)
    return attend(q, k, tied, windows, c.head_dim ** -0.5)


def grouped_latent(c, w, x, cos, sin, windows):
    a = norm(linear(x, w["q_a_proj.weight"], w["q_a_proj.bias"]), w["q_a_layernorm.weight"], c.rms_norm_eps, x.dtype)
    q = linear(a, w["q_b_proj.weight"], w["q_b_proj.bias"]).unflatten(-1, (c.num_attention_heads, -1))
    q_nope, q_rope = q.split([c.head_dim, c.rope_dim], dim=-1)
    q = torch.cat([q_nope, rotate(q_rope, cos, sin, windows)], dim=-1)
    both = linear(x, w["kv_a_proj_with_mqa.weight"], w["kv_a_proj_with_mqa.bias"])
    latents, k_rope = both.split([c.latent_heads * c.latent_dim, c.rope_dim], dim=-1)
    latents = norm(latents.unflatten(-1, (c.latent_heads, c.latent_dim)), w["kv_a_layernorm.weight"], c.rms_norm_eps, x.dtype)
    weights, biases = w["kv_b_proj.weight"].chunk(c.latent_heads, 1), w["kv_b_proj.bias"].chunk(c.latent_heads, 1)
    up = torch.cat([linear(latents[:, :, i], weights[i], biases[i]) for i in range(c.latent_heads)], dim=-1)
    k_nope, v = up.unflatten(-1, (c.num_attention_heads, -1)).chunk(2, dim=-1)
    k_rope = rotate(k_rope.unsqueeze(2), cos, sin, windows)
    k = torch.cat([k_nope, k_rope.expand(-1, -1, c.num_attention_heads, -1)], dim=-1)
    return attend(q, k, v, windows, (c.head_dim + c.rope_dim) ** -0.5)


ATTENTION = {"gqa": grouped_query, "gta": grouped_tied, "gla": grouped_latent, "mla": grouped_latent}


def eights(width):
    return -width % 8


def block(c, w, x, cos, sin, windows, dtype):
    """One layer of all models; x [M, windows * T, D] stays in float32 (or float64), products are in `dtype`."""
    attention = {name[10:]: value for name, value in w.items() if name.startswith("self_attn.")}
    h = norm(x, w["input_layernorm.weight"], c.rms_norm_eps, dtype)
    x = x + linear(ATTENTION[c.attention](c, attention, h, cos, sin, windows), attention["o_proj.weight"])
    h = norm(x, w["post_attention_layernorm.weight"], c.rms_norm_eps, dtype)
    more = eights(c.intermediate_size)  # rows of 16 bytes: the matrix units' fast path. The added columns are zeros.
    gate, up = (linear(h, F.pad(w[f"mlp.{name}_proj.weight"], (0, 0, 0, more))) for name in ("gate", "up"))
    return x + linear(F.silu(gate) * up, F.pad(w["mlp.down_proj.weight"], (0, more)))


def code_length(x, gain, embedding, targets, eps, dtype):
    """Nats of every byte, [M, windows * T]."""
    logits = linear(norm(x, gain, eps, dtype), embedding)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


class Stack:
    """M models of one configuration. `flat` [M, P] holds all weights; `weights` are its parts by name, [M, ..] each."""

    def __init__(self, config, models, device="cpu", dtype=torch.bfloat16, weights_dtype=torch.float32, compiled=False):
        self.c, self.models, self.device, self.dtype = config, models, device, dtype
        with torch.device("meta"):
            shapes = [(name, p.shape) for name, p in Decoder(config).named_parameters()]
        self.size = sum(shape.numel() for _, shape in shapes)
        self.flat = torch.zeros(models, self.size, device=device, dtype=weights_dtype)
        decayed = torch.zeros(self.size, device=device)
        self.weights, at = {}, 0
        for name, shape in shapes:
            part = self.flat[:, at: at + shape.numel()].view(models, *shape)
            self.weights[name] = part.detach().requires_grad_()
            decayed[at: at + shape.numel()] = 0.0 if "norm" in name or name.endswith("bias") else 1.0
            at += shape.numel()
        self.decay = WEIGHT_DECAY * decayed
        cos, sin = rope_table(config.max_position_embeddings, config.rotated, config.rope_theta, device)
        self.cos, self.sin = cos.to(weights_dtype), sin.to(weights_dtype)
        # One layer is compiled once and called for each: four times less to compile than the whole.
        compile = (lambda f: torch.compile(f, fullgraph=True, dynamic=False)) if compiled else (lambda f: f)
        self.block, self.code_length, self.update = compile(block), compile(code_length), compile(adamw)

    @torch.no_grad()
    def start(self, states):
        """Takes one weight dictionary per model, and forgets AdamW's state."""
        assert len(states) == self.models
        for name, part in self.weights.items():
            part.copy_(torch.stack([state[name] for state in states]))
            part.grad = None
        self.m, self.v, self.steps = torch.zeros_like(self.flat), torch.zeros_like(self.flat), 0

    def layer(self, i):
        prefix = f"model.layers.{i}."
        return {name[len(prefix):]: w for name, w in self.weights.items() if name.startswith(prefix)}

    def nats(self, tokens, fast=True):
        """tokens [M, windows, T + 1] -> nats of every byte, [M, windows * T]. `fast` takes the compiled functions and `dtype`."""
        m, windows, length = tokens.shape[0], tokens.shape[1], tokens.shape[2] - 1
        run, last, dtype = (self.block, self.code_length, self.dtype) if fast else (block, code_length, self.flat.dtype)
        inputs, targets = tokens[:, :, :-1].reshape(m, -1), tokens[:, :, 1:].reshape(m, -1)
        embedding = self.weights["model.embed_tokens.weight"]
        offsets = torch.arange(m, device=self.device)[:, None] * self.c.vocab_size
        x = F.embedding(inputs + offsets, embedding.flatten(0, 1))
        cos, sin = self.cos[:length], self.sin[:length]
        for i in range(self.c.num_hidden_layers):
            x = run(self.c, self.layer(i), x, cos, sin, windows, dtype)
        return last(x, self.weights["model.norm.weight"], embedding, targets, self.c.rms_norm_eps, dtype)

    def gradient(self, tokens):
        """([M, P], mean nats of each model): leaves nothing behind."""
        losses = self.nats(tokens).mean(1)
        losses.sum().backward()
        gradient = torch.cat([w.grad.reshape(self.models, -1) for w in self.weights.values()], 1)
        for w in self.weights.values():
            w.grad = None
        return gradient, losses.detach()

    def step(self, tokens, rates):
        """One step of AdamW, `rates` [M]. Returns the mean nats of each model."""
        gradient, losses = self.gradient(tokens)
        self.steps += 1
        # As tensors made on the device: numbers would be compiled anew at each step, and copies would make the host wait.
        corrections = [torch.full((1, 1), 1 - beta ** self.steps, device=self.device, dtype=self.flat.dtype) for beta in BETAS]
        self.update(self.flat, gradient, self.m, self.v, rates[:, None], self.decay, *corrections)
        return losses

    @torch.no_grad()
    def shipped(self, i):
        """Model i's weights as they are shipped."""
        return {name: w[i].to(torch.float16).cpu().contiguous() for name, w in self.weights.items()}

    @torch.no_grad()
    def bits_per_byte(self, data, length, windows_at_once=4):
        """As `train.bits_per_byte`, of every model: in float32 throughout with the weights rounded to float16."""
        count = data.numel() - 1
        windows = math.ceil(count / length)
        padded = F.pad(data, (0, windows * length + 1 - data.numel())).long()
        rows = padded.unfold(0, length + 1, length)
        kept = self.flat.clone()
        self.flat.copy_(self.flat.half())
        groups, Kernel.native_groups = Kernel.native_groups, False
        total = torch.zeros(self.models, dtype=torch.float64, device=self.device)
        with sdpa_kernel(SDPBackend.MATH):
            for at in range(0, windows, windows_at_once):
                chunk = rows[at: at + windows_at_once]
                nats = self.nats(chunk.expand(self.models, *chunk.shape), fast=False)
                total += nats[:, : max(0, count - at * length)].double().sum(1)
        self.flat.copy_(kept)
        Kernel.native_groups = groups
        return (total / count / math.log(2)).tolist()


def adamw(flat, gradient, m, v, rates, decay, m_share, v_share):
    """AdamW of all models in place, each gradient clipped by its own norm."""
    with torch.no_grad():
        norms = gradient.square().sum(1, keepdim=True).sqrt()
        gradient = gradient * (CLIP / (norms + 1e-6)).clamp(max=1.0)
        m.lerp_(gradient, 1 - BETAS[0])
        v.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        flat.mul_(1 - rates * decay).sub_(rates * (m / m_share) / ((v / v_share).sqrt() + EPS))


def rate_at(step, steps):
    """Share of the learning rate: warm-up over 200 steps (a fifth of short runs), then a cosine to 0."""
    warmup = min(200, steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def choose_kernel(config, models, windows, length, say=print):
    """Times the kernels for attention on this GPU, forward and backward at the shape of training, and sets the fastest."""
    width = config.head_dim + (config.rope_dim if config.latent_heads else 0)
    heads = config.num_attention_heads
    groups = heads if config.latent_heads else config.num_key_value_heads
    times = {}
    for backend in ("flash", "cudnn"):
        for native in ([False, True] if groups < heads else [False]):
            try:
                times[backend, native] = attention_ms(BACKENDS[backend], native, (models * windows, length, heads, groups, width))
            except Exception as error:  # a kernel that this build or shape has not
                say(f"{backend}{' groups' if native else ''}: {str(error).splitlines()[0][:100]}")
    torch.cuda.empty_cache()
    backend, native = min(times, key=times.get)
    say("attention, ms: " + ", ".join(f"{b}{' groups' if n else ''} {t:.2f}" for (b, n), t in times.items()))
    set_kernel(backend, native)
    return f"{backend}{' groups' if native else ''}"


def set_kernel(backend, native):
    torch.backends.cuda.enable_flash_sdp(backend == "flash")
    torch.backends.cuda.enable_cudnn_sdp(backend == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(True)
    Kernel.native_groups = native


def attention_ms(backend, native, shape, times=3):
    batch, length, heads, groups, width = shape
    q, k, v = (torch.randn(batch, length, n, width, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (heads, groups, groups))

    def once():
        keys, values = (k, v) if native else (t.repeat_interleave(heads // groups, dim=2) for t in (k, v))
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, keys, values)), is_causal=True, enable_gqa=native)
        out.backward(out.detach())

    with sdpa_kernel(backend):
        once()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            once()
        end.record()
        torch.cuda.synchronize()
    return begin.elapsed_time(end) / times


def check_fast(stack, data, length, windows):
    """The compiled form against the plain one in float32: the largest relative difference of a model's gradient, from one window.

    The weights are three times the initial ones, so that attention is no mean over all keys."""
    stack.start([{name: 3 * w if w.dim() > 1 else w for name, w in initial(stack.c, seed).items()} for seed in range(stack.models)])
    window = data[: length + 1].long().expand(stack.models, 1, length + 1)
    fast, fast_losses = stack.gradient(window.expand(stack.models, windows, length + 1))
    groups, Kernel.native_groups = Kernel.native_groups, False
    with sdpa_kernel(SDPBackend.MATH):
        losses = stack.nats(window, fast=False).mean(1)
        losses.sum().backward()
    Kernel.native_groups = groups
    plain = torch.cat([w.grad.reshape(stack.models, -1) for w in stack.weights.values()], 1)
    difference = ((fast - plain).norm(dim=1) / plain.norm(dim=1)).max().item()
    return difference, (fast_losses - losses.detach()).abs().max().item()


def starts(seed, steps, batch, bytes_in_all, length, once):
    """Where each step's windows begin, [steps, batch]: the seed's order of the data, the same for all variants.

    Random offsets, or with `once` a shuffle of windows side by side, so that no byte is seen twice before each was seen once."""
    generator = torch.Generator().manual_seed(1000 + seed)
    if not once:
        return torch.randint(bytes_in_all - length, (steps, batch), generator=generator)
    rounds, windows = [], (bytes_in_all - 1) // length - 1
    while sum(r.numel() for r in rounds) < steps * batch:
        offset = torch.randint(length, (1,), generator=generator)
        rounds.append(torch.randperm(windows, generator=generator) * length + offset)
    return torch.cat(rounds)[: steps * batch].view(steps, batch)


def config_of(variant, size, tiny=False):
    """`tiny` is for tests on a CPU: two layers of width 32, context 64."""
    config = Config.of(variant, size)
    if tiny:
        config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.max_position_embeddings = 32, 2, 12, 64
        config.head_dim, config.rope_dim = 8, config.rope_dim and 4
        config.latent_dim, config.q_latent_dim = config.latent_dim // 8, config.q_latent_dim // 8
    return config
