"""A scripted OpenAI-compatible endpoint in a process of its own: `python -m tests.selflengthen.server --log FILE`.

It speaks the real protocol (chat with a continued last message, completions, models, adapters by name) and writes
answers that a Generator, an Extender or a judge might give, good and bad ones, decided by the request's seed. Faults
come at given rates: 429, 500, a dropped connection, an answer that never comes. Every request and every reply is a line
of the log, so that a test can tell what was asked, how often, and how busy the server was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Script:
    """latency: seconds of an ordinary answer (drawn from half to twice that). limited, broken, dropped, hanging: share
    of the requests that end so when they come for the first time; hang_seconds: how long a hanging one is silent. size:
    factor on the words of first answers."""

    latency: float = 0.05
    limited: float = 0.0
    broken: float = 0.0
    dropped: float = 0.0
    hanging: float = 0.0
    hang_seconds: float = 3600.0
    size: float = 1.0
    prefill: bool = True
    runtime_adapters: bool = True
    seen: dict[str, int] = field(default_factory=dict)
    adapters: list[str] = field(default_factory=list)


class Endpoint:
    def __init__(self, script: Script, log: str) -> None:
        self.script, self.log = script, open(log, "a", buffering=1)  # noqa: SIM115
        self.in_flight = 0

    def note(self, **line: Any) -> None:
        self.log.write(json.dumps({"at": time.time(), "in_flight": self.in_flight, **line}) + "\n")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = json.loads(await reader.readexactly(int(length[1]))) if length else {}
                status, reply = await self.answer(method, path, body)
                if status == 0:
                    break
                data = json.dumps(reply).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
                    f"{'Retry-After: 0.05' if status == 429 else 'X-None: 0'}\r\n\r\n".encode()
                )
                writer.write(data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(HTTP status, body); status 0 drops the connection."""
        if path.endswith("/models"):
            names = ["base", *self.script.adapters]
            return 200, {
                "object": "list",
                "data": [{"id": n, "object": "model", "max_model_len": 65536} for n in names],
            }
        if path.endswith("/load_lora_adapter"):
            if not self.script.runtime_adapters:
                return 404, {"error": {"message": "runtime adapters are switched off"}}
            self.script.adapters.append(body["lora_name"])
            return 200, {}
        if path.endswith("/health"):
            return 200, {}
        if not path.endswith("/completions"):
            return 404, {"error": {"message": f"no {path}"}}
        if not self.script.prefill and (body.get("continue_final_message") or path == "/v1/completions"):
            return 400, {"error": {"message": "unknown parameter"}}
        self.in_flight += 1
        try:
            return await self.complete(body, chat=path.endswith("/chat/completions"))
        finally:
            self.in_flight -= 1

    async def complete(self, body: dict[str, Any], *, chat: bool) -> tuple[int, dict[str, Any]]:
        key = f"{body.get('seed')}/{body.get('max_tokens') or body.get('max_completion_tokens')}"
        times = self.script.seen[key] = self.script.seen.get(key, 0) + 1
        draws = random.Random(f"{key}/{times}")
        self.note(event="asked", key=key, seed=body.get("seed"), model=body.get("model"))
        fault = draws.random()
        for name, share in (("limited", self.script.limited), ("broken", self.script.broken),
                            ("dropped", self.script.dropped), ("hanging", self.script.hanging)):  # fmt: skip
            fault -= share
            if fault < 0 and times == 1:
                self.note(event=name, key=key)
                if name == "hanging":
                    await asyncio.sleep(self.script.hang_seconds)
                    return 0, {}
                await asyncio.sleep(0.01)
                status = {"limited": 429, "broken": 500, "dropped": 0}[name]
                return status, {"error": {"message": f"scripted {name}"}}
        await asyncio.sleep(self.script.latency * draws.uniform(0.5, 2.0))
        if chat:
            messages = body["messages"]
            prefix = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
            asked = [m["content"] for m in messages if m["role"] != "assistant"]
        else:
            asked, prefix = [body["prompt"]], "..." if not body["prompt"].rstrip().endswith("assistant") else ""
        text, finish = reply(asked, prefix, int(body.get("seed") or 0), self.script.size)
        self.note(event="answered", key=key)
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        read = sum(len(str(part).split()) + 4 for part in asked) + (0 if body.get("continue_final_message") else 6)
        usage = {
            "prompt_tokens": read,
            "completion_tokens": len(text.split()),
            "total_tokens": read + len(text.split()),
        }
        kind = "chat.completion" if chat else "text_completion"
        return 200, {
            "id": key,
            "object": kind,
            "created": 0,
            "model": body.get("model"),
            "choices": [choice],
            "usage": usage,
        }


def reply(asked: list[str], prefix: str, seed: int, size: float) -> tuple[str, str]:
    """An answer in the manner of the role that the prompt shows."""
    draws = random.Random(seed)
    prompt = asked[-1]
    if "one word, yes or no" in prompt:
        return draws.choice(["Yes.", "Yes", "yes", "No.", "It depends."]), "stop"
    if "numbered, one after the other" in prompt:
        return f" Write a {draws.choice(KINDS)} about {prose(6, draws).lower()}\n", "stop"
    if len(asked) > 1 and "also asks for this length" in asked[0]:
        demand = re.search(r"for this length: (.*?)\. Change", asked[0])
        lost = draws.random() < 0.2
        return f"{prompt} Use {'many words' if lost or not demand else demand[1]} for it.", "stop"
    outline = re.search(r"<outline>\n(.*)\n</outline>", prompt, re.DOTALL)
    if outline and prefix:
        return prose(int(1.2 * len(outline[1].split())), draws), draws.choice(["stop"] * 9 + ["length"])
    if outline:
        return prose(2 * len(outline[1].split()), draws), "stop"
    bad = draws.random()
    if bad < 0.05:
        return "", "stop"
    if bad < 0.1:
        return "I'm sorry, but I cannot help with that.", "stop"
    if bad < 0.2:
        return prose(150, draws), "length"
    if bad < 0.3:
        return prose(80, draws).rstrip(".") + " and", "stop"
    return prose(int(size * draws.randint(80, 400)), draws), "stop"


KINDS = ("long story", "thorough report", "lively essay", "careful guide", "solemn speech", "funny letter")
SOUNDS = [
    a + b
    for a in ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu")
    for b in ("lan", "mer", "dos", "kin", "fu")
]


def prose(words: int, draws: random.Random) -> str:
    """Sentences of made-up words, in paragraphs, that do not repeat."""
    paragraphs, count = [], 0
    while count < words:
        sentences = []
        for _ in range(4):
            size = min(draws.randint(8, 16), max(3, words - count))
            sentences.append(
                " ".join(draws.choice(SOUNDS) + draws.choice(SOUNDS) for _ in range(size)).capitalize() + "."
            )
            count += size
            if count >= words:
                break
        paragraphs.append(" ".join(sentences))
    return "\n\n".join(paragraphs)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--no-prefill", action="store_true")
    parser.add_argument("--no-runtime-adapters", action="store_true")
    for name in ("latency", "limited", "broken", "dropped", "hanging", "hang-seconds", "size"):
        parser.add_argument(f"--{name}", type=float)
    given = vars(parser.parse_args())
    names = ("latency", "limited", "broken", "dropped", "hanging", "hang_seconds", "size")
    script = Script(**{k: given[k] for k in names if given[k] is not None}, prefill=not given["no_prefill"],
                    runtime_adapters=not given["no_runtime_adapters"])  # fmt: skip
    endpoint = Endpoint(script, given["log"])
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", given["port"], limit=2**24, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
