"""The server as clients see it that are not ours: the openai package, schemathesis over /openapi.json, a browser.

./dev test-server runs this in a venv with the packages of clients.txt. `clients.py NAME..` runs the tests with these in their names.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import openai

ROOT = Path(__file__).resolve().parents[3]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
STORY = "Once upon a time there was a little "


@contextmanager
def server(*args):
    """A server with the model of bytes: its address."""
    command = [TARGET / "release/latten-server", "--port", "0", "--log-format", "json", *args]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        local = None
        while local is None:
            line = child.stderr.readline()
            assert line, "the server has ended"
            local = json.loads(line)["fields"].get("local")
        log = []
        reader = threading.Thread(target=lambda: log.extend(child.stderr), daemon=True)
        reader.start()
        address = f"http://{local}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health").read()
                break
            except urllib.error.HTTPError:
                time.sleep(0.1)
        yield address
        child.terminate()
        assert child.wait(30) == 0, "".join(log[-20:])
        reader.join(5)
        assert not any("panicked" in line for line in log), "".join(log[-20:])
    finally:
        child.kill()


def client(address, **options):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", **options)


def refused(kind, call, param=None):
    try:
        call()
    except kind as error:
        assert param is None or error.param == param, (error.param, param)
        return error
    raise AssertionError(f"no {kind.__name__}")


def test_openai_chat(address):
    with client(address) as api:
        assert [model.id for model in api.models.list()] == ["gla"]
        messages = [{"role": "system", "content": "Tell a story."}, {"role": "user", "content": STORY}]
        asked = {"model": "gla", "messages": messages, "max_tokens": 30, "temperature": 0}
        whole = api.chat.completions.create(**asked)
        choice = whole.choices[0]
        assert choice.finish_reason == "length" and choice.message.role == "assistant"
        assert whole.usage.completion_tokens == 30 and whole.usage.prompt_tokens == len("Tell a story.\n") + len(STORY) + 1
        text, reasons, usage = "", [], None
        for chunk in api.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            assert chunk.object == "chat.completion.chunk"
            usage = chunk.usage or usage
            for part in chunk.choices:
                text += part.delta.content or ""
                reasons.append(part.finish_reason)
        assert text == choice.message.content and reasons[-1] == "length" and set(reasons[:-1]) == {None}
        assert usage == whole.usage
        # This helper takes an answer that was cut for an error.
        with api.chat.completions.stream(**asked, stop=text[9:12]) as stream:
            assert stream.get_final_completion().choices[0].message.content == text[: text.index(text[9:12])]


def test_openai_n_seed_stop(address):
    with client(address) as api:
        asked = {"model": "gla", "prompt": STORY, "max_tokens": 16}
        several = [api.completions.create(**asked, n=3, seed=5) for _ in range(2)]
        texts = [[choice.text for choice in one.choices] for one in several]
        assert texts[0] == texts[1] and len(set(texts[0])) == 3, texts
        greedy = api.completions.create(**asked, temperature=0).choices[0].text
        stop = greedy[6:8]
        one = api.completions.create(**asked, temperature=0, stop=[stop, "zzz"]).choices[0]
        assert one.finish_reason == "stop" and one.text == greedy[: greedy.index(stop)]
        parts = {0: "", 1: ""}
        for chunk in api.completions.create(**{**asked, "prompt": [STORY, "The"]}, temperature=0, stream=True):
            for choice in chunk.choices:
                parts[choice.index] += choice.text
        assert parts[0] == greedy and parts[1]


def test_openai_logprobs_and_schemas(address):
    from typing import Literal

    from pydantic import BaseModel

    class Person(BaseModel):
        glad: bool
        name: Literal["Ann", "Ben"]

    with client(address) as api:
        asked = {"model": "gla", "messages": [{"role": "user", "content": STORY}], "max_tokens": 120, "seed": 2}
        person = api.chat.completions.parse(**asked, response_format=Person).choices[0]
        assert person.finish_reason == "stop" and person.message.parsed.name in ("Ann", "Ben"), person
        one = api.chat.completions.create(**{**asked, "max_tokens": 5}, temperature=0, logprobs=True, top_logprobs=4)
        content = one.choices[0].logprobs.content
        assert len(content) == 5 and "".join(token.token for token in content) == one.choices[0].message.content
        for token in content:
            assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0 and len(token.top_logprobs) == 4
        ids = {str(byte): 50 for byte in b"z"}
        biased = api.chat.completions.create(**{**asked, "max_tokens": 5}, logit_bias=ids, presence_penalty=0.5)
        assert biased.choices[0].message.content == "zzzzz"


def test_openai_errors(address):
    with client(address, max_retries=0) as api:
        asked = {"model": "gla", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        ask = lambda **more: lambda: api.chat.completions.create(**{**asked, **more})
        refused(openai.NotFoundError, ask(model="another"), "model")
        refused(openai.BadRequestError, ask(temperature=3), "temperature")
        refused(openai.BadRequestError, ask(max_tokens=100_000), "max_tokens")
        refused(openai.BadRequestError, ask(messages=[]), "messages")
        refused(openai.BadRequestError, ask(tools=[{"type": "function", "function": {"name": "f"}}]), "tools")
        refused(openai.BadRequestError, ask(extra_body={"no_such_field": 1}), "no_such_field")
        refused(openai.BadRequestError, lambda: api.completions.create(model="gla", prompt="x" * 5000), "prompt")
    with server("--api-key", "secret", "--max-batch", "1", "--max-queue", "0") as other:
        with openai.OpenAI(base_url=f"{other}/v1", api_key="wrong", max_retries=0) as api:
            refused(openai.AuthenticationError, lambda: api.models.list())
        with openai.OpenAI(base_url=f"{other}/v1", api_key="secret", max_retries=0) as api:
            stream = api.completions.create(model="gla", prompt="a", max_tokens=900, stream=True)
            next(iter(stream))
            error = refused(openai.RateLimitError, lambda: api.completions.create(model="gla", prompt="a"))
            assert error.response.headers["retry-after"] == "1"
            stream.close()
            for _ in range(100):  # its place is free at once
                try:
                    assert api.completions.create(model="gla", prompt="a", max_tokens=1).choices
                    break
                except openai.RateLimitError:
                    time.sleep(0.05)
            else:
                raise AssertionError("the place of a client that has gone is not free")


def test_openai_many_at_once(address):
    """Each of 64 requests at once gets what it gets alone."""
    import asyncio

    async def ask(api, i):
        prompt = f"{STORY}{'girl' * (i % 5)} who"
        answer = await api.completions.create(model="gla", prompt=prompt, max_tokens=8 + i % 7, temperature=0)
        return answer.choices[0].text

    async def both():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any") as api:
            together = await asyncio.gather(*(ask(api, i) for i in range(64)))
            alone = [await ask(api, i) for i in range(64)]
            return together, alone

    together, alone = asyncio.run(both())
    assert together == alone


def test_schemathesis(address):
    """Requests made of the document: every answer is one that the document knows, and none is the server's fault."""
    examples = os.environ.get("LATTEN_EXAMPLES", "60")
    tool = Path(sys.executable).with_name("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with tempfile.TemporaryDirectory() as folder, server("--context", "64", "--max-queue", "64") as small:
        command = [tool, "run", f"{small}/openapi.json", "--checks", checks, "--max-examples", examples, "--seed", "1",
                   "--phases", "examples,coverage,fuzzing", "--mode", "all", "--suppress-health-check", "all", "--no-color"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200)
        out = done.stdout + done.stderr
        counts = re.findall(r"^.*(?:cases|passed|failed|generated).*$", out, re.M | re.I)
        print("   ", "\n    ".join(line.strip() for line in counts[-8:]))
        assert done.returncode == 0, out[-6000:]


def test_page(address):
    """The page in a browser: a chat with streaming, its stop, and the plots. It asks nobody but its server."""
    from playwright.sync_api import expect, sync_playwright

    shots = Path(os.environ.get("LATTEN_SHOTS", TARGET / "server"))
    chromium = os.environ.get("LATTEN_CHROMIUM") or shutil.which("chromium")
    flags = ["--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        faults, asked = [], set()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.add(request.url.split("/")[2] if "://" in request.url else "inline"))
        page.goto(address)
        expect(page.locator("#model")).to_have_text("gla")
        page.fill("#temperature", "0")
        page.fill("#most", "120")
        page.fill("#text", "Once upon a time")
        page.press("#text", "Enter")
        expect(page.locator(".said.facts")).to_contain_text("length", timeout=60_000)
        said = page.locator(".said.assistant").first.inner_text()
        assert len(said) > 60, said
        assert "120 tokens" in page.locator(".said.facts").inner_text()
        # A second message, stopped.
        page.fill("#most", "700")
        page.fill("#text", "And then")
        page.press("#text", "Enter")
        expect(page.locator(".said.assistant").nth(1)).to_have_text(re.compile(r"[\s\S]{20}"), timeout=60_000)
        page.click("#send")
        expect(page.locator(".said.facts").nth(1)).to_contain_text("stopped")
        expect(page.locator("polyline").first).to_have_attribute("points", re.compile(r"(\S+ ){2}\S+"))
        page.screenshot(path=shots / "page.png")
        # What is said is text, whatever it looks like; an error is shown.
        page.fill("#most", "100000")
        page.fill("#text", "<img src=x onerror=alert(1)>")
        page.press("#text", "Enter")
        page.wait_for_selector(".said.error")
        assert page.locator("#talk img").count() == 0
        page.set_viewport_size({"width": 420, "height": 800})
        page.emulate_media(color_scheme="dark")
        page.screenshot(path=shots / "page-narrow.png")
        browser.close()
        faults = [fault for fault in faults if "400" not in fault]
        assert not faults, faults
        assert asked <= {address.split("/")[2], "inline"}, asked


def main():
    names = sys.argv[1:]
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    tests = [(name, test) for name, test in tests if not names or any(part in name for part in names)]
    passed = failed = 0
    with server("--fixed-split", "64") as address:
        for name, test in tests:
            begun = time.monotonic()
            try:
                test(address)
                passed += 1
                print(f"{name} ... ok, {time.monotonic() - begun:.1f} s", flush=True)
            except Exception:
                failed += 1
                print(f"{name} ... FAILED\n{traceback.format_exc()}", flush=True)
    print(f"clients: {passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


main()
