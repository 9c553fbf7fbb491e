"""From makers to the samples of a cell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lengthen.evaluate.counting import Frame
from lengthen.evaluate.fit import Draft, Maker, make
from lengthen.evaluate.prompts import Prompts
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.suites import cell_context


def line_frame(prompts: Prompts) -> tuple[Frame, str]:
    """(frame, lead): without a chat template an answer's label stands on a line of its own, so a line break ("lead")
    follows the user's text. RULER's answers go on in the same line and do without."""
    lead = "" if prompts.template == "on" else "\n"
    return replace(prompts.frame, after=lead + prompts.frame.after), lead


def text_sha256(text: str) -> str:
    """Names a text in the key of the sample cache."""
    return hashlib.sha256(text.encode()).hexdigest()


def cell_samples(
    maker: Maker, suite: str, task: str, length: int, new_tokens: int, indices: range, lead: str = ""
) -> Iterator[Sample]:
    """Samples of a maker, in order; the questions of one context share their beginning."""
    for index, drafts in zip(indices, make(maker, indices, length, new_tokens)):
        yield from as_samples(drafts, suite, task, length, new_tokens, index, lead)


def as_samples(
    drafts: Sequence[Draft], suite: str, task: str, length: int, new_tokens: int, index: int, lead: str = ""
) -> Iterator[Sample]:
    context = cell_context(suite, task, length, index)
    for number, draft in enumerate(drafts):
        yield Sample(
            id=context if len(drafts) == 1 else f"{context}/{number}",
            suite=suite,
            task=task,
            length=length,
            context=context,
            user=draft.user + lead,
            prefix=draft.prefix,
            refs=draft.refs,
            new_tokens=new_tokens,
            tokens=draft.tokens,
            depth=None if draft.depth is None else round(draft.depth, 4),
            share=context if len(drafts) > 1 else None,
            meta=draft.meta,
        )
