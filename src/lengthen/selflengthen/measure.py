"""How long the Generator writes on held-out prompts: words up to the first repeated span over all prompts, and the
share of answers that pass the checks. Dropping the failures would make one lucky text look like success."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

from lengthen.common.seeds import named_random
from lengthen.selflengthen.phases import Crew, held_out_prompts
from lengthen.selflengthen.pipeline import Listed
from lengthen.selflengthen.respond import respond

ROLE = "held-out"


def measure(crew: Crew, after: int, engine_role: str = "generator") -> dict[str, float]:
    """Answers to the held-out prompts, one each, by the Generator after `after` trainings (or by the `final` model);
    measures go into the store.

    Words count by our counter, up to the first repeated span. An answer that the token limit cut counts with what it
    has and does not pass.

    Returns:
        name -> value of the measures; {} without held-out prompts.
    """
    work = crew.work
    prompts = held_out_prompts(work)
    if not prompts:
        return {}
    if work.store.begin(after, "measure"):
        tasks = (
            respond(work, after, f"h{i:04}", language, text, 0, role=ROLE, engine=engine_role, tries=1)
            for i, (language, text) in enumerate(prompts)
        )
        traffic = crew.run(Listed.of(tasks), after, (engine_role,), f"held-out prompts {after}", len(prompts))
        _record(crew, after)
        work.store.end(after, "measure", traffic.facts())
    return {
        name: value for name, value in work.store.query("SELECT name, value FROM measures WHERE iteration=?", (after,))
    }


def _record(crew: Crew, after: int) -> None:
    store = crew.work.store
    outcomes = store.outcomes(after, ROLE)
    clean = [float(o.clean_words) for o in outcomes]
    words = [float(o.words) for o in outcomes]
    passed = [float(o.text is not None) for o in outcomes]
    draws = named_random(crew.work.seed, "bootstrap", after)
    for name, values, take, unit in (
        ("clean words, median", clean, statistics.median, "words"),
        ("clean words, mean", clean, statistics.fmean, "words"),
        ("words, median", words, statistics.median, "words"),
        ("pass rate", passed, statistics.fmean, "share"),
    ):
        low, high = interval(values, take, draws)
        store.measure(after, name, take(values), low, high, unit, len(values))


def interval(
    values: Sequence[float], take: Callable[[Sequence[float]], float], draws: random.Random, rounds: int = 1000
) -> tuple[float, float]:
    """95% interval of a statistic, bootstrapped over prompts."""
    found = sorted(take(draws.choices(values, k=len(values))) for _ in range(rounds))
    return found[round(0.025 * (rounds - 1))], found[round(0.975 * (rounds - 1))]
