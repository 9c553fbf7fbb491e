"""Length-biased selection (arXiv 2410.23933, published code), and the same decisions before the last text is there."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from lengthen.common.seeds import named_random
from lengthen.recipe.stages.self_lengthen import Select


def keeps(percentile: float, draw: float, settings: Select) -> bool:
    """Keep a text of percentile p (0 = shortest, 1 = longest) when u > strength (1 - p)^power."""
    return not settings.enabled or draw > settings.strength * (1.0 - percentile) ** settings.power


def draw_for(seed: int, item: str, sample: int) -> float:
    """The uniform number u of a text: depends on its name alone, so that the order of arrival changes nothing."""
    return named_random(seed, "select", item, sample).random()


def percentile(rank: int, count: int) -> float:
    """Percentile of the text with `rank` shorter ones among `count` texts."""
    return rank / (count - 1) if count > 1 else 1.0


@dataclass
class Selection:
    """Decides texts while others are still being written.

    With m texts to come the percentile of a text lies between two bounds; the rule is monotone in it, so where both
    bounds give the same decision it is final. A straggler therefore holds back only the few texts near their own
    threshold, and every decision equals the one made over the whole set.

    Args:
        to_come: tasks that may still add a text.
    """

    seed: int
    settings: Select
    to_come: int
    _order: list[tuple[int, str, int]] = field(default_factory=list)
    _open: dict[tuple[str, int], int] = field(default_factory=dict)

    def add(self, item: str, sample: int, words: int) -> None:
        """A text came. Ties in length are ordered by name."""
        bisect.insort(self._order, (words, item, sample))
        self._open[(item, sample)] = words

    def task_ended(self) -> None:
        """A task that could have added a text will add no more."""
        self.to_come -= 1

    def decided(self) -> list[tuple[str, int, bool]]:
        """(item, sample, kept) of the texts whose decision is now certain; each is returned once."""
        found: list[tuple[str, int, bool]] = []
        count = len(self._order)
        for (item, sample), words in list(self._open.items()):
            rank = bisect.bisect_left(self._order, (words, item, sample))
            draw = draw_for(self.seed, item, sample)
            # All to come longer: lowest percentile. All shorter: highest. Some failing lies in between.
            low = percentile(rank, count + self.to_come)
            high = percentile(rank + self.to_come, count + self.to_come)
            answers = {keeps(low, draw, self.settings), keeps(high, draw, self.settings)}
            if len(answers) == 1:
                found.append((item, sample, answers.pop()))
                del self._open[(item, sample)]
        return found
