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
from pathlib import Path
from typing import Any


@dataclass
class Script:
    """latency: seconds of an ordinary answer (drawn from half to twice that). limited, broken, dropped, hanging: share
    of the requests that end so when they come for the first time; hang_seconds: how long a hanging one is silent. size:
    factor on the words of first answers.

    model: folder of the model that it plays: its tokenizer counts tokens (without one words are counted), and the list
    names it. root: what the list says instead that the model was loaded from; "" for nothing. names: what the base
    model is called (first) and other models beside it. max_model_len: most tokens of prompt and answer together; more
    is refused as vLLM does. key: what it wants as a key. lists: false answers 404 to the list. thinks: answers begin
    with thinking unless the chat template's options switch it off.
    """

    latency: float = 0.05
    limited: float = 0.0
    broken: float = 0.0
    dropped: float = 0.0
    hanging: float = 0.0
    hang_seconds: float = 3600.0
    size: float = 1.0
    prefill: bool = True
    runtime_adapters: bool = True
    adapters_status: int = 404
    model: str | None = None
    root: str | None = None
    names: list[str] = field(default_factory=lambda: ["base"])
    max_model_len: int = 65536
    key: str | None = None
    lists: bool = True
    thinks: bool = False
    seen: dict[str, int] = field(default_factory=dict)
    adapters: list[str] = field(default_factory=list)


class Counter:
    """Tokens of a request by the tokenizer and the chat template of a model folder, or by words."""

    def __init__(self, folder: str | None) -> None:
        self.tokenizer = self.template = None
        if folder is not None:
            import jinja2
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
            self.template = jinja2.Environment().from_string(Path(folder, "chat_template.jinja").read_text())

    def tokens(self, text: str) -> int:
        if self.tokenizer is None:
            return len(text.split())
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, body: dict[str, Any]) -> int:
        continued = bool(body.get("continue_final_message"))
        messages = body.get("messages")
        if messages is None:
            return self.tokens(body["prompt"]) if isinstance(body["prompt"], str) else len(body["prompt"])
        if self.template is None:
            return sum(self.tokens(m["content"]) + 4 for m in messages) + (0 if continued else 6)
        text = self.template.render(messages=messages, add_generation_prompt=not continued)
        last = messages[-1]["content"]
        return self.tokens(text[: text.rindex(last) + len(last)] if continued else text)


class Endpoint:
    def __init__(self, script: Script, log: str) -> None:
        self.script, self.log = script, open(log, "a", buffering=1)  # noqa: SIM115
        self.counter = Counter(script.model)
        self.in_flight = 0

    def note(self, **line: Any) -> None:
        self.log.write(json.dumps({"at": time.time(), "in_flight": self.in_flight, **line}) + "\n")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = json.loads(await reader.readexactly(int(length[1]))) if length else {}
                key = re.search(rb"\r\nauthorization: *Bearer (\S+)", head, re.IGNORECASE)
                if self.script.key is not None and (key is None or key[1].decode() != self.script.key):
                    self.note(event="locked", path=path)
                    status, reply = 401, {"error": {"message": "no such key"}}
                else:
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
            self.note(event="listed")
            if not self.script.lists:
                return 404, {"error": {"message": f"no {path}"}}
            first, *others = self.script.names
            root = self.script.model if self.script.root is None else self.script.root
            rows: list[dict[str, Any]] = [{"id": first, "max_model_len": self.script.max_model_len}]
            rows[0] |= {"root": root} if root else {}
            rows += [{"id": name} for name in others]
            rows += [{"id": name, "parent": first, "max_model_len": None} for name in self.script.adapters]
            return 200, {"object": "list", "data": [{"object": "model", **row} for row in rows]}
        if path.endswith("/load_lora_adapter"):
            if not self.script.runtime_adapters:
                return self.script.adapters_status, {"error": {"message": "runtime adapters are switched off"}}
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
        read = self.counter.prompt(body)
        asked_tokens = read + (body.get("max_tokens") or 0)
        options = body.get("chat_template_kwargs") or {}
        self.note(event="asked", key=key, seed=body.get("seed"), model=body.get("model"), options=options)
        if asked_tokens > self.script.max_model_len:
            self.note(event="too_long", key=key, seed=body.get("seed"))
            said = f"This model's maximum context length is {self.script.max_model_len} tokens. However, you requested "
            return 400, {"error": {"message": f"{said}{asked_tokens} tokens.", "type": "BadRequestError", "code": 400}}
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
        if self.script.thinks and options.get("enable_thinking", True) and not prefix:
            text = f"<think>\nThe user wants a text.\n</think>\n\n{text}"
        self.note(event="answered", key=key)
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
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
    parser.add_argument("--root")
    parser.add_argument("--no-list", action="store_true")
    parser.add_argument("--thinks", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--key")
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--adapters", nargs="+")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--adapters-status", type=int)
    for name in ("latency", "limited", "broken", "dropped", "hanging", "hang-seconds", "size"):
        parser.add_argument(f"--{name}", type=float)
    given = vars(parser.parse_args())
    names = ("latency", "limited", "broken", "dropped", "hanging", "hang_seconds", "size", "model", "key", "names",
             "adapters", "adapters_status", "max_model_len", "thinks", "root")  # fmt: skip
    script = Script(**{k: given[k] for k in names if given[k] is not None}, prefill=not given["no_prefill"],
                    runtime_adapters=not given["no_runtime_adapters"], lists=not given["no_list"])  # fmt: skip
    endpoint = Endpoint(script, given["log"])
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", given["port"], limit=2**24, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
