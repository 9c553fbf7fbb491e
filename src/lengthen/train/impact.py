"""The `analyse-tokens` stage: which words a long-tuned model expects more than its base does.

LongRecipe (arXiv 2409.00509, section 3.1): with base H and long-tuned H', D(t) = sum over the places i of token type
t of S_H'(X_i = t | x_<i) - S_H(X_i = t | x_<i), S the final logits. In each sample the top 20% of the positions by
this difference count as impactful; their word classes are tallied. A class's weight is how much more often it stands
among the impactful positions than anywhere. The paper's figure: numerals about 0.4, pronouns and auxiliaries 0.15,
conjunctions and adpositions 0.1. Its code has no H and H'; it keeps sentences with a digit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lengthen.common.errors import LengthenError
from lengthen.common.files import write_atomic, write_json
from lengthen.common.manifest import StageContext, StageResult
from lengthen.data.shards import open_rows, read_row
from lengthen.data.tokenize import vocabulary_sha256
from lengthen.data.wordclass import CLASSES, word_classes
from lengthen.models import load_tokenizer
from lengthen.recipe.stages.analyse_tokens import AnalyseTokensStage
from lengthen.train.load import load_model
from lengthen.train.rows import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLOCK = 512  # positions whose logits exist at once
MOST_TYPES = 2000  # token types listed in tokens.csv at each end
SPACE = "space"


def analyse_tokens(settings: AnalyseTokensStage, ctx: StageContext) -> StageResult:
    """Write `weights.json` (word class -> shares and weight) and `tokens.csv` (D(t) by token type).

    The scores of each model are kept per sample, so a killed stage goes on behind the last one.

    Raises:
        LengthenError: models of different vocabularies, rows of another tokenizer, no rows.
    """
    tokenizer = load_tokenizer(settings.base)
    if vocabulary_sha256(tokenizer) != vocabulary_sha256(load_tokenizer(settings.tuned)):
        raise LengthenError(
            f"base {settings.base} and tuned {settings.tuned} have different vocabularies.",
            why="scores are compared token by token",
            fix="compare a model with a long-tuned version of itself",
        )
    check_tokenizer(settings.rows, tokenizer)
    samples = list(_samples(settings))
    for name, model in (("base", settings.base), ("tuned", settings.tuned)):
        _score_all(settings, ctx, name, model, samples)
    tally = Tally(settings.top)
    for number, (ids, _) in enumerate(samples):
        gain = np.load(_file(ctx, "tuned", number)) - np.load(_file(ctx, "base", number))
        tally.add(ids, gain, token_classes(ids, tokenizer))
    return tally.write(settings, ctx.folder, tokenizer)


def _samples(settings: AnalyseTokensStage) -> Iterator[tuple[np.ndarray, list[int]]]:
    """(ids, document lengths) of rows evenly spread over the set, cut to `length` tokens."""
    sets = [open_rows(folder) for folder in settings.rows]
    places = [(number, index) for number, rows in enumerate(sets) for index in range(len(rows))]
    if not places:
        raise LengthenError(f"There are no rows in {', '.join(settings.rows)}.", fix="check the stage that writes them")
    for at in np.unique(np.linspace(0, len(places) - 1, settings.samples).round().astype(int)):
        row = read_row(sets[places[at][0]], places[at][1])
        lens = [int(row.doc_lens.sum())] if row.attend == "joined" else row.doc_lens.tolist()
        ids, kept = np.asarray(row.ids[: settings.length]), []
        for n in lens:
            kept.append(min(n, len(ids) - sum(kept)))
            if sum(kept) == len(ids):
                break
        yield ids, kept


def _file(ctx: StageContext, name: str, number: int) -> Path:
    return ctx.folder / ".scores" / f"{name}-{number:05d}.npy"


def _score_all(
    settings: AnalyseTokensStage, ctx: StageContext, name: str, model: str, samples: list[tuple[np.ndarray, list[int]]]
) -> None:
    missing = [n for n in range(len(samples)) if not _file(ctx, name, n).exists()]
    if not missing:
        return
    loaded = load_model(model, dtype=settings.dtype)
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    (ctx.folder / ".scores").mkdir(parents=True, exist_ok=True)
    with ctx.progress(f"scores of the {name} model", len(samples), "rows", len(samples) - len(missing)) as bar:
        for number in missing:
            scores = token_scores(loaded, *samples[number], log_prob=settings.score == "log_prob")
            file = _file(ctx, name, number)
            part = file.with_name(f".{file.name}.part")
            with open(part, "wb") as handle:
                np.save(handle, scores)
            part.replace(file)
            bar.advance()


@torch.no_grad()
def token_scores(model: Any, ids: np.ndarray, doc_lens: list[int], *, log_prob: bool = False) -> np.ndarray:
    """Score of each token at its place, float32 (T,); NaN for the first token of a document: nothing predicts it.

    The logits are made a block of positions at a time: T x vocabulary of them would not fit for long rows.
    """
    device = next(model.parameters()).device
    ids_T = torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(device)
    body = getattr(model, model.base_model_prefix)
    hidden_TD = body(
        input_ids=ids_T[None], position_ids=_positions(doc_lens).to(device)[None], use_cache=False,
        doc_lens=torch.tensor(doc_lens, device=device),
    ).last_hidden_state[0]  # fmt: skip
    head = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    scores_T = torch.full((len(ids_T),), float("nan"))
    for begin in range(0, len(ids_T) - 1, BLOCK):
        end = min(begin + BLOCK, len(ids_T) - 1)
        logits_BV = head(hidden_TD[begin:end]).float()
        if cap:
            logits_BV = cap * torch.tanh(logits_BV / cap)
        if log_prob:
            logits_BV = logits_BV.log_softmax(-1)
        scores_T[begin + 1 : end + 1] = logits_BV.gather(1, ids_T[begin + 1 : end + 1, None])[:, 0].cpu()
    firsts = np.cumsum([0, *doc_lens])[:-1]
    scores_T[torch.from_numpy(firsts)] = float("nan")
    return scores_T.numpy()


def _positions(doc_lens: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in doc_lens])


def token_classes(ids: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Word class of each token: of the word in which its first sign that is no white space stands. A token of white
    space alone, or a special token, is `space`."""
    pieces = [str(tokenizer.decode([int(i)])) for i in ids]
    special = set(tokenizer.all_special_ids)
    # Tokens may hold parts of a sign (bytes), so pieces need not add up to the text: places are found piece by piece.
    text = "".join("\n" if int(i) in special else piece for i, piece in zip(ids, pieces, strict=True))
    words, at, place = word_classes(text), 0, 0
    found: list[str] = []
    for i, piece in zip(ids, pieces, strict=True):
        shown = "\n" if int(i) in special else piece
        begin = place + len(shown) - len(shown.lstrip())
        place += len(shown)
        if int(i) in special or not shown.strip():
            found.append(SPACE)
            continue
        while at < len(words) and words[at][1] <= begin:
            at += 1
        found.append(words[at][2] if at < len(words) and words[at][0] <= begin else "content")
    return found


class Tally:
    """Sums over samples: D(t) and occurrences by token type; word classes of all positions and of impactful ones."""

    def __init__(self, top: float) -> None:
        self.top = top
        self.gain: defaultdict[int, float] = defaultdict(float)
        self.seen: Counter[int] = Counter()
        self.all: Counter[str] = Counter()
        self.impactful: Counter[str] = Counter()
        self.samples = 0

    def add(self, ids: np.ndarray, gain: np.ndarray, classes: list[str]) -> None:
        """One sample: `gain` is the difference of scores at each token, NaN where there is none. White space and
        special tokens belong to no word and are left out."""
        places = np.array([i for i, name in enumerate(classes) if name != SPACE and not np.isnan(gain[i])], dtype=int)
        if not len(places):
            return
        self.samples += 1
        for i in places:
            self.gain[int(ids[i])] += float(gain[i])
            self.seen[int(ids[i])] += 1
            self.all[classes[i]] += 1
        best = places[np.argsort(-gain[places], kind="stable")[: max(1, round(self.top * len(places)))]]
        self.impactful.update(classes[i] for i in best)

    def classes(self) -> dict[str, dict[str, float]]:
        """Class -> its share of all positions, of the impactful ones, and the weight: the second over the first."""
        every, some = self.all.total(), self.impactful.total()
        found = {}
        for name in CLASSES:
            if self.all[name]:
                share, among = self.all[name] / every, self.impactful[name] / some
                found[name] = {"share": share, "among_impactful": among, "weight": among / share,
                               "impactful": self.impactful[name] / self.all[name]}  # fmt: skip
        return found

    def write(self, settings: AnalyseTokensStage, folder: Path, tokenizer: PreTrainedTokenizerFast) -> StageResult:
        if not self.samples:
            raise LengthenError("No token of the rows can be compared.", fix="give rows of text of more than one token")
        classes = self.classes()
        write_json(folder / "weights.json", {
            "schema": 1, "base": settings.base, "tuned": settings.tuned, "score": settings.score, "top": self.top,
            "samples": self.samples, "positions": self.all.total(), "classes": classes,
        })  # fmt: skip
        ranked = sorted(self.gain, key=lambda t: (-self.gain[t], t))
        listed = ranked if len(ranked) <= 2 * MOST_TYPES else [*ranked[:MOST_TYPES], *ranked[-MOST_TYPES:]]
        lines = ["token,text,occurrences,gain,mean_gain"]
        for t in listed:
            text = str(tokenizer.decode([t])).replace('"', '""').replace("\n", "\\n")
            lines.append(f'{t},"{text}",{self.seen[t]},{self.gain[t]:.4f},{self.gain[t] / self.seen[t]:.4f}')
        write_atomic(folder / "tokens.csv", "\n".join(lines) + "\n")
        return StageResult(
            counts={"samples": self.samples, "positions": self.all.total(), "token_types": len(self.seen)},
            figures={name: round(row["weight"], 2) for name, row in classes.items()},
            notes=[f"tokens.csv lists {len(listed):,} of {len(ranked):,} token types"] if listed != ranked else [],
        )
