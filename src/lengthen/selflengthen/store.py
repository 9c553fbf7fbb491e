"""State of a run: one SQLite file with every request, answer, verdict and reason. Killed at any moment it goes on.

One writer, WAL: answers are committed before anything is done with them, those that came together in one transaction,
so a killed process asks none of them again. Keys name what was asked, never when: (iteration, role, item, sample,
attempt, step). A step that finds its answer here does not ask again, whatever the order of arrival was.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.files import explain_disk
from lengthen.generate.engine import Answer, Request

SCHEMA = 2
# A prompt and its answer lie in two tables, since SQLite writes a whole row anew when one field of it changes; the view
# `requests` shows both as one.
_TABLES = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS phases(iteration INTEGER, phase TEXT, began_at REAL, ended_at REAL, info TEXT,
  PRIMARY KEY(iteration, phase));
CREATE TABLE IF NOT EXISTS used(iteration INTEGER, phase TEXT, settings TEXT, PRIMARY KEY(iteration, phase));
CREATE TABLE IF NOT EXISTS instructions(iteration INTEGER, item TEXT, language TEXT, source TEXT, text TEXT,
  PRIMARY KEY(iteration, item));
CREATE TABLE IF NOT EXISTS asked(id INTEGER PRIMARY KEY, iteration INTEGER, role TEXT, item TEXT, sample INTEGER,
  attempt INTEGER, step TEXT, sends INTEGER, sent_at REAL, seconds REAL, errors INTEGER DEFAULT 0, error TEXT,
  request TEXT, UNIQUE(iteration, role, item, sample, attempt, step));
CREATE TABLE IF NOT EXISTS answers(id INTEGER PRIMARY KEY REFERENCES asked(id), answered_at REAL, text TEXT,
  finish_reason TEXT, prompt_tokens INTEGER, new_tokens INTEGER, seconds REAL);
CREATE VIEW IF NOT EXISTS requests AS SELECT iteration, role, item, sample, attempt, step, request, sends, sent_at,
  answered_at, text, finish_reason, prompt_tokens, new_tokens, COALESCE(answers.seconds, asked.seconds) AS seconds,
  errors, error FROM asked LEFT JOIN answers USING (id);
CREATE TABLE IF NOT EXISTS verdicts(iteration INTEGER, role TEXT, item TEXT, sample INTEGER, attempt INTEGER, step TEXT,
  rule TEXT, detail TEXT, words INTEGER, clean_words INTEGER,
  PRIMARY KEY(iteration, role, item, sample, attempt, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes(iteration INTEGER, role TEXT, item TEXT, sample INTEGER, text TEXT, words INTEGER,
  clean_words INTEGER, kept INTEGER, info TEXT, PRIMARY KEY(iteration, role, item, sample));
CREATE TABLE IF NOT EXISTS measures(iteration INTEGER, name TEXT, value REAL, low REAL, high REAL, unit TEXT, n INTEGER,
  PRIMARY KEY(iteration, name));
CREATE TABLE IF NOT EXISTS rows(purpose TEXT, id TEXT, row TEXT, PRIMARY KEY(purpose, id));
"""


@dataclass(frozen=True)
class Key:
    """What is asked. item: the instruction's name. step: a part of one attempt, such as `2b` (round 2, stage two)."""

    iteration: int
    role: str
    item: str
    sample: int = 0
    attempt: int = 1
    step: str = ""

    @property
    def fields(self) -> tuple[int, str, str, int, int, str]:
        return (self.iteration, self.role, self.item, self.sample, self.attempt, self.step)

    def __str__(self) -> str:
        return "/".join(str(field) for field in self.fields)


@dataclass(frozen=True)
class Outcome:
    """End of a task. text: None when every try failed. kept: None until the selection decided."""

    iteration: int
    role: str
    item: str
    sample: int
    text: str | None
    words: int
    clean_words: int
    kept: bool | None
    info: dict[str, Any]


_MATCH = "iteration=? AND role=? AND item=? AND sample=? AND attempt=? AND step=?"


class Store:
    """The state file. Safe to use from several threads of one process; the loop locks out a second process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.reads: Callable[[int, str], Mapping[str, Any]] = lambda iteration, phase: {}
        """What a phase reads of the settings; kept with the phase when it begins."""
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=60)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A commit survives the death of the process; only a power cut may lose the last ones.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT)")
            found = self.meta("schema")
            if found is None or int(found) == SCHEMA:
                self._db.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise LengthenError(
                f"{path} cannot be opened as a state file: {error}.",
                why="another process is writing it, or the file is damaged",
                fix="stop the other run; or restore the file from a copy; or delete it to begin anew",
            ) from error
        if found is not None and int(found) != SCHEMA:
            raise LengthenError(
                f"{path} was written with schema {found}; this version reads schema {SCHEMA}.",
                fix="finish the run with the version that began it, or choose another folder",
            )
        self.set_meta("schema", str(SCHEMA))

    def close(self) -> None:
        self._db.close()

    # ------------------------------------------------------------------ plain access
    @contextmanager
    def together(self) -> Iterator[None]:
        """All that is written inside becomes one transaction; inside of another one it joins that. What was written
        before an error inside stays."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._execute("BEGIN", ())
            try:
                yield
            finally:
                if self._db.in_transaction:  # SQLite ends it by itself when the disk is full
                    self._execute("COMMIT", ())

    def _write(self, sql: str, values: tuple[Any, ...]) -> None:
        with self._lock:
            self._execute(sql, values)

    def _execute(self, sql: str, values: tuple[Any, ...]) -> None:
        with explain_disk(self.path):
            try:
                self._db.execute(sql, values)
            except sqlite3.OperationalError as error:
                if "full" in str(error):
                    raise LengthenError(
                        f"The disk is full: {self.path} could not be written.",
                        fix="free some space and run the same command again; it goes on from what is saved",
                    ) from error
                raise

    def query(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def meta(self, key: str) -> str | None:
        rows = self.query("SELECT value FROM meta WHERE key=?", (key,))
        return rows[0][0] if rows else None

    def set_meta(self, key: str, value: str) -> None:
        self._write("INSERT INTO meta VALUES(?,?) ON CONFLICT(key) DO UPDATE SET value=excluded.value", (key, value))

    # ------------------------------------------------------------------ requests
    def sending(self, key: Key, request: Request) -> None:
        """A request goes out (again, when it was lost in flight with an earlier process, or ended in an error)."""
        self._write(
            "INSERT INTO asked(iteration,role,item,sample,attempt,step,request,sends,sent_at) "
            "VALUES(?,?,?,?,?,?,?,1,?) ON CONFLICT DO UPDATE SET sends=sends+1, sent_at=excluded.sent_at",
            (*key.fields, json.dumps(vars(request), ensure_ascii=False, default=str), time.time()),
        )

    def answered(self, key: Key, answer: Answer) -> None:
        """An answer came; each of its tries on the wire counts as a send. An error is recorded beside the request and
        leaves it open, unless no other try can mend it."""
        with self.together():
            if answer.tries > 1:
                self._write(f"UPDATE asked SET sends=sends+? WHERE {_MATCH}", (answer.tries - 1, *key.fields))
            if answer.finish_reason == "error":
                self._write(
                    f"UPDATE asked SET errors=errors+1, error=?, seconds=? WHERE {_MATCH}",
                    ((answer.error or "")[:2000], answer.seconds, *key.fields),
                )
            if answer.final:
                self._write(
                    f"INSERT OR REPLACE INTO answers SELECT id, ?, ?, ?, ?, ?, ? FROM asked WHERE {_MATCH}",
                    (time.time(), answer.text, answer.finish_reason, answer.prompt_tokens, answer.new_tokens,
                     answer.seconds, *key.fields),
                )  # fmt: skip

    def answer(self, key: Key) -> Answer | None:
        """The stored answer, or None when the request is still open."""
        rows = self.query(
            "SELECT text, finish_reason, prompt_tokens, new_tokens, answers.seconds, "
            "CASE finish_reason WHEN 'error' THEN error END FROM asked "
            f"JOIN answers USING (id) WHERE {_MATCH}",
            key.fields,
        )
        return Answer(str(key), *rows[0]) if rows else None

    def verdict(self, key: Key, rule: str, detail: str = "", words: int = 0, clean_words: int = 0) -> None:
        """Why an answer (or an instruction) goes on (rule "") or not."""
        self._write(
            "INSERT OR REPLACE INTO verdicts VALUES(?,?,?,?,?,?,?,?,?,?)",
            (*key.fields, rule, detail, words, clean_words),
        )

    # ------------------------------------------------------------------ tasks and their outcomes
    def finish(self, outcome: Outcome) -> None:
        kept = None if outcome.kept is None else int(outcome.kept)
        self._write(
            "INSERT OR REPLACE INTO outcomes VALUES(?,?,?,?,?,?,?,?,?)",
            (outcome.iteration, outcome.role, outcome.item, outcome.sample, outcome.text, outcome.words,
             outcome.clean_words, kept, json.dumps(outcome.info, ensure_ascii=False)),
        )  # fmt: skip

    def keep(self, iteration: int, role: str, item: str, sample: int, kept: bool) -> None:
        self._write(
            "UPDATE outcomes SET kept=? WHERE iteration=? AND role=? AND item=? AND sample=?",
            (int(kept), iteration, role, item, sample),
        )

    def outcome(self, iteration: int, role: str, item: str, sample: int) -> Outcome | None:
        rows = self._outcomes("iteration=? AND role=? AND item=? AND sample=?", (iteration, role, item, sample))
        return rows[0] if rows else None

    def outcomes(self, iteration: int, role: str, *, kept: bool | None = None) -> list[Outcome]:
        """Outcomes of a role, by name; with `kept` only texts that the selection kept (or left out)."""
        extra = "" if kept is None else f" AND text IS NOT NULL AND kept={int(kept)}"
        return self._outcomes(f"iteration=? AND role=?{extra} ORDER BY item, sample", (iteration, role))

    def _outcomes(self, where: str, values: tuple[Any, ...]) -> list[Outcome]:
        fields = "iteration, role, item, sample, text, words, clean_words, kept, info"
        return [
            Outcome(
                iteration,
                role,
                item,
                sample,
                text,
                words,
                clean,
                None if kept is None else bool(kept),
                json.loads(info),
            )
            for iteration, role, item, sample, text, words, clean, kept, info in self.query(
                f"SELECT {fields} FROM outcomes WHERE {where}", values
            )
        ]

    # ------------------------------------------------------------------ instructions, phases, measures, rows
    def add_instruction(self, iteration: int, item: str, language: str, source: str, text: str) -> None:
        self._write("INSERT OR REPLACE INTO instructions VALUES(?,?,?,?,?)", (iteration, item, language, source, text))

    def instructions(self, iteration: int | None = None) -> list[tuple[int, str, str, str]]:
        """(iteration, item, language, text), by name."""
        where, values = ("", ()) if iteration is None else (" WHERE iteration=?", (iteration,))
        return self.query(
            f"SELECT iteration, item, language, text FROM instructions{where} ORDER BY iteration, item", values
        )

    def begin(self, iteration: int, phase: str) -> bool:
        """Open a phase, and keep with it what it reads of the settings. Returns False when it has ended before."""
        rows = self.query("SELECT ended_at FROM phases WHERE iteration=? AND phase=?", (iteration, phase))
        if not rows:
            reads = json.dumps(self.reads(iteration, phase), ensure_ascii=False)
            with self.together():
                self._write("INSERT INTO phases VALUES(?,?,?,NULL,'{}')", (iteration, phase, time.time()))
                self._write("INSERT OR REPLACE INTO used VALUES(?,?,?)", (iteration, phase, reads))
        return not (rows and rows[0][0])

    def used(self) -> list[tuple[int, str, dict[str, Any], bool, bool]]:
        """(iteration, phase, what it read of the settings, whether it failed, whether it has ended) of all phases that
        have begun."""
        rows = self.query("SELECT iteration, phase, settings, info, ended_at FROM phases "
                          "JOIN used USING (iteration, phase) ORDER BY began_at, phases.rowid")  # fmt: skip
        return [
            (iteration, phase, json.loads(settings), bool(json.loads(info).get("failed")), ended is not None)
            for iteration, phase, settings, info, ended in rows
        ]

    def failed(self, iteration: int, phase: str) -> None:
        """The phase ended without a result: with other settings it may be put away (`forget`)."""
        self._write("UPDATE phases SET info='{\"failed\": true}' WHERE iteration=? AND phase=?", (iteration, phase))

    def forget(self, iteration: int, phase: str) -> None:
        """Put a phase away, with all that was asked and judged in the role of its name, and with its block size."""
        where = "iteration=? AND role=?"
        with self.together():
            self._write("DELETE FROM phases WHERE iteration=? AND phase=?", (iteration, phase))
            if phase == "instruct":
                self._write("DELETE FROM meta WHERE key=?", (f"block-{iteration}",))
            self._write(f"DELETE FROM answers WHERE id IN (SELECT id FROM asked WHERE {where})", (iteration, phase))
            for table in ("asked", "verdicts", "outcomes"):
                self._write(f"DELETE FROM {table} WHERE {where}", (iteration, phase))

    def end(self, iteration: int, phase: str, info: dict[str, Any]) -> None:
        self._write(
            "UPDATE phases SET ended_at=?, info=? WHERE iteration=? AND phase=?",
            (time.time(), json.dumps(info, ensure_ascii=False, default=str), iteration, phase),
        )

    def phase(self, iteration: int, phase: str) -> dict[str, Any] | None:
        """What an ended phase recorded; None while it is open."""
        rows = self.query(
            "SELECT info FROM phases WHERE iteration=? AND phase=? AND ended_at IS NOT NULL", (iteration, phase)
        )
        return json.loads(rows[0][0]) if rows else None

    def measure(self, iteration: int, name: str, value: float, low: float, high: float, unit: str, n: int) -> None:
        self._write(
            "INSERT OR REPLACE INTO measures VALUES(?,?,?,?,?,?,?)", (iteration, name, value, low, high, unit, n)
        )

    def add_row(self, purpose: str, row: dict[str, Any]) -> None:
        """A chat row ({"id", "messages", "source", "meta"}) for `purpose`, such as `generator-1` or `final`."""
        self._write(
            "INSERT OR REPLACE INTO rows VALUES(?,?,?)", (purpose, row["id"], json.dumps(row, ensure_ascii=False))
        )

    def set_rows(self, purpose: str, rows: Iterable[dict[str, Any]]) -> None:
        """These rows and no others for `purpose`."""
        with self.together():
            self._write("DELETE FROM rows WHERE purpose=?", (purpose,))
            for row in rows:
                self.add_row(purpose, row)

    def rows(self, purpose: str) -> Iterator[dict[str, Any]]:
        for (row,) in self.query("SELECT row FROM rows WHERE purpose=? ORDER BY id", (purpose,)):
            yield json.loads(row)


def open_read_only(path: Path) -> closing[sqlite3.Connection]:
    """A state file to look at, also while a run writes it."""
    if not path.is_file():
        raise LengthenError(f"There is no state file {path}.", fix="give the state.sqlite of a self-lengthen stage")
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    try:
        db.execute("SELECT value FROM meta").fetchall()
    except sqlite3.DatabaseError as error:
        db.close()
        raise LengthenError(f"{path} is no state file of a self-lengthen run: {error}.") from error
    return closing(db)


def describe(path: Path) -> str:
    """A page about a state file, for `lengthen inspect`."""
    from lengthen.selflengthen.summary import describe as page

    return page(path)
