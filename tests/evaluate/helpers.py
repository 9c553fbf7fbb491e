"""Jobs, tokenizers and texts for the tests of the suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lengthen.common.manifest import StageContext
from lengthen.evaluate.prompts import Prompts
from lengthen.evaluate.suites import Job, Measure, Suite, find
from lengthen.recipe.stages.evaluate import EvaluateStage

WORDS = [
    "harbour",
    "lamp",
    "crate",
    "rope",
    "herring",
    "market",
    "wagon",
    "bridge",
    "tower",
    "clerk",
    "ledger",
    "window",
    "garden",
    "river",
    "stone",
    "bell",
    "candle",
    "winter",
    "letter",
    "captain",
    "orchard",
    "mill",
    "weaver",
    "lantern",
    "ferry",
    "chapel",
    "copper",
    "barrel",
    "meadow",
    "needle",
]


def story(sentences: int, seed: int = 0) -> str:
    """Plain sentences, no two alike."""
    from lengthen.evaluate.draws import Draws

    draws = Draws(seed, "story")
    found = []
    for number in range(sentences):
        words = [WORDS[i] for i in draws.integers(0, len(WORDS), 6 + number % 9).tolist()]
        found.append(f"{' '.join(words).capitalize()} {number}.")
    return " ".join(found)


def joined_tokenizer(folder: Path):
    """A tokenizer without cuts at spaces (as Llama 2's): nothing can be proved about sums of parts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace(split=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([story(200), "0123456789 abcdef-\n\"{}:,.?'"] * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[assistant]",
    )


def job(suite: str, tokenizer: Any, folder: Path, template: Any = "on", **settings: Any) -> tuple[Any, Job]:
    """(suite, job) as the runner makes them."""
    options = settings.pop("options", {})
    tasks = settings.pop("tasks", None)
    stage = EvaluateStage(
        suites=[{"suite": suite, "options": options, "tasks": tasks}],  # type: ignore[list-item]
        template=template,
        **settings,
    )
    found, _ = find(stage.suites[0])
    assert isinstance(found, Suite | Measure)
    prompts = Prompts(tokenizer, template)
    checked = found.options(**options)
    return found, Job(stage, stage.suites[0], prompts, checked, found.tasks, StageContext(folder))


def honest(sample: Any, made: Job, unit: int) -> None:
    """Counted in full: never longer than asked, and at least 98% of it or less than one unit short."""
    tokens = made.prompts.count(sample.user, sample.prefix)
    assert tokens == sample.tokens, (sample.id, tokens, sample.tokens)
    whole = tokens + sample.new_tokens
    assert whole <= sample.length, (sample.id, whole)
    assert whole >= 0.98 * sample.length or sample.length - whole < unit, (sample.id, whole)
