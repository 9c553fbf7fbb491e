"""Where answers come from in each macro-iteration: this process, an endpoint of the user's, or a vLLM that is started.

Production set-up: one `vllm serve` of the starting model with the Generator's and the Extender's adapters by name. The
exact command for each macro-iteration is printed and lies in `serve-N.sh`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lengthen.common.errors import LengthenError, MissingExtra
from lengthen.common.files import write_atomic
from lengthen.generate.engine import Engine
from lengthen.generate.stream import Stream
from lengthen.models import resolve_model
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage

if TYPE_CHECKING:
    from lengthen.generate.endpoint import EndpointEngine
    from lengthen.generate.local import LocalEngine

ROLES = ("base", "generator", "extender")
BASE, FINAL = "base", "final"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM's --max-lora-rank takes."""


def role_folder(folder: Path, iteration: int, role: str) -> Path:
    """Where a role's training of a macro-iteration lies: rows, model/, adapter/."""
    return folder / "iterations" / f"{iteration}-{role}"


def model_name(role: str, after: int) -> str:
    """Name of a role's model on a server: `base` for all roles before the first training, then `generator-2` ..."""
    return BASE if role == BASE or after == 0 else f"{role}-{after}"


def serve_command(settings: SelfLengthenStage, folder: Path, after: int) -> list[str]:
    """The command that serves macro-iteration `after` + 1: the starting model and the adapters trained so far."""
    command = ["vllm", "serve", str(resolve_model(settings.model)), "--served-model-name", BASE]
    command += ["--port", str(settings.serve.port)]
    if settings.method == "self-lengthen":
        # From the first macro-iteration on, so that one server that is left running can load all later adapters.
        command += ["--enable-lora", "--max-lora-rank", str(_served_rank(settings)), "--max-loras", "2"]
    if after > 0:
        # Absolute: the command is run, and the adapters are loaded, from another folder than this one.
        root = folder.resolve()
        adapters = {model_name(r, after): role_folder(root, after, r) / "adapter" for r in ("generator", "extender")}
        command += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    return command + list(settings.serve.arguments)


def _served_rank(settings: SelfLengthenStage) -> int:
    """The size that vLLM must be given for the last macro-iteration's adapters, whose ranks have added up."""
    rank = settings.training.lora_rank * settings.iterations
    fitting = [size for size in _RANKS if size >= rank]
    if not fitting:
        raise LengthenError(
            f"After {settings.iterations} macro-iterations the adapters have rank {rank}; vLLM serves at most "
            f"{_RANKS[-1]}.",
            why="each training adds its own adapter to the one before it",
            fix="lower training.lora_rank or iterations",
        )
    return fitting[0]


@dataclass
class Serving:
    """Engines by role. Keeps one in-process model (or one started server) at a time; `stop` frees it before training.

    flow: requests may go out at any moment (an endpoint); otherwise in waves.
    """

    settings: SelfLengthenStage
    folder: Path
    _open: dict[str, LocalEngine] = field(default_factory=dict)
    _streams: dict[str, Stream] = field(default_factory=dict)
    _server: Server | None = None
    _told: set[int] = field(default_factory=set)

    @property
    def flow(self) -> bool:
        return bool(self.settings.serve.endpoint) or self.settings.serve.start_vllm

    def engines(self, after: int, roles: Sequence[str]) -> dict[str, Engine | Stream]:
        """Engines of these roles as they are after `after` trainings."""
        if self.flow:
            url = self._endpoint(after)
            return {role: self._remote(url, model_name(role, after)) for role in roles}
        folders = {role: self._model(role, after) for role in roles}
        wanted = set(folders.values())
        for name in set(self._open) - wanted:
            self._open.pop(name).close()
        for name in sorted(wanted - set(self._open)):
            from lengthen.generate.local import LocalEngine

            self._open[name] = LocalEngine(name, batch_size=self.settings.serve.batch)
        return {role: self._open[name] for role, name in folders.items()}

    def stop(self) -> None:
        """Close engines and end the server that was started here (and only that)."""
        for engine in [*self._open.values(), *self._streams.values()]:
            engine.close()
        self._open.clear()
        self._streams.clear()
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _model(self, role: str, after: int) -> str:
        if role == FINAL:
            return str(resolve_model(str(self.folder)))
        if role == BASE or after == 0:
            return str(resolve_model(self.settings.model))
        return str(resolve_model(str(role_folder(self.folder, after, role))))

    # ---------------------------------------------------------------------------------------------- endpoints
    def _endpoint(self, after: int) -> str:
        command = serve_command(self.settings, self.folder, after)
        text = shlex.join(command)
        if after not in self._told:
            self._told.add(after)
            write_atomic(self.folder / f"serve-{after + 1}.sh", text + "\n")
            print(f"macro-iteration {after + 1} is served by: {text}", file=sys.stderr, flush=True)
        if self.settings.serve.start_vllm:
            url = f"http://127.0.0.1:{self.settings.serve.port}/v1"
            if self._server is None:
                self._server = Server.start(command, url, self.folder / f"serve-{after + 1}.log", self.settings)
            return url
        url = (self.settings.serve.endpoint or "").partition("#")[0].rstrip("/")
        self._check_names(url, after, text)
        return url

    def _check_names(self, url: str, after: int, command: str) -> None:
        """Every adapter of this macro-iteration is served; where the server takes adapters at run time, load them."""
        wanted = {model_name(role, after) for role in ROLES} - {BASE}
        for name in sorted(wanted - set(served_models(url))):
            role = name.rsplit("-", 1)[0]
            load_adapter(url, name, role_folder(self.folder.resolve(), after, role) / "adapter")
        missing = sorted(wanted - set(served_models(url)))
        if missing:
            raise LengthenError(
                f"The endpoint {url} does not serve {', '.join(missing)}.",
                why=f"macro-iteration {after + 1} needs the adapters trained before it",
                fix=f"serve them and run the same command again, it goes on from here:\n   {command}\n"
                "   (or start vLLM once with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True: adapters are then loaded by name)",
            )

    def _remote(self, url: str, name: str) -> Stream:
        if name not in self._streams:
            from lengthen.generate.endpoint import EndpointEngine, EndpointOptions

            serve = self.settings.serve
            options = EndpointOptions(
                concurrency=serve.in_flight, seconds=serve.base_seconds,
                seconds_per_token=1 / serve.slowest_tokens_per_second,
            )  # fmt: skip
            engine = EndpointEngine(url, self._served_name(url, name), tokenizer=self.settings.model, options=options)
            self._streams[name] = _opened(engine)
        return self._streams[name]

    def _served_name(self, url: str, name: str) -> str:
        """The starting model may have a name of its own at an endpoint: `#NAME` of serve.endpoint, or its only one."""
        if name != BASE or self.settings.serve.start_vllm:
            return name
        own = (self.settings.serve.endpoint or "").partition("#")[2]
        names = served_models(url)
        return own or (BASE if BASE in names or not names else names[0])


def _opened(engine: EndpointEngine, tries: int = 4) -> Stream:
    """A stream; the probe at its beginning is tried again, since one 429 or 500 there would end the run."""
    for wait in (1.0, 4.0, 16.0)[: tries - 1]:
        try:
            return Stream(engine)
        except LengthenError as error:
            if "does not answer" not in error.what:
                raise
            time.sleep(wait)
    return Stream(engine)


def served_models(url: str) -> list[str]:
    """Names that an OpenAI-compatible endpoint lists."""
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=30) as reply:
            return [row["id"] for row in json.load(reply).get("data", [])]
    except (OSError, ValueError) as error:
        raise LengthenError(
            f"No endpoint answers at {url}: {error}.",
            fix="start the server that was printed, or set serve.endpoint to its address (ending in /v1)",
        ) from error


def load_adapter(url: str, name: str, path: Path) -> bool:
    """Ask a running vLLM to load an adapter. False when the server does not take adapters at run time."""
    body = json.dumps({"lora_name": name, "lora_path": str(path)}).encode()
    request = urllib.request.Request(
        f"{url}/load_lora_adapter", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300):
            return True
    except (urllib.error.HTTPError, OSError):
        return False


@dataclass
class Server:
    """A server process that was started here, in a process group of its own."""

    process: subprocess.Popen
    log: Path

    @classmethod
    def start(cls, command: Sequence[str], url: str, log: Path, settings: SelfLengthenStage) -> Server:
        """Start and wait until it lists its models."""
        if shutil.which(command[0]) is None:
            raise MissingExtra.of("serve.start_vllm", "vllm")
        with open(log, "ab") as file:
            process = subprocess.Popen(list(command), stdout=file, stderr=file, start_new_session=True)
        server = cls(process, log)
        end = time.monotonic() + 60 * settings.serve.start_minutes
        while time.monotonic() < end:
            if process.poll() is not None:
                last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
                raise LengthenError(
                    f"The server stopped while it was starting (exit code {process.returncode}).",
                    why=last[-500:],
                    fix=f"read {log}; arguments can be added with serve.arguments",
                )
            with contextlib.suppress(LengthenError):
                if served_models(url):
                    return server
            time.sleep(0.5)
        server.stop()
        raise LengthenError(
            f"The server did not answer within {settings.serve.start_minutes:g} minutes.",
            fix=f"read {log}, or raise serve.start_minutes",
        )

    def stop(self) -> None:
        """End the process group that was started here: politely, after 30 seconds by force."""
        if self.process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
