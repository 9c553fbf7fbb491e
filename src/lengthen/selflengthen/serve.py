"""Where answers come from in each macro-iteration: this process, an endpoint of the user's, or a vLLM that is started.

Production set-up: one `vllm serve` of the starting model with the Generator's and the Extender's adapters by name. The
exact command for each macro-iteration is printed and lies in `serve-N.sh`.
"""

from __future__ import annotations

import gc
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lengthen.common.errors import LengthenError
from lengthen.common.files import write_atomic
from lengthen.generate.engine import Engine
from lengthen.generate.listing import NoAnswer
from lengthen.generate.stream import Stream
from lengthen.models import resolve_model
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.recipe.stages.self_lengthen_unread import unread_serve
from lengthen.selflengthen.served import BASE, base_model, check_same, ensure_adapters, served_models
from lengthen.selflengthen.server import Server, end_orphan
from lengthen.selflengthen.store import Store

if TYPE_CHECKING:
    from lengthen.generate.endpoint import EndpointEngine
    from lengthen.generate.local import LocalEngine

FINAL = "final"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM's --max-lora-rank takes."""


def role_folder(folder: Path, iteration: int, role: str) -> Path:
    """Where a role's training of a macro-iteration lies: rows, model/, adapter/."""
    return folder / "iterations" / f"{iteration}-{role}"


def run_digits(store: Store) -> str:
    """Eight hex digits of this run, in its adapters' names: a server that stays up may hold those of another run."""
    found = store.meta("run")
    if found is None:
        found = secrets.token_hex(4)
        store.set_meta("run", found)
    return found


def model_name(role: str, after: int, run: str) -> str:
    """Name of a role's model on a server: `base` for all roles before the first training, then `generator-2-RUN` ..."""
    return BASE if role == BASE or after == 0 else f"{role}-{after}-{run}"


def adapters(folder: Path, after: int, run: str) -> dict[str, Path]:
    """Name -> folder of the adapters that macro-iteration `after` + 1 needs. Absolute: the command is run, and the
    adapters are loaded, from another folder than this one."""
    roles = ("generator", "extender") if after > 0 else ()
    root = folder.resolve()
    return {model_name(role, after, run): role_folder(root, after, role) / "adapter" for role in roles}


def serve_command(settings: SelfLengthenStage, folder: Path, after: int, run: str) -> list[str]:
    """The command that serves macro-iteration `after` + 1: the starting model and the adapters trained so far."""
    command = ["vllm", "serve", str(resolve_model(settings.model)), "--served-model-name", BASE]
    command += ["--port", str(settings.serve.port)]
    said = any(part.replace("_", "-").startswith("--max-model-len") for part in settings.serve.arguments)
    if settings.window is not None and not said:
        command += ["--max-model-len", str(settings.window)]
    if settings.method == "self-lengthen":
        # From the first macro-iteration on, so that one server that is left running can load all later adapters.
        command += ["--enable-lora", "--max-lora-rank", str(_served_rank(settings)), "--max-loras", "2"]
    found = adapters(folder, after, run)
    if found:
        command += ["--lora-modules", *(f"{name}={path}" for name, path in found.items())]
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

    run: the run's digits (`run_digits`).
    flow: requests may go out at any moment (an endpoint); otherwise in waves.
    window: most tokens of prompt and answer together that the server takes; 0 while it has not said.
    notes: what was found out about the server and should be known.
    """

    settings: SelfLengthenStage
    folder: Path
    run: str
    window: int = 0
    notes: list[str] = field(default_factory=list)
    _open: dict[str, LocalEngine] = field(default_factory=dict)
    _streams: dict[str, Stream] = field(default_factory=dict)
    _server: tuple[Server, int] | None = None
    _base: str = BASE
    _checked: bool = False
    _told: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.settings.serve.start_vllm and end_orphan(self.folder):
            self.note("A server that an earlier process of this run had left behind was ended.")
        for sentence in unread_serve(self.settings):
            self.note(sentence)

    @property
    def flow(self) -> bool:
        return bool(self.settings.serve.endpoint) or self.settings.serve.start_vllm

    def engines(self, after: int, roles: Sequence[str]) -> dict[str, Engine | Stream]:
        """Engines of these roles as they are after `after` trainings."""
        if self.flow:
            url = self._endpoint(after)
            return {role: self._remote(url, model_name(role, after, self.run)) for role in roles}
        folders = {role: self._model(role, after) for role in roles}
        wanted = set(folders.values())
        for name in set(self._open) - wanted:
            self._open.pop(name).close()
        for name in sorted(wanted - set(self._open)):
            from lengthen.generate.local import LocalEngine

            options = self.settings.template_options
            self._open[name] = LocalEngine(name, batch_size=self.settings.serve.batch, template_options=options)
        return {role: self._open[name] for role, name in folders.items()}

    def stop(self) -> None:
        """Close engines and end the server that was started here (and only that)."""
        for engine in [*self._open.values(), *self._streams.values()]:
            engine.close()
        self._open.clear()
        self._streams.clear()
        if self._server is not None:
            self._server[0].stop()
            self._server = None

    def note(self, text: str) -> None:
        """Say something once, now and in the manifest."""
        if text not in self.notes:
            self.notes.append(text)
            print(text, file=sys.stderr, flush=True)

    def _model(self, role: str, after: int) -> str:
        if role == FINAL:
            return str(resolve_model(str(self.folder)))
        if role == BASE or after == 0:
            return str(resolve_model(self.settings.model))
        return str(resolve_model(str(role_folder(self.folder, after, role))))

    # ---------------------------------------------------------------------------------------------- endpoints
    def _endpoint(self, after: int) -> str:
        """Address of the server of macro-iteration `after` + 1, which has what is needed."""
        command = serve_command(self.settings, self.folder, after, self.run)
        if after not in self._told:
            self._told.add(after)
            text = shlex.join(command)
            write_atomic(self.folder / f"serve-{after + 1}.sh", text + "\n")
            print(f"macro-iteration {after + 1} is served by: {text}", file=sys.stderr, flush=True)
        if self.settings.serve.start_vllm:
            return self._started(command, after)
        return self._found(command, after)

    def _started(self, command: list[str], after: int) -> str:
        url = f"http://127.0.0.1:{self.settings.serve.port}/v1"
        if self._server is not None and self._server[1] != after:
            self.stop()  # it lacks the adapters that were trained since
        if self._server is None:
            free_memory()
            log = self.folder / f"serve-{after + 1}.log"
            server, rows = Server.start(command, url, log, self.settings.serve)
            self._server = (server, after)
            wanted = adapters(self.folder, after, self.run)
            ensure_adapters(url, self.settings.serve.key, wanted, rows, shlex.join(command))
            self.window = base_model(url, BASE, rows).window
        return url

    def _found(self, command: list[str], after: int) -> str:
        address, _, own = (self.settings.serve.endpoint or "").partition("#")
        url, key = address.rstrip("/"), self.settings.serve.key
        rows = served_models(url, key)
        if rows is None:
            self.note(f"{url} does not list its models: their names and their window are not checked.")
        row = base_model(url, own, rows or [])
        self._base, self.window = row.name, row.window
        if not self._checked:
            said = check_same(self._engine(url, row.name), row, self.settings.model, named=bool(own))
            if said is not None:
                self.note(said)
            self._checked = True
        wanted = adapters(self.folder, after, self.run)
        if wanted:
            ensure_adapters(url, key, wanted, rows, shlex.join(command))
        return url

    def _remote(self, url: str, name: str) -> Stream:
        if name not in self._streams:
            self._streams[name] = _opened(self._engine(url, self._base if name == BASE else name))
        return self._streams[name]

    def _engine(self, url: str, name: str) -> EndpointEngine:
        from lengthen.generate.endpoint import EndpointEngine, EndpointOptions

        serve = self.settings.serve
        options = EndpointOptions(
            concurrency=serve.in_flight, seconds=serve.base_seconds,
            seconds_per_token=1 / serve.slowest_tokens_per_second, key=serve.key, retry_timeouts=False,
        )  # fmt: skip
        return EndpointEngine(
            url, name, tokenizer=self.settings.model, template_options=self.settings.template_options, options=options
        )


def free_memory() -> None:
    """Give back what a training in this process has left: a server that starts takes most of a GPU at once."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _opened(engine: EndpointEngine, tries: int = 4) -> Stream:
    """A stream; the probe at its beginning is tried again, since one 429 or 500 there would end the run."""
    for wait in (1.0, 4.0, 16.0)[: tries - 1]:
        try:
            return Stream(engine)
        except NoAnswer:
            time.sleep(wait)
    return Stream(engine)
