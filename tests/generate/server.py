"""A real HTTP server on 127.0.0.1 that speaks the OpenAI protocol, well or badly, as its script says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Script:
    """How the server behaves.

    write: (prompt text, request body) -> answer. A chat's prompt is its messages, one a line.
    trouble: number of the request to the writing paths (from 0) -> what goes wrong; or a function of the prompt.
        Kinds: an HTTP status, "garbage", "html", "empty" (no choice), "none" (no text), "hang", "drop".
    latency: seconds before each answer.
    continues: understands continue_final_message. strict: refuses fields that it does not know.
    completions, ids: has /v1/completions, and it takes token ids. usage: tells token counts (words here).
    lists: has /v1/models; busy: that path answers `trouble_status` so often first.
    key: what it wants as a key, if anything.
    max_model_len: most words of prompt and answer together; more is a 400, as vLLM says it.
    """

    write: Callable[[str, dict[str, Any]], str] = lambda prompt, body: f"echo {prompt.split()[-1]}"
    trouble: Callable[[int, str], Any] = lambda number, prompt: None
    latency: float = 0.0
    continues: bool = False
    strict: bool = False
    completions: bool = True
    ids: bool = False
    usage: bool = True
    models: tuple[str, ...] = ("test-model",)
    lists: bool = True
    busy: int = 0
    trouble_status: int = 503
    key: str | None = None
    max_model_len: int | None = None
    retry_after: str | None = None
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)

    @property
    def asked(self) -> list[str]:
        """Prompts of all writing requests except probes."""
        return [p for p, body in self.seen if "One, two, three" not in p]


_KNOWN = {"model", "messages", "prompt", "max_tokens", "temperature", "seed", "top_p", "stop", "stream"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._locked():
            return None
        if not self.script.lists:
            return self._send(404, {"error": {"message": "no such path"}})
        if self.script.busy:
            self.script.busy -= 1
            return self._send(self.script.trouble_status, {"error": {"message": "loading"}})
        names = self.script.models
        return self._send(200, {"object": "list", "data": [{"id": n, "object": "model", "created": 0} for n in names]})

    def _locked(self) -> bool:
        """Answers 401 to a request without the key."""
        wrong = self.script.key is not None and self.headers["authorization"] != f"Bearer {self.script.key}"
        if wrong:
            self._send(401, {"error": {"message": "no such key"}})
        return wrong

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        script, chat = self.script, self.path.endswith("/chat/completions")
        if self._locked():
            return None
        if not chat and not script.completions:
            return self._send(404, {"error": {"message": "no such path"}})
        if script.strict and set(body) - _KNOWN:
            return self._send(422, {"error": {"message": f"unknown fields {sorted(set(body) - _KNOWN)}"}})
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            if not script.ids:
                return self._send(400, {"error": {"message": "prompt must be a string"}})
            prompt = " ".join(map(str, prompt))
        if chat:
            prompt = "\n".join(f"{m['role']}: {m['content']}" for m in body["messages"])
        with script.lock:
            number = len(script.asked)
            script.seen.append((prompt, body))
            script.at_once += 1
            script.most_at_once = max(script.most_at_once, script.at_once)
        try:
            time.sleep(script.latency)
            probe = "One, two, three" in prompt
            self._answer(None if probe else script.trouble(number, prompt), prompt, body, chat)
        finally:
            with script.lock:
                script.at_once -= 1

    def _answer(self, trouble: Any, prompt: str, body: dict[str, Any], chat: bool) -> None:
        script = self.script
        if isinstance(trouble, int):
            return self._send(trouble, {"error": {"message": f"scripted {trouble}"}})
        if trouble == "hang":
            time.sleep(30)
        if trouble in ("hang", "drop"):
            self.close_connection = True
            return None
        if trouble == "garbage":
            return self._raw(200, "application/json", b'{"choices": [{"message": {"con')
        if trouble == "html":
            return self._raw(200, "text/html", b"<html>gateway</html>")
        asked = len(prompt.split()) + body["max_tokens"]
        if script.max_model_len is not None and asked > script.max_model_len:
            said = f"This model's maximum context length is {script.max_model_len} tokens, you requested {asked} tokens"
            return self._send(400, {"error": {"message": said, "type": "BadRequestError", "code": 400}})
        text = script.write(prompt, body)
        words = text.split()
        cut = len(words) > body["max_tokens"]
        text = " ".join(words[: body["max_tokens"]]) if cut else text
        content = None if trouble == "none" else text
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if cut else "stop"}
        choice |= {"message": {"role": "assistant", "content": content}} if chat else {"text": content}
        reply: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        reply["choices"] = [] if trouble == "empty" else [choice]
        if script.usage:
            continued = script.continues and body.get("continue_final_message")
            count = len(prompt.split()) + (0 if continued or not chat else 3)
            new = min(len(words), body["max_tokens"])
            reply["usage"] = {"prompt_tokens": count, "completion_tokens": new, "total_tokens": count + new}
        return self._send(200, reply)

    def _send(self, status: int, value: Any) -> None:
        self._raw(status, "application/json", json.dumps(value).encode())

    def _raw(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        if status == 429 and self.script.retry_after is not None:
            self.send_header("retry-after", self.script.retry_after)
        self.end_headers()
        try:
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are part of the script."""


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """Address of the running server, ending in /v1."""
    handler = type("Handler", (_Handler,), {"script": script})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
