"""What an endpoint serves: the starting model by which name, whether it is that model, and the adapters by name."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lengthen.common.errors import LengthenError, nearest
from lengthen.generate.engine import Request
from lengthen.generate.listing import Listed, NoAnswer, key_of, list_models
from lengthen.generate.prompt import encode, render
from lengthen.models import resolve_model

if TYPE_CHECKING:
    from lengthen.generate.endpoint import EndpointEngine

BASE = "base"
"""Name of the starting model in the commands that are printed."""
_ADAPTER = re.compile(r"(generator|extender)-\d+(-[0-9a-f]{8})?")
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)")
_TEXT = (
    'In 1987 the harbour-master\'s daughter counted 24,613 crates; "unbelievable", she wrote. def area(r): return '
    "3.14159 * r ** 2  # naïve, déjà vu. 海边的小镇在黎明前醒来，渔船带着灯回来。 Непредсказуемость, Flughafen."
)
"""Languages, numbers and code that tokenizers cut each in its own way."""


def served_models(url: str, key: str) -> list[Listed] | None:
    """What an endpoint lists; None where it keeps no list.

    Raises:
        LengthenError: nothing answers, or it refuses the key.
    """
    try:
        return list_models(url, key)
    except NoAnswer as error:
        raise LengthenError(
            f"No endpoint answers at {url}.",
            why=error.why,
            fix="start the server that was printed, or set serve.endpoint to its address (ending in /v1)",
        ) from error


def base_model(url: str, own: str, rows: Sequence[Listed]) -> Listed:
    """The row of the starting model: the one that is named (`own`), else `base`, else the endpoint's only one.

    Raises:
        LengthenError: there is none of that name, or several could be meant.
    """
    if not rows:
        return Listed(own or BASE)
    by_name = {row.name: row for row in rows}
    if own:
        if own not in by_name:
            raise LengthenError(f"{url} has no model '{own}'.", fix=nearest(own, by_name))
        return by_name[own]
    if BASE in by_name:
        return by_name[BASE]
    # One model may be listed under several names, and adapters of other runs lie beside it.
    candidates = [row for row in rows if not row.parent and not _ADAPTER.fullmatch(row.name)]
    models = {row.root or row.name: row for row in reversed(candidates)}
    if len(models) != 1:
        names = ", ".join(row.name for row in rows[:20])
        raise LengthenError(
            f"{url}: it is not plain which of its models is the starting one.",
            why=f"it lists {names}; none is called '{BASE}', as the printed command calls it",
            fix=f"name it: serve.endpoint={url}#NAME",
        )
    return next(iter(models.values()))


# ------------------------------------------------------------------------------------------ is it the right model?
def same_model(row: Listed, model: str) -> bool | None:
    """Whether a served model is the stage's, by what it was loaded from; None where that cannot be compared (a folder
    of another machine, a name that was made up)."""
    folder = resolve_model(model)
    root = Path(row.root)
    if row.root and (root == folder or (root.exists() and root.samefile(folder))):
        return True
    theirs, ours = _hub_name(row.root) or _hub_name(row.name), _hub_name(model) or _hub_name(str(folder))
    return theirs.casefold() == ours.casefold() if theirs and ours else None


def _hub_name(text: str) -> str:
    """owner/name of a Hub name, or of a folder in the Hub's cache; "" for anything else."""
    cached = _CACHED.search(text)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return text if text.count("/") == 1 and not text.startswith(("/", ".", "~")) and not Path(text).exists() else ""


def check_same(engine: EndpointEngine, row: Listed, model: str, *, named: bool) -> str | None:
    """Refuse another model than the stage's. A name can prove it; else a short and a long prompt are asked (one token
    each), and the difference of the endpoint's token counts must be the tokenizer's.

    Args:
        named: the user named it (`#NAME`), so that another name (of a copy, of a quantised one) is only noted.

    Returns:
        a note on what could not be proved, or None.
    """
    same = same_model(row, model)
    if same:
        return None
    what = f"The endpoint {engine.base_url} serves '{row.root or row.name}', and the run starts from '{model}'"
    if same is False and not named:
        raise LengthenError(
            f"{what}.",
            why="the answers would come from another model than the one that is trained",
            fix="serve it by the printed command, or set model to the one that is served; a copy of it under another "
            f"name: serve.endpoint={engine.base_url}#{row.name}",
        )
    theirs, ours, failure = _token_counts(engine)
    if theirs <= 0:
        return f"{what}; whether they are the same could not be checked: {failure or 'it gives no token counts'}."
    if abs(theirs - ours) > max(2, 0.02 * ours):
        raise LengthenError(
            f"{what}, but its tokenizer is another one.",
            why=f"a text of {ours} tokens by the run's tokenizer has {theirs} there",
            fix="serve the model that the run starts from, or set model to the one that is served",
        )
    return f"{what}; their tokenizers agree, so it is taken for the same model." if same is False else None


def _token_counts(engine: EndpointEngine) -> tuple[int, int, str]:
    """Tokens of a text (its prompt's less an almost empty prompt's): the endpoint's count (0: none), the tokenizer's;
    and the error, where there was one."""
    requests = [
        Request(name, messages=({"role": "user", "content": text},), max_new_tokens=1)
        for name, text in (("short", "A"), ("long", f"A {_TEXT}"))
    ]
    answers = {answer.id: answer for answer in engine.generate(requests)}
    theirs = [answers[request.id].prompt_tokens for request in requests]
    assert engine.tokenizer is not None
    ours = [len(encode(engine.tokenizer, render(engine.tokenizer, r, engine.template_options))) for r in requests]
    failures = [answer.error for answer in answers.values() if answer.error]
    return (theirs[1] - theirs[0] if all(theirs) else 0), ours[1] - ours[0], "; ".join(failures[:1])


# -------------------------------------------------------------------------------------------------------- adapters
def ensure_adapters(url: str, key: str, wanted: Mapping[str, Path], rows: list[Listed] | None, command: str) -> None:
    """See to it that all adapters are served; where the server takes adapters at run time, load the missing ones.

    Args:
        wanted: name -> folder. rows: what the endpoint lists; without a list a wrong name shows at the first request.
        command: the command that serves them, for the error.
    """
    missing = sorted(set(wanted) - {row.name for row in rows or []})
    said = [f"{name}: {why}" for name in missing if (why := load_adapter(url, key, name, wanted[name]))]
    if not missing or rows is None:
        return
    missing = sorted(set(wanted) - {row.name for row in served_models(url, key) or []})
    if missing:
        answers = "; ".join(said) or "they are loaded"
        raise LengthenError(
            f"The endpoint {url} does not serve {', '.join(missing)}.",
            why=f"this macro-iteration needs the adapters trained before it; asked to load them it said: {answers}",
            fix=f"serve them and run the same command again, it goes on from here:\n   {command}\n"
            "   (or start vLLM once with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True: adapters are then loaded by name)",
        )


def load_adapter(url: str, key: str, name: str, path: Path) -> str:
    """Ask a running vLLM to load an adapter. Returns "", or why it did not."""
    headers = {"Content-Type": "application/json"}
    if os.environ.get(key):
        headers["Authorization"] = f"Bearer {key_of(key)}"
    body = json.dumps({"lora_name": name, "lora_path": str(path)}).encode()
    request = urllib.request.Request(f"{url}/load_lora_adapter", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=300):
            return ""
    except urllib.error.HTTPError as error:
        reason = " ".join(error.read(2000).decode(errors="replace").split())
        return f"{error.code} {reason[:300]}"
    except OSError as error:
        return str(error)
