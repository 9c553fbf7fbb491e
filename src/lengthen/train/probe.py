"""Pre-flight probe: do documents of one row see each other? Asked of the user's own model, rows and settings.

Mixed documents raise no error and the loss still falls. So before the first step one token of one document is changed,
and the model's outputs tell what that token reaches:

    isolated   nothing outside its own document may move, and its own later tokens must
    joined     the document behind it must move
    jump       where positions jump inside a document (skipped positions), tokens behind the jump must still move
    exchange   under sequence parallelism every output is that of one rank alone

The rows are cut to a few dozen tokens, so that the probe costs some small forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lengthen.common.errors import LengthenError

if TYPE_CHECKING:
    from lengthen.train.collate import Batch, Collator
    from lengthen.train.mesh import Mesh

_TOKENS = 16  # of a document
_DOCUMENTS = 3  # of a row
_MOVED = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the outputs' size: above rounding

Forward = Callable[["Batch"], torch.Tensor]
"""A row's batch -> outputs (T, V) of the model. Equal inputs must give equal outputs."""


@dataclass(frozen=True)
class Verdict:
    """text: what was found, for people. clean: nothing leaks and nothing is cut."""

    text: str
    clean: bool


@dataclass(frozen=True)
class Finding:
    """One check. moved: largest change of an output, as a share of the outputs' size. good: as it must be."""

    check: str
    sentence: str
    moved: float
    good: bool


def probe_model(model_name: str) -> Verdict:
    """Load a model and probe it with rows of random tokens: `lengthen doctor --model M`."""
    from lengthen.models import model_title
    from lengthen.recipe.stages.train import PositionSettings
    from lengthen.train.collate import Collator
    from lengthen.train.load import load_model

    title = model_title(model_name)
    try:
        model = load_model(model_name)
        rows = synthetic_rows(model.config.get_text_config().vocab_size)
        skipping = Collator(PositionSettings(type="skip", targets=[4 * _TOKENS], unit=(4, 8)))
        findings = [*probe(model_forward(model), Collator(), rows), *probe(model_forward(model), skipping, rows[2:])]
    except LengthenError as error:
        return Verdict(f"Documents of {title}: cannot be probed. {error}", False)
    return verdict(f"Documents of {title}", findings)


def probe_training(model: Any, collator: Collator, rows: Sequence[dict[str, Any]], mesh: Mesh | None = None) -> Verdict:
    """Probe a model as it is about to be trained. On every rank, with the same rows.

    Args:
        rows: some of the user's rows; they are shortened here. Rows of random tokens come along, since the user's may
            all be of one kind.

    Raises:
        LengthenError: documents leak or are cut.
    """
    short = [shorten(row) for row in rows]
    forward = model_forward(model, mesh)
    vocabulary = model.config.get_text_config().vocab_size
    findings = probe(forward, collator, [*short, *synthetic_rows(vocabulary)])
    if mesh is not None and mesh.exchange is not None:
        findings += compare(forward, model_forward(model), collator, short)
    found = verdict("Documents in this model and these rows", findings)
    if not found.clean:
        raise LengthenError(
            "The model does not keep documents apart (or together) as the rows ask. Training was not started.",
            why=found.text,
            fix="check that every layer is attention (state-space and convolution layers carry text across documents); "
            "prepare rows with one document each for such a model, or choose another model",
        )
    return found


def verdict(title: str, findings: Sequence[Finding]) -> Verdict:
    bad = [f for f in findings if not f.good]
    if not findings:
        return Verdict(f"{title}: nothing to probe.", True)
    if not bad:
        checks = ", ".join(dict.fromkeys(f.check for f in findings))
        return Verdict(f"{title}: kept apart and whole ({len(findings)} checks: {checks}).", True)
    lines = dict.fromkeys(f"  {f.check}: {f.sentence} (moved by {f.moved:.1e})" for f in bad)
    return Verdict("\n".join([f"{title}: {len(bad)} of {len(findings)} checks failed.", *lines]), False)


# ---------------------------------------------------------------------------------------------- rows


def synthetic_rows(vocabulary: int) -> list[dict[str, Any]]:
    """An isolated row, a joined one, and a single document; tokens from the middle of the vocabulary, repeatable."""
    generator = torch.Generator().manual_seed(11)
    n = _DOCUMENTS * _TOKENS
    low, high = vocabulary // 4, max(vocabulary // 4 + 2, 3 * vocabulary // 4)
    ids = torch.randint(low, high, (3, n), generator=generator).tolist()
    lens = [_TOKENS + 3, _TOKENS - 5, n - 2 * _TOKENS + 2]
    plain = {"sources": ["probe"] * 3, "attend": "isolated", "doc_lens": lens}
    return [
        {**plain, "input_ids": ids[0]},
        {**plain, "input_ids": ids[1], "attend": "joined"},
        {**plain, "input_ids": ids[2], "doc_lens": [n], "sources": ["probe"]},
    ]


def shorten(row: dict[str, Any]) -> dict[str, Any]:
    """The first documents of a row, and of each the first tokens. Masks stay away: the probe does not train."""
    ids: list[int] = []
    lens: list[int] = []
    start = 0
    for n in row["doc_lens"][:_DOCUMENTS]:
        take = min(n, _TOKENS)
        ids.extend(row["input_ids"][start : start + take])
        lens.append(take)
        start += n
    return {
        "input_ids": ids, "doc_lens": lens, "attend": row.get("attend", "isolated"),
        "sources": list(row.get("sources") or [""] * len(lens))[: len(lens)], "draw": row.get("draw", 0),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- checks


def probe(forward: Forward, collator: Collator, rows: Sequence[dict[str, Any]]) -> list[Finding]:
    """All checks that the rows allow: documents of one token have nothing to move."""
    found: list[Finding] = []
    for row in rows:
        batch = collator([row])
        before_TV = forward(batch)
        for start, n in _spans(row["doc_lens"]):
            for place in _places(batch, start, n):
                moved_T = _moved(before_TV, forward(_changed(batch, place)))
                found += _judge(row, batch, place, start, n, moved_T, _limit(before_TV))
    return found


def compare(one: Forward, other: Forward, collator: Collator, rows: Sequence[dict[str, Any]]) -> list[Finding]:
    """Whether two ways through the model give the same outputs (sequence parallelism against one rank)."""
    found = []
    for row in rows:
        batch = collator([row])
        a_TV, b_TV = one(batch), other(batch)
        moved = float(_moved(b_TV, a_TV)[: len(row["input_ids"])].max())
        # Other shapes round in another order, which a change of one token does not.
        good = moved <= 20 * _limit(b_TV)
        found.append(Finding("exchange", "outputs under sequence parallelism differ from one rank's", moved, good))
    return found


def _judge(
    row: dict[str, Any], batch: Batch, place: int, start: int, n: int, moved_T: torch.Tensor, limit: float
) -> list[Finding]:
    content, end = len(row["input_ids"]), start + n
    joined = row["attend"] == "joined"
    found = []
    if float(moved_T[:place].max() if place else 0.0) > limit:
        sentence = "a token changes outputs BEFORE it: attention is not causal, or documents leak"
        found.append(Finding("past", sentence, float(moved_T[:place].max()), False))
    if n > 1:
        jump = int(batch.position_ids[0, place + 1] - batch.position_ids[0, place]) != 1
        own = float(moved_T[place + 1 : end].max())
        check = "jump" if jump else "own"
        sentence = "a token does not reach the next token of its own document" + (", whose position jumps" * jump)
        found.append(Finding(check, sentence, own, own > limit))
    if end < content:
        next_ = float(moved_T[end:content].max())
        if joined:
            found.append(Finding("joined", "a document of a joined row is not seen by the next", next_, next_ > limit))
        else:
            found.append(Finding("isolated", "a document is seen by another one", next_, next_ <= limit))
    return found


def _places(batch: Batch, start: int, n: int) -> list[int]:
    """Tokens to change: the last but one of a document (every window reaches from there to the next token, and into the
    next document if that may be seen), and the one before its first jump of positions."""
    positions = batch.position_ids[0, start : start + n]
    jumps = torch.nonzero(positions.diff() != 1).flatten().tolist()
    return sorted({start + max(0, n - 2), *(start + place for place in jumps[:1])})


def _spans(lens: Sequence[int]) -> list[tuple[int, int]]:
    spans, start = [], 0
    for n in lens:
        spans.append((start, n))
        start += n
    return spans


def _changed(batch: Batch, place: int) -> Batch:
    ids = batch.input_ids.clone()
    other = ids[0][ids[0] != ids[0, place]]  # a token of the same row is surely in the vocabulary
    ids[0, place] = other[-1] if len(other) else (ids[0, place] - 1).abs()
    return replace(batch, input_ids=ids)


def _moved(before_TV: torch.Tensor, after_TV: torch.Tensor) -> torch.Tensor:
    """(T,): largest change of each token's outputs, as a share of the outputs' size."""
    size = before_TV.float().std().clamp(min=1e-12)
    return (after_TV.float() - before_TV.float()).abs().amax(dim=-1) / size


def _limit(outputs: torch.Tensor) -> float:
    return _MOVED.get(outputs.dtype, 1e-5)


# ---------------------------------------------------------------------------------------------- models


def model_forward(model: Any, mesh: Mesh | None = None) -> Forward:
    """Outputs of a model with lengthen's attention, told the borders by `doc_lens`; over all ranks of a group with
    `mesh`. The model is left in the mode in which it was."""
    from lengthen.train.attention import set_exchange

    exchange = mesh.exchange if mesh is not None else None

    def forward(batch: Batch) -> torch.Tensor:
        device = next(model.parameters()).device
        if mesh is not None and exchange is not None:
            batch = batch.chunk(mesh.ranks.sp_rank, mesh.ranks.sp_size)
        inputs = {name: value.to(device) for name, value in batch.model_inputs().items()}
        training = model.training
        model.eval()
        before = set_exchange(exchange)
        try:
            with torch.no_grad():
                logits_1TV = model(**inputs, use_cache=False).logits
        finally:
            set_exchange(before)
            model.train(training)
        return (exchange.join_tokens(logits_1TV) if exchange is not None else logits_1TV)[0].cpu()

    return forward
