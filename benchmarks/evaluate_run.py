"""Rows needle-map and many-questions of `python -m benchmarks.evaluate`: the same prompts through transformers' own
`generate`, one by one, beside us; same weights, same number format, greedy.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import row
from lengthen.generate import Request

DEPTHS = [0.0, 25.0, 50.0, 75.0, 100.0]
LENGTHS = (2048, 4096, 8192, 16384)
QUESTIONS = 20


def rows(
    model: str, ids: Sequence[str] = ("needle-map", "many-questions"), *, lengths: Sequence[int] = LENGTHS,
    questions: int = QUESTIONS, peer_questions: int | None = None, dtype: str = "auto",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One row for each id, in the form of results/benchmarks; one run each (minutes).

    Args:
        peer_questions: so many of the questions, evenly spread, are asked of the peer, and its time is multiplied: it
            reads the whole JSON for each, so that each takes the same. Default: all.
    """
    for name in ids:
        asked: Sequence[Request]
        if name == "needle-map":
            requests = needle_map(model, lengths)
            asked = requests
            work = f"{len(DEPTHS)} depths x {len(lengths)} lengths to {max(lengths)} tokens, one text for all depths"
        else:
            requests = many_questions(model, max(lengths), questions)
            asked = spread(requests, peer_questions or len(requests))
            work = f"{len(requests)} questions over one JSON object of {max(lengths)} tokens"
            if len(asked) < len(requests):
                work += f"; the peer was asked {len(asked)}, its time multiplied by {len(requests)}/{len(asked)}"
        ours_s, ours = _ours(model, dtype, requests)
        measured, theirs = _theirs(model, dtype, asked)
        theirs_s = measured * len(requests) / len(asked)
        details = {"identical_answers": sum(ours[r.id] == theirs[r.id] for r in asked), "answers": len(asked)}
        if len(asked) < len(requests):
            details |= {"peer_questions": len(asked), "theirs_measured_seconds": round(measured, 3)}
        peer = "transformers generate (sdpa), the same prompts one by one"
        yield row(name, work, peer, [ours_s], [theirs_s], "s", better="lower", details=details)


def needle_map(model: str, lengths: Sequence[int]) -> list[Request]:
    """The needle suite's prompts, all depths of a length in the same text."""
    from lengthen.common.manifest import StageContext
    from lengthen.evaluate.run import make_plan
    from lengthen.recipe.stages.evaluate import EvaluateStage

    stage = EvaluateStage(
        model=model, lengths=list(lengths), samples=len(DEPTHS), depths=DEPTHS, same_haystack=True, ngrams=False
    )
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(stage, StageContext(Path(folder)))
        return [plan.prompts.request(sample) for cell in plan.cells for sample in cell.samples]


def spread(items: Sequence[Request], count: int) -> list[Request]:
    """`count` of the items (all, if there are not so many), evenly spread."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def many_questions(model: str, length: int, questions: int) -> list[Request]:
    """Questions for values of one JSON object of random pairs that fills `length` tokens."""
    from lengthen.evaluate.draws import Draws
    from lengthen.evaluate.prompts import Prompts
    from lengthen.models import load_tokenizer

    prompts, draws, room = Prompts(load_tokenizer(model)), Draws(0, "benchmark", "many-questions"), 48
    ids = draws.uuids(2 * (length // 40))
    pairs = dict(zip(ids[::2], ids[1::2]))

    def ask(count: int, key: str) -> str:
        held = dict(list(pairs.items())[:count])
        return f"Here is a JSON object.\n\n{json.dumps(held, indent=0)}\n\nWhich value has the key {key}?"

    low, high, prefix = 1, len(pairs), "The value is"
    while low < high:
        middle = (low + high + 1) // 2
        fits = prompts.count(ask(middle, ids[0]), prefix) + room <= length
        low, high = (middle, high) if fits else (low, middle - 1)
    keys = [list(pairs)[i] for i in sorted(draws.sample(low, min(questions, low)).tolist())]
    return [
        Request(f"q{n}", messages=({"role": "user", "content": ask(low, key)},), prefix=prefix, max_new_tokens=room,
                share="json")
        for n, key in enumerate(keys)
    ]  # fmt: skip


def _ours(model: str, dtype: str, requests: Sequence[Request]) -> tuple[float, dict[str, str]]:
    from lengthen.generate.local import LocalEngine

    engine = LocalEngine(model, dtype=dtype)
    list(engine.generate([Request("warm", text="Good morning.", max_new_tokens=4)]))
    begin = time.perf_counter()
    found = {answer.id: answer.text for answer in engine.generate(requests)}
    seconds = time.perf_counter() - begin
    engine.close()
    return seconds, found


def _theirs(model: str, dtype: str, requests: Sequence[Request]) -> tuple[float, dict[str, str]]:
    import torch
    from transformers import AutoModelForCausalLM

    from lengthen.generate.prompt import render
    from lengthen.models import load_tokenizer, pick_dtype, resolve_model

    tokenizer = load_tokenizer(model)
    kind = getattr(torch, pick_dtype(dtype)[0])
    loaded: Any = AutoModelForCausalLM.from_pretrained(str(resolve_model(model)), dtype=kind).eval()

    def write(text: str, room: int) -> str:
        batch = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            out = loaded.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=room,
                do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        return str(tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))

    write("Good morning.", 4)
    begin = time.perf_counter()
    found = {r.id: write(render(tokenizer, r), r.max_new_tokens) for r in requests}
    return time.perf_counter() - begin, found
