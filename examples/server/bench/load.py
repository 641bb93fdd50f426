"""Load on a server of OpenAI's interface: prompts and answers of fixed length, so many requests at once, medians of what clients see.

  python3 load.py http://127.0.0.1:8080 --prompt 8192 --answer 1024 --concurrency 1,4,16,64 --json out.json

Each client streams one answer after the other. Answers have exactly --answer tokens (`ignore_eos`), prompts exactly --prompt tokens:
they are sent as tokens, drawn at random, so that no two share pages. Tokens are counted by the server's usage. Needs aiohttp alone.
"""

import argparse
import asyncio
import json
import random
import statistics
import time

import aiohttp


async def one(session, url, body):
    """One answer: seconds to the first event with text, between events, and to the end; and its tokens."""
    begun, events, usage, rest = time.perf_counter(), [], None, b""
    async with session.post(url, json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {(await response.text())[:300]}")
        async for chunk in response.content.iter_any():
            now, lines = time.perf_counter(), (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                data = json.loads(line[6:])
                if "error" in data:
                    raise RuntimeError(data["error"]["message"])
                usage = data.get("usage") or usage
                if any(choice["text"] for choice in data["choices"]):
                    events.append(now)
    ended = time.perf_counter()
    if not events or usage is None:
        raise RuntimeError("an answer without text or usage")
    tokens = usage["completion_tokens"]
    # Several tokens may come in one event: the time between tokens is that of the whole answer.
    between = (events[-1] - events[0]) / max(1, tokens - 1)
    return {"first": events[0] - begun, "between": between, "whole": ended - begun, "tokens": tokens, "ended": ended,
            "prompt": usage["prompt_tokens"]}


async def point(args, concurrency, draw):
    """All requests of one concurrency."""
    count = max(concurrency, args.requests_per_client * concurrency)
    timeout = aiohttp.ClientTimeout(total=args.timeout)
    headers = {"authorization": f"Bearer {args.key}"} if args.key else {}
    left, got, failed = list(range(count)), [], []

    async def client(session):
        while left:
            left.pop()
            prompt = [draw.randrange(args.vocabulary) for _ in range(args.prompt)]
            body = {"prompt": prompt, "max_tokens": args.answer, "temperature": 0, "ignore_eos": True, "stream": True,
                    "stream_options": {"include_usage": True}}
            try:
                got.append(await one(session, f"{args.server}/v1/completions", body))
            except (RuntimeError, aiohttp.ClientError, asyncio.TimeoutError) as error:
                failed.append(str(error) or type(error).__name__)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers, connector=connector) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(concurrency)))
        seconds = time.perf_counter() - begun
    row = {"concurrency": concurrency, "requests": len(got), "failed": len(failed), "seconds": round(seconds, 3)}
    if got:
        median = lambda key: statistics.median(answer[key] for answer in got)
        tail = lambda key: sorted(answer[key] for answer in got)[int(0.99 * (len(got) - 1))]
        row |= {
            "ttft_ms": round(1e3 * median("first"), 3), "ttft_p99_ms": round(1e3 * tail("first"), 3),
            "itl_ms": round(1e3 * median("between"), 3), "itl_p99_ms": round(1e3 * tail("between"), 3),
            "e2e_s": round(median("whole"), 4),
            "output_tokens_per_s": round(sum(answer["tokens"] for answer in got) / seconds, 2),
            "prompt_tokens": sum(answer["prompt"] for answer in got),
            "output_tokens": sum(answer["tokens"] for answer in got),
        }
    if failed:
        row["errors"] = sorted(set(failed))[:5]
    return row


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="address, as http://127.0.0.1:8080")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--concurrency", default="1,4,16", help="clients at once, several with commas")
    parser.add_argument("--requests-per-client", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=256, help="prompts are drawn from so many tokens")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds of a request")
    parser.add_argument("--warm", type=int, default=1, help="requests before the first that counts")
    parser.add_argument("--key")
    parser.add_argument("--json", help="a file for the rows")
    args = parser.parse_args()
    draw, rows = random.Random(args.seed), []
    for _ in range(args.warm):
        short = argparse.Namespace(**{**vars(args), "answer": min(args.answer, 8), "requests_per_client": 1})
        await point(short, 1, draw)
    for concurrency in map(int, args.concurrency.split(",")):
        rows.append(await point(args, concurrency, draw))
        print(json.dumps(rows[-1]), flush=True)
        if args.json:
            with open(args.json, "w") as file:
                json.dump({"prompt": args.prompt, "answer": args.answer, "rows": rows}, file, indent=1)
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
