"""Prompts, phrases, seeds and templates: packaged files that a user's folder may replace one by one."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from lengthen.common.errors import LengthenError, nearest
from lengthen.common.files import read_json_lines
from lengthen.common.words import is_cjk

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
PHRASES = ("opening", "closing", "refusal", "demands", "markers", "lengths", "append", "yes", "no", "labels")
"""Keys of phrases.LANGUAGE.json."""


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
        _check_phrases(wording)
    return made


def _check_phrases(wording: Wording) -> None:
    """Every key is there, and every length demand says what its kind says by the markers of the same file: with other
    words no woven demand would ever be accepted."""
    from lengthen.selflengthen.lengths import said_of

    file = wording._file(f"phrases.{wording.language}.json")
    missing = [key for key in PHRASES if key not in wording.phrases]
    if missing:
        raise LengthenError(f"{file} lacks {', '.join(missing)}.", fix="copy them from the packaged file of this name")
    for kind, texts in wording.phrases["demands"].items():
        for text in texts:
            said = said_of(text.replace("{x}", "4000").replace("{y}", "5000"), wording)
            if {one.kind for one in said} != {kind}:
                raise LengthenError(
                    f"{file}: the demand '{text}' of kind '{kind}' is not told from other kinds.",
                    why=f"its markers say: {', '.join(one.kind for one in said) or 'none'}",
                    fix=f"add its words to `markers`, `{kind}`",
                )


def language_of(text: str) -> str | None:
    """`zh` or `en` by script; None for scripts that are neither Han nor Latin, and for Japanese, which has kana among
    its Han signs. Other languages in Latin script count as `en`: a script tells no more."""
    scripts = Counter(unicodedata.name(sign, "").split(" ")[0] for sign in text[:4000] if sign.isalpha())
    total, kana = scripts.total(), scripts["HIRAGANA"] + scripts["KATAKANA"]
    if 2 * (scripts["LATIN"] + scripts["FULLWIDTH"] + scripts["CJK"]) <= total or 10 * kana > total:
        return None
    return "zh" if is_cjk(text) else "en"


def read_seeds(path: str, languages: list[str]) -> tuple[dict[str, list[str]], list[tuple[int, str]]]:
    """Seed instructions of a file. A row without `language` is taken by its script.

    Returns:
        The seeds by language, and (row number, text) of those in a language that this run does not ask for.

    Raises:
        LengthenError: no file, no row, a row in a language that the loop does not speak, a language without seeds.
    """
    found: dict[str, list[str]] = {language: [] for language in languages}
    others: list[tuple[int, str]] = []
    for number, row in enumerate(rows_of(path, "instruct.seeds"), 1):
        text = prompt_of(row, path, number)
        language = row.get("language") or language_of(text)
        if language not in LANGUAGES:
            name = f"the language '{language}'" if language else "this script"
            raise LengthenError(
                f"{path}, row {number}: seeds in {name} are not supported: {text[:80]}",
                why="prompts and checks exist for " + ", ".join(LANGUAGES),
                fix=nearest(str(language), LANGUAGES) if language else "take the row out, or write its `language`",
            )
        if language in found:
            found[language].append(text)
        else:
            others.append((number, text))
    empty = [language for language, seeds in found.items() if not seeds]
    if empty:
        raise LengthenError(
            f"{path} holds no seed instruction in {', '.join(empty)}.",
            fix='add lines such as {"instruction": "...", "language": "' + empty[0] + '"}, or change `languages`',
        )
    return found, others


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
