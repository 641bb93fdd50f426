"""Models: texts, logits and losses; threads, Ctrl-C, and what is refused."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import latten
from latten import errors

PROMPT = "ROMEO:\nBut soft, what light"


def test_greedy_tokens_are_the_largest_logits(model):
    with model.generate(PROMPT, max_tokens=12) as generation:
        tokens = [token.id for token in generation]
    assert len(tokens) == 12 == len(generation.tokens)
    logits = model.logits(model.encode(PROMPT) + tokens[:-1])
    assert logits.dtype == np.float32 and logits.shape == (len(PROMPT) + 11, model.vocab_size)
    rows = logits[-12:]
    # Prompts and single tokens are rounded in other orders, so a tie may go either way.
    assert np.all(rows[np.arange(12), tokens] >= rows.max(-1) - 2e-2)


def test_a_text_comes_piece_by_piece(model):
    pieces = []
    generation = model.generate(PROMPT, max_tokens=40, temperature=0.8, top_p=0.9, seed=3)
    for token in generation:
        pieces.append(token.text)
        assert generation.text == "".join(pieces)
    assert len(pieces) == 40 and model.decode(generation.tokens) == generation.text
    assert list(generation) == []
    again = model.generate(PROMPT, max_tokens=40, temperature=0.8, top_p=0.9, seed=3)
    assert again.read() == generation.text
    assert model.generate(PROMPT, max_tokens=40, temperature=0.8, top_p=0.9, seed=4).read() != generation.text


def test_losses_are_those_of_the_logits(model):
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n"
    tokens = np.array(model.encode(text))
    logits = model.logits(text).astype(np.float64)[:-1]
    log = logits - logits.max(-1, keepdims=True)
    log -= np.log(np.exp(log).sum(-1, keepdims=True))
    want = -log[np.arange(len(tokens) - 1), tokens[1:]]
    losses = model.losses(text)
    assert losses.dtype == np.float64 and np.allclose(losses, want, atol=1e-6)
    assert model.perplexity(text) == pytest.approx(np.exp(want.mean()))
    assert model.perplexity(text) < model.perplexity("".join(reversed(text))) / 2


def test_a_text_longer_than_the_cache_goes_in_windows():
    small = latten.Model.load(latten.shipped("gta"), cache_tokens=64, chunk=32)
    text = "What must I do, to be so loved of thee? " * 3
    losses = small.losses(text)
    assert losses.shape == (len(text) - 1,) and np.isfinite(losses).all()
    assert np.array_equal(losses[64:], small.losses(text[64:]))


@pytest.mark.parametrize("variant", latten.SHIPPED)
def test_all_that_is_shipped(variant):
    model = latten.Model.load(latten.shipped(variant), weights="i8", cache="i8")
    assert model.variant.lower().startswith(variant) and model.heads.q_heads > 0
    assert model.generate(PROMPT, max_tokens=4).read()


def test_one_generation_at_a_time(model):
    generation = model.generate(PROMPT, max_tokens=990)
    next(generation)
    for call in (lambda: model.generate("x"), lambda: model.logits("x"), lambda: model.perplexity("xyz")):
        with pytest.raises(errors.BusyError):
            call()
    generation.close()
    assert list(generation) == [] and len(generation.tokens) == 1
    assert model.generate("x", max_tokens=1).read()
    # Who drops one gives the model back, too, after a step.
    dropped = model.generate(PROMPT, max_tokens=990)
    del dropped
    for _ in range(200):
        try:
            assert model.generate("x", max_tokens=1).read()
            break
        except errors.BusyError:
            time.sleep(0.05)
    else:
        pytest.fail("the model is busy for a generation that nobody has")


def test_other_threads_run_meanwhile(model):
    count, stop = 0, threading.Event()

    def counting():
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0.001)

    thread = threading.Thread(target=counting)
    thread.start()
    start = time.monotonic()
    model.logits("all the world's a stage, " * 20)
    took, counted = time.monotonic() - start, count
    stop.set()
    thread.join()
    assert counted >= 5 and counted > took * 20, f"{counted} in {took:.3f} s"


def test_what_is_refused(model, tmp_path):
    cases = (
        (errors.ArgumentError, lambda: model.generate("", max_tokens=1).read()),
        (errors.ArgumentError, lambda: model.generate([70000], max_tokens=1).read()),
        (errors.ArgumentError, lambda: model.generate(PROMPT, max_tokens=10**6).read()),
        (errors.ArgumentError, lambda: model.generate(PROMPT, temperature=-1.0)),
        (errors.ArgumentError, lambda: model.losses("x")),
        (errors.ArgumentError, lambda: model.losses([1, 70000])),
        (errors.ArgumentError, lambda: model.logits([])),
        (errors.ArgumentError, lambda: latten.Model.load(latten.shipped("gla"), weights="f8")),
        (errors.ArgumentError, lambda: latten.Model.load(latten.shipped("gla"), cache_tokens=0)),
        (errors.LattenError, lambda: latten.Model.load(tmp_path)),
        (errors.IoError, lambda: latten.Model.load(tmp_path / "nothing.gguf")),
    )
    for kind, call in cases:
        with pytest.raises(kind):
            call()
    (tmp_path / "wrong.gguf").write_bytes(b"GGUF but not more")
    with pytest.raises(errors.WeightsError) as caught:
        latten.Model.load(tmp_path / "wrong.gguf")
    assert "wrong.gguf" in caught.value.path
    assert model.generate("x", max_tokens=1).read()


# Who is started in the background may have been told to ignore Ctrl-C.
CHILD = """
import latten, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
model = latten.Model.load(latten.shipped("gqa"), cache_tokens=4096)
generation = model.generate("ROMEO:", max_tokens={tokens}, temperature=1.0)
try:
    for count, token in enumerate(generation):
        if count == 3:
            print("ready", flush=True)
    print("ended", flush=True)
except KeyboardInterrupt:
    generation.close()
    print("interrupted", len(generation.tokens), len(model.generate("x", max_tokens=2).read()), flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="there a console is needed")
def test_ctrl_c_ends_a_generation():
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(tokens=1000)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=120)[0].split()
    assert said[0] == "interrupted" and 4 <= int(said[1]) < 1000 and said[2] == "2", said
    assert child.returncode == 0


def test_a_program_may_end_in_the_middle():
    code = CHILD.format(tokens=1000).replace("print(\"ready\", flush=True)", "sys.exit(7)")
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 7
