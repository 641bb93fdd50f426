#!/usr/bin/env python3
"""Tests of the study's code on a CPU, at a tiny size: python3 training/test_study.py. Needs PyTorch; about a minute."""
import importlib.util
import json
import lzma
import math
import pathlib
import subprocess
import sys
import tempfile
import unittest

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import convert
import prepare_docs
import stacked
import study
import study_report
from model import ATTENTION, VARIANTS, Config, Decoder, parameter_table, rope_table
from train import bits_per_byte

HERE = pathlib.Path(__file__).parent


def tiny(variant):
    return stacked.config_of(variant, "small", tiny=True)


def text(count, seed=0):
    return torch.randint(97, 123, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def alone(config, state, dtype):
    """model.py's decoder with one model's weights."""
    model = Decoder(config).to(dtype)
    model.load_state_dict({name: w.to(dtype) for name, w in state.items()})
    model.cos, model.sin = (t.to(dtype) for t in rope_table(config.max_position_embeddings, config.rotated, config.rope_theta))
    return model


def loud(config, seed):
    """Initial weights times four, random gains and biases: nothing is near 0 or 1 by chance."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 4 * w if w.dim() > 1 and "norm" not in name else torch.randn(w.shape, generator=generator)
            for name, w in stacked.initial(config, seed).items()}


class Models(unittest.TestCase):
    def test_parameter_counts_are_within_one_percent(self):
        for size in ("small", "large"):
            counts = [count for _, count, _ in parameter_table(size)]
            self.assertLess(max(counts) / min(counts), 1.0102, f"{size} {counts}")

    def test_mha_and_mqa_are_plain_attention(self):
        """One head at a time, one query at a time, written out, in float64."""
        for variant in ("mha", "mqa", "gqa"):
            c = tiny(variant)
            torch.manual_seed(1)
            module = ATTENTION[c.attention](c).double()
            x = torch.randn(1, 11, c.hidden_size, dtype=torch.float64)
            cos, sin = rope_table(11, c.rotated, c.rope_theta)
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                found = module(x, cos, sin)[0]
            w = {name: p.detach() for name, p in module.named_parameters()}
            out = torch.zeros(11, c.num_attention_heads * c.head_dim, dtype=torch.float64)
            half, per_group = c.head_dim // 2, c.num_attention_heads // c.num_key_value_heads

            def turned(row, at):
                a, b = torch.complex(row[:half], row[half:]), torch.polar(torch.ones(half, dtype=torch.float64), at * c.rope_theta ** (
                    -torch.arange(half, dtype=torch.float64) / half))
                return torch.cat([(a * b).real, (a * b).imag])
            for h in range(c.num_attention_heads):
                g = h // per_group
                q, k, v = (w[f"{n}_proj.weight"][i * c.head_dim: (i + 1) * c.head_dim] @ x[0].T for n, i in (("q", h), ("k", g), ("v", g)))
                for t in range(11):
                    scores = torch.stack([turned(q[:, t], t) @ turned(k[:, s], s) for s in range(t + 1)]) / math.sqrt(c.head_dim)
                    out[t, h * c.head_dim: (h + 1) * c.head_dim] = v[:, : t + 1] @ scores.softmax(0)
            torch.testing.assert_close(found, out @ w["o_proj.weight"].T, atol=1e-12, rtol=0)

    def test_a_stack_is_its_models_side_by_side(self):
        for variant in VARIANTS:
            for native in (False, True):
                c = tiny(variant)
                states = [loud(c, seed) for seed in (1, 2, 3)]
                stack = stacked.Stack(c, 3, dtype=torch.float64, weights_dtype=torch.float64)
                stack.start(states)
                tokens = torch.randint(256, (3, 2, 33))
                stacked.Kernel.native_groups = native
                with sdpa_kernel(SDPBackend.MATH):
                    gradient, losses = stack.gradient(tokens)
                stacked.Kernel.native_groups = False
                for i, state in enumerate(states):
                    model = alone(c, state, torch.float64)
                    with sdpa_kernel(SDPBackend.MATH):
                        loss = F.cross_entropy(model(tokens[i, :, :-1]).flatten(0, 1), tokens[i, :, 1:].flatten())
                    loss.backward()
                    torch.testing.assert_close(losses[i], loss.detach(), atol=1e-12, rtol=0)
                    own = torch.cat([p.grad.flatten() for p in model.parameters()])
                    torch.testing.assert_close(gradient[i], own, atol=1e-11, rtol=1e-9)

    def test_steps_are_those_of_torch_adamw(self):
        """With different rates, one model's gradient clipped and the other's not."""
        c = tiny("gla")
        stack, states = stacked.Stack(c, 2, weights_dtype=torch.float64, dtype=torch.float64), [loud(c, 5), stacked.initial(c, 6)]
        stack.start(states)
        rates, tokens = [3e-2, 1e-3], torch.randint(256, (4, 2, 2, 17))
        for step in tokens:
            stack.step(step, torch.tensor(rates, dtype=torch.float64))
        clipped = []
        for i, state in enumerate(states):
            model = alone(c, state, torch.float64)
            split = [[], []]
            for name, p in model.named_parameters():
                split["norm" in name or name.endswith("bias")].append(p)
            optimiser = torch.optim.AdamW([dict(params=split[0], weight_decay=0.1), dict(params=split[1], weight_decay=0.0)],
                                          lr=rates[i], betas=(0.9, 0.95))
            for step in tokens:
                optimiser.zero_grad()
                F.cross_entropy(model(step[i, :, :-1]).flatten(0, 1), step[i, :, 1:].flatten()).backward()
                clipped.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item() > 1.0)
                optimiser.step()
            for name, p in model.named_parameters():
                torch.testing.assert_close(stack.weights[name][i].detach(), p.detach(), atol=1e-9, rtol=1e-7)
        self.assertIn(True, clipped)
        self.assertIn(False, clipped)

    def test_a_model_that_diverges_leaves_the_others_alone(self):
        c = tiny("gqa")
        results = []
        for rate in (1e-3, 1e30):
            stack = stacked.Stack(c, 2, dtype=torch.float32)
            stack.start([stacked.initial(c, 1), stacked.initial(c, 2)])
            generator = torch.Generator().manual_seed(3)
            for _ in range(4):
                stack.step(torch.randint(256, (2, 2, 17), generator=generator), torch.tensor([1e-3, rate]))
            results.append(stack.flat.clone())
        self.assertTrue(torch.equal(results[0][0], results[1][0]))
        self.assertFalse(results[1][1].isfinite().all())

    def test_validation_is_that_of_train_py(self):
        c, data = tiny("gta"), text(1500)
        c.max_position_embeddings = 1024  # train.py's windows
        stack = stacked.Stack(c, 2)
        states = [loud(c, 1), loud(c, 2)]
        stack.start(states)
        before = stack.flat.clone()
        found = stack.bits_per_byte(data, 1024, 1)
        self.assertTrue(torch.equal(before, stack.flat))
        for bits, state in zip(found, states):
            model = alone(c, {name: w.half().float() for name, w in state.items()}, torch.float32)
            self.assertAlmostEqual(bits, bits_per_byte(model, data), places=5)

    def test_the_fast_form_agrees_with_the_plain_one(self):
        """What a GPU run checks before it trains; here bf16 on the CPU."""
        for variant in VARIANTS:
            stack = stacked.Stack(tiny(variant), 2)
            with sdpa_kernel(SDPBackend.MATH):
                difference, loss = stacked.check_fast(stack, text(200), 64, 3)
            self.assertLess(difference, 0.05, variant)
            self.assertGreater(difference, 1e-4, variant)  # it is bf16 that was compared
            self.assertLess(loss, 0.02, variant)


class Data(unittest.TestCase):
    def test_orders_depend_on_the_seed_alone(self):
        a, b, c = (stacked.starts(seed, 5, 4, 1000, 64, False) for seed in (1, 1, 2))
        self.assertTrue(torch.equal(a, b))
        self.assertFalse(torch.equal(a, c))
        self.assertLessEqual(a.max().item() + 64 + 1, 1000)
        longer = stacked.starts(1, 9, 4, 1000, 64, False)
        self.assertEqual(longer.shape, (9, 4))

    def test_once_sees_every_window_once_before_any_twice(self):
        order = stacked.starts(3, 7, 4, 64 * 30 + 1, 64, True).flatten()
        self.assertEqual(len(set(order.tolist())), 28)
        self.assertEqual(len({value % 64 for value in order.tolist()}), 1)
        self.assertLessEqual(order.max().item() + 65, 64 * 30 + 1)

    def test_names_and_shapes_in_common_start_the_same(self):
        gqa, mla = stacked.initial(Config.of("gqa"), 4), stacked.initial(Config.of("mla"), 4)
        self.assertTrue(torch.equal(gqa["model.layers.2.self_attn.o_proj.weight"], mla["model.layers.2.self_attn.o_proj.weight"]))
        self.assertFalse(torch.equal(gqa["model.layers.2.self_attn.o_proj.weight"], gqa["model.layers.1.self_attn.o_proj.weight"]))
        self.assertAlmostEqual(gqa["model.embed_tokens.weight"].std().item(), 0.02, delta=2e-4)


class Conversion(unittest.TestCase):
    """Models that the target can hold exactly come out exactly."""

    def gqa(self, seed=0):
        torch.manual_seed(seed)
        c = tiny("gqa")
        model = Decoder(c).double()
        for name, p in model.named_parameters():
            torch.nn.init.normal_(p, std=0.3)
        model.cos, model.sin = rope_table(c.max_position_embeddings, c.rotated, c.rope_theta)
        return model

    def compare(self, model, variant, norms=False, turn=True):
        c, tokens = model.config, torch.randint(256, (3, 40))
        if not turn:
            model.cos, model.sin = torch.ones_like(model.cos), torch.zeros_like(model.sin)
        config, state = convert.convert(model, variant, tokens)
        self.assertLess(config.kv_elements, c.kv_elements)
        new = alone(config, state, torch.float64)
        if not turn:
            new.cos, new.sin = torch.ones_like(new.cos), torch.zeros_like(new.sin)
        if norms:  # as if every latent had the mean size, which is what the gains stand for
            for layer in new.model.layers:
                layer.self_attn.q_a_layernorm.forward = layer.self_attn.kv_a_layernorm.forward = lambda x: x
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return (new(tokens) - model(tokens)).abs().max().item(), model(tokens).abs().max().item()

    def simple_keys(self, model, still, low=False):
        """Keys whose turned pairs are complex multiples of one row; the others zero, or (`low`) combinations of the values' rows."""
        c = model.config
        half = c.head_dim // 2
        for layer in model.model.layers:
            k, v = (p.weight.data.unflatten(0, (-1, c.head_dim)) for p in (layer.self_attn.k_proj, layer.self_attn.v_proj))
            for j in range(half):
                if j % 2 == 0:
                    row = torch.complex(k[0, j], k[0, j + half])
                    turned = torch.randn(len(k), 1, dtype=torch.complex128) * row
                    k[:, j], k[:, j + half] = turned.real, turned.imag
                elif not still:
                    k[:, j] = k[:, j + half] = 0
                elif low:
                    for at in (j, j + half):
                        k[:, at] = torch.einsum("gr,grd->gd", torch.randn(len(k), c.head_dim, dtype=torch.float64), v)

    def test_gta_keeps_what_it_can_hold(self):
        model = self.gqa()
        self.simple_keys(model, still=False)
        difference, size = self.compare(model, "gta")
        self.assertLess(difference, 1e-9 * max(1, size))
        self.assertGreater(size, 0.1)

    def test_gta_ties_keys_and_values(self):
        """Without rotation the other pairs' keys count too, where they are combinations of the values."""
        model = self.gqa(1)
        self.simple_keys(model, still=True, low=True)
        difference, size = self.compare(model, "gta", turn=False)
        self.assertLess(difference, 1e-9 * max(1, size))

    def test_gta_cannot_hold_everything(self):
        difference, _ = self.compare(self.gqa(2), "gta")
        self.assertGreater(difference, 1e-2)

    def test_gla_keeps_what_it_can_hold(self):
        """Queries of low rank, unrotated keys that are combinations of values, norms aside."""
        for still, turn in ((False, True), (True, False)):
            model = self.gqa(3)
            self.simple_keys(model, still=still, low=True)
            c = model.config
            for layer in model.model.layers:  # values of two groups in half as many rows; queries in q_latent_dim
                q = layer.self_attn.q_proj.weight.data
                q.copy_(q[:, : 8] @ torch.randn(8, c.hidden_size, dtype=torch.float64))
            difference, size = self.compare(model, "gla", norms=True, turn=turn)
            self.assertLess(difference, 1e-9 * max(1, size), (still, turn))

    def test_cut_is_the_best_by_the_moments(self):
        torch.manual_seed(4)
        rows, x = torch.randn(12, 9, dtype=torch.float64), torch.randn(500, 9, dtype=torch.float64)
        x[:, 1:] *= 0.01
        root = convert.roots(x.T @ x / len(x))
        u, basis = convert.cut(rows, 3, root)
        own = ((rows - u @ basis) @ x.T).norm()
        a, s, b = torch.linalg.svd(rows)
        plain = ((rows - a[:, :3] * s[:3] @ b[:3]) @ x.T).norm()
        self.assertLess(own, 0.9 * plain)


class Scripts(unittest.TestCase):
    """Each script from end to end, tiny."""

    def run_script(self, *arguments):
        done = subprocess.run([sys.executable, *map(str, arguments)], cwd=HERE, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout[-2000:] + done.stderr[-2000:])
        return done.stdout

    def test_a_study_from_training_to_tables(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            words = (HERE.parent / "tests" / "vectors" / "held_out.txt").read_bytes()
            (folder / "train.txt").write_bytes(words[:20000])
            (folder / "valid.txt").write_bytes(words[20000:22000])
            for name, part in (("train", words[:20000]), ("valid", words[20000:22000])):
                (folder / f"docs_{name}.txt.xz").write_bytes(lzma.compress(part))
            common = ["--device", "cpu", "--tiny", "--data", folder, "--work", folder / "work", "--tokens", 2000, "--pilot-tokens", 640]
            small = ["study.py", *common, "--seeds", 6, "--pilot-seeds", 2]
            # The first call runs out of time after nothing, the second does one variant, the third what is left.
            self.assertIn("not begun", self.run_script(*small, "--variants", "gqa", "--limit", 0, "--grace", 600, "--out", folder / "a"))
            self.run_script(*small, "--variants", "gqa", "--out", folder / "b")
            first = json.loads((folder / "b" / "results_small.json").read_text())["units"]
            self.assertEqual([u["kind"] for u in first], ["pilot", "final"])
            self.run_script(*small, "--variants", "gqa", "gta", "--have", folder / "b" / "results_small.json", "--out", folder / "c")
            joined = json.loads((folder / "c" / "results_small.json").read_text())["units"]
            self.assertEqual(sorted((u["variant"], u["kind"]) for u in joined), [(v, k) for v in ("gqa", "gta") for k in ("final", "pilot")])
            self.assertEqual([u for u in joined if u["variant"] == "gqa"], first)  # not run again
            self.assertTrue(all(u["complete"] for u in joined))
            self.run_script("study.py", *common, "--size", "large", "--variants", "gqa", "gta", "--out", folder / "d")
            self.run_script("study.py", *common, "--size", "large", "--variants", "mla", "--speed", "--out", folder / "e")
            self.run_script("convert.py", "--models", folder / "b" / "gqa_seeds.tar", "--device", "cpu", "--data", folder, "--tokens", 9000,
                            "--batch", 2, "--out", folder / "f")
            svg = ["--svg", folder / "study.svg"] if importlib.util.find_spec("matplotlib") else []
            report = ["study_report.py", "--study", folder / "study.json"]
            text = self.run_script(*report, "--join", folder / "c" / "results_small.json", folder / "d" / "results_large.json",
                                   "--conversion", folder / "f" / "conversion.json", *svg)
            self.assertEqual(text, self.run_script(*report))
            for words in ("### small: 6 seeds", "### large: 4 seeds", "**GTA-4 - GQA-4**", "Conversion of GQA-4, 5 seeds"):
                self.assertIn(words, text)

    def test_the_best_rate_is_of_the_seeds_that_ran_with_all(self):
        seeds, rates = study.pilot_models([1e-3, 2e-3, 4e-3], 1, 4)
        self.assertEqual((seeds, rates), ([100, 100, 100, 101], [1e-3, 2e-3, 4e-3, 2e-3]))
        pilot = dict(seeds=seeds, rates=rates, curve=[dict(valid_bits=[2.0, 1.9, math.nan, 0.1])])
        self.assertEqual(study.rate_means(pilot), {1e-3: 2.0, 2e-3: 1.9, 4e-3: math.inf})
        self.assertEqual(study.best_rate(pilot), 2e-3)

    def test_intervals(self):
        self.assertAlmostEqual(study_report.t_quantile(0.975, 11), 2.200985, places=5)
        self.assertAlmostEqual(study_report.t_quantile(0.975, 3), 3.182446, places=5)
        mean, half = study_report.interval([1.0, 2.0, 3.0, 4.0])
        self.assertAlmostEqual(half, 3.182446 * math.sqrt(5 / 3) / 2, places=5)
        low, high = study_report.bootstrap([1.0, 2.0, 3.0, 4.0])
        self.assertTrue(1.0 < low < mean < high < 4.0)

    def test_text_of_pages(self):
        with tempfile.TemporaryDirectory() as folder:
            page = pathlib.Path(folder) / "a.html"
            page.write_text("<html><head><title>t</title></head><body><nav>menu</nav><div class='related'>up<div>x</div></div>"
                            "<p>One &amp; <b>two</b>\n  three.</p><pre>  a\n  b</pre><script>no</script></body></html>")
            self.assertEqual(prepare_docs.text_of(page), "One & two three.\n\n  a\n  b")
        seen = set()
        long = "A paragraph that is long enough to be looked for in what came before it."
        self.assertEqual(prepare_docs.fresh_paragraphs(f"{long}\n\nshort\n\n{long}", seen), f"{long}\n\nshort")
        self.assertEqual(prepare_docs.fresh_paragraphs(f"new\n\n{long}\n\nshort", seen), "new\n\nshort")


if __name__ == "__main__":
    torch.set_num_threads(1)
    unittest.main()
