"""Prompts, phrases, seeds and templates: packaged files that a user's folder may replace one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from lengthen.common.errors import LengthenError, nearest
from lengthen.common.files import read_json_lines

PACKAGED = Path(__file__).parent / "prompts"
LANGUAGES = ("en", "zh")
PROMPTS = {
    "instruct": (),
    "judge": ("instruction",),
    "extend": ("instruction", "outline"),
    "constraint": ("demand",),
    "plan": ("instruction",),
    "write": ("instruction", "plan", "text", "point", "words"),
    "backtranslate": ("text",),
}
"""Name of each prompt -> the slots it must use. A file is called NAME.LANGUAGE.jinja2."""


@dataclass(frozen=True)
class Wording:
    """All words of one language. `folder` (the setting `prompts`) replaces packaged files of the same name."""

    language: str
    folder: str | None = None

    def render(self, name: str, slots: Mapping[str, Any]) -> str:
        """A prompt with its slots filled; a slot that the template names and the loop does not have is an error."""
        return _template(str(self._file(f"{name}.{self.language}.jinja2"))).render(dict(slots)).strip()

    @property
    def phrases(self) -> dict[str, Any]:
        return _json(str(self._file(f"phrases.{self.language}.json")))

    @property
    def templates(self) -> dict[str, Any]:
        return _json(str(self._file(f"templates.{self.language}.json")))

    def seeds(self) -> list[str]:
        return [row["instruction"] for row in read_json_lines(self._file(f"seeds.{self.language}.jsonl"))]

    def _file(self, name: str) -> Path:
        own = Path(self.folder).expanduser() / name if self.folder else None
        return own if own is not None and own.exists() else PACKAGED / name


def wordings(languages: list[str], folder: str | None) -> dict[str, Wording]:
    """One Wording per language, each prompt compiled and tried once, so that a broken file stops before any work."""
    if folder is not None and not Path(folder).expanduser().is_dir():
        raise LengthenError(
            f"prompts: there is no folder {folder}.", fix="give a folder with NAME.LANGUAGE.jinja2 files"
        )
    made = {language: Wording(language, folder) for language in languages}
    for wording in made.values():
        for name, slots in PROMPTS.items():
            marks = {slot: f"<<{slot}>>" for slot in slots}
            text = wording.render(name, marks)
            missing = [slot for slot, mark in marks.items() if mark not in text]
            if missing:
                file = wording._file(f"{name}.{wording.language}.jinja2")
                raise LengthenError(
                    f"{file} does not use its slot {', '.join(missing)}.",
                    fix="write " + " and ".join("{{ " + slot + " }}" for slot in missing) + " where they belong",
                )
    return made


def read_seeds(path: str, languages: list[str]) -> dict[str, list[str]]:
    """Seed instructions of a file by language; without `language` a row belongs to the first language asked for.

    Raises:
        LengthenError: no file, no row, a row in a language that the loop does not speak, a language without seeds.
    """
    found: dict[str, list[str]] = {language: [] for language in languages}
    for number, row in enumerate(rows_of(path, "instruct.seeds"), 1):
        language = row.get("language", languages[0])
        if language not in LANGUAGES:
            raise LengthenError(
                f"{path}, row {number}: seeds in the language '{language}' are not supported.",
                why="prompts and checks exist for " + ", ".join(LANGUAGES),
                fix=nearest(str(language), LANGUAGES),
            )
        if language in found:
            found[language].append(prompt_of(row, path, number))
    empty = [language for language, seeds in found.items() if not seeds]
    if empty:
        raise LengthenError(
            f"{path} holds no seed instruction in {', '.join(empty)}.",
            fix='add lines such as {"instruction": "...", "language": "' + empty[0] + '"}, or change `languages`',
        )
    return found


def rows_of(path: str, key: str) -> list[dict[str, Any]]:
    """Rows of a JSONL file, or of a text file with one prompt a line."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise LengthenError(f"{key}: there is no file {path}.", fix=f"give an existing file as {key}")
    if file.suffix in (".txt", ".md"):
        return [{"instruction": line.strip()} for line in file.read_text().splitlines() if line.strip()]
    return list(read_json_lines(file))


def prompt_of(row: dict[str, Any], path: str, number: int) -> str:
    """The prompt of a row: `instruction`, `prompt`, `query` (LonGen) or the last user message."""
    for key in ("instruction", "prompt", "query"):
        if isinstance(row.get(key), str) and row[key].strip():
            return row[key].strip()
    for message in reversed(row.get("messages") or []):
        if message.get("role") == "user":
            return str(message["content"]).strip()
    raise LengthenError(
        f"{path}, row {number} has none of: instruction, prompt, query, messages.",
        fix="name the prompt's field `instruction`",
    )


@lru_cache(maxsize=64)
def _template(path: str) -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=False)
    try:
        return environment.from_string(Path(path).read_text())
    except (OSError, jinja2.TemplateSyntaxError) as error:
        raise LengthenError(f"The prompt file {path} cannot be used: {error}.", fix="mend or delete it") from error


@lru_cache(maxsize=16)
def _json(path: str) -> dict[str, Any]:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise LengthenError(f"{path} cannot be read as JSON: {error}.", fix="mend or delete it") from error
