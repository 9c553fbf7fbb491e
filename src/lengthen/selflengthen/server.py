"""A server process that is started for a macro-iteration and ended before training; this process and no other.

`serve.pid` in the run's folder names it while it runs. A run that was killed before it could end its server finds it
there, and ends it before anything else: it would hold the GPU, and answer in place of the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from lengthen.common.errors import LengthenError, MissingExtra
from lengthen.common.files import write_atomic
from lengthen.generate.listing import Listed, NoAnswer, list_models
from lengthen.recipe.stages.self_lengthen import Serve

PID_FILE = "serve.pid"
_POLITE_SECONDS = 30
_SIGNALS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@dataclass
class Server:
    """A server that was started here, in a process group of its own."""

    process: subprocess.Popen
    log: Path
    _caught: list[signal.Signals] = field(default_factory=list)

    @classmethod
    def start(cls, command: Sequence[str], url: str, log: Path, serve: Serve) -> tuple[Server, list[Listed]]:
        """Start and wait until it lists its models. `serve.pid` lies beside the log until it is ended.

        Raises:
            LengthenError: the program is not installed, the port is taken, it stops or does not answer in time.
        """
        if shutil.which(command[0]) is None:
            raise MissingExtra.of("serve.start_vllm", "vllm")
        refuse_taken(serve.port)
        with open(log, "ab") as file:
            process = subprocess.Popen(list(command), stdout=file, stderr=file, start_new_session=True)
        server = cls(process, log)
        try:
            server._remember(command)
            server._catch_signals()
            return server, server._wait(url, serve)
        except BaseException:
            server.stop()
            raise

    def stop(self) -> None:
        """End the process group that was started here: politely, after 30 seconds by force."""
        _end_group(self.process.pid)
        self.process.wait()
        (self.log.parent / PID_FILE).unlink(missing_ok=True)
        while self._caught:
            signal.signal(self._caught.pop(), signal.SIG_DFL)

    def _wait(self, url: str, serve: Serve) -> list[Listed]:
        end = time.monotonic() + 60 * serve.start_minutes
        while time.monotonic() < end:
            found: list[Listed] | None = None
            with contextlib.suppress(NoAnswer):
                found = list_models(url, serve.key, 10.0)
            # Looked at after the answer: with another program at the address, ours cannot have taken the port.
            if self.process.poll() is not None:
                last = (self.log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
                raise LengthenError(
                    f"The server stopped while it was starting (exit code {self.process.returncode}).",
                    why=last[-500:],
                    fix=f"read {self.log}; arguments can be added with serve.arguments",
                )
            if found:
                return found
            time.sleep(0.5)
        raise LengthenError(
            f"The server did not answer within {serve.start_minutes:g} minutes.",
            fix=f"read {self.log}, or raise serve.start_minutes",
        )

    def _remember(self, command: Sequence[str]) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # a program that ends at once says so in its log
            started = psutil.Process(self.process.pid).create_time()
            row = {"pid": self.process.pid, "started": started, "command": list(command)}
            write_atomic(self.log.parent / PID_FILE, json.dumps(row) + "\n")

    def _catch_signals(self) -> None:
        """Let a signal that would end this process at once pass through its `finally`s, where the server is ended. A
        caller with a handler of its own keeps it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _leave)
                self._caught.append(number)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not break off the ending
    raise SystemExit(128 + number)


def refuse_taken(port: int) -> None:
    """Refuse a port at which something listens: its answers would be taken for those of the server to be started."""
    with socket.socket() as knock:
        knock.settimeout(1)
        taken = knock.connect_ex(("127.0.0.1", port)) == 0
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind(("", port))
            why = "another server answers there, in place of the one to be started" if taken else ""
        except OSError as error:
            why = f"{error.strerror}: another program listens there, or the port needs rights"
    if why:
        raise LengthenError(
            f"serve.port {port} cannot be used.",
            why=why,
            fix="set serve.port to a free one, or end what listens there (or name it as serve.endpoint, to use it)",
        )


def end_orphan(folder: Path) -> bool:
    """End the server that an earlier process of this run left behind, as `serve.pid` names it. True when there was one.

    Only a process with the number *and* the start time that were written down, and at the head of its own group, is it:
    numbers are given again. Where it died, its group (a server's engines) is ended: a number is not given again while
    a group of that number lives.
    """
    file = folder / PID_FILE
    group = _left_behind(file)
    if group is not None:
        _end_group(group)
    file.unlink(missing_ok=True)
    return group is not None


def _left_behind(file: Path) -> int | None:
    """The number of the server's group, if anything runs in it."""
    try:
        row = json.loads(file.read_text())
        number, started = int(row["pid"]), float(row["started"])
        ours = number > 1 and started > psutil.boot_time()  # groups of an earlier start of the machine are gone
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            ours = ours and abs(psutil.Process(number).create_time() - started) < 1.0 and os.getpgid(number) == number
        return number if ours and _in_group(number) else None
    except (ValueError, KeyError, TypeError, OSError, psutil.Error):
        return None


def _end_group(number: int) -> None:
    """End all that runs in a process group, its head or what the head left: politely, after 30 seconds by force."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(number, kind)
        end = time.monotonic() + _POLITE_SECONDS
        while _in_group(number):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        else:
            return


def _in_group(number: int) -> bool:
    """Whether anything runs in a process group; what ended, and its parent has not taken note of yet, does not."""
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(pid) == number and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return True
    return False
