"""Scores of answers, one function per published metric; each gives 0..1 for one answer."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

References = Sequence[str]


# ------------------------------------------------------------------------------------------------------------- RULER
def clean(output: str) -> str:
    """RULER's preparation of an answer: trimmed, control characters as line breaks."""
    return _CONTROL.sub("\n", output.strip()).strip()


def share_found(output: str, refs: References) -> float:
    """RULER's `string_match_all` of one answer: share of the references that occur in it, in any case of letters."""
    text = clean(output).lower()
    return sum(ref.lower() in text for ref in refs) / len(refs)


def any_found(output: str, refs: References) -> float:
    """RULER's `string_match_part` (its qa tasks): 1 if one of the references occurs.

    lm-evaluation-harness divides by the number of references instead, so that its qa scores are lower.
    """
    text = clean(output).lower()
    return float(any(ref.lower() in text for ref in refs))


# ----------------------------------------------------------------------------------------- question answering (DrQA)
def normalize(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (SQuAD's normalisation)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(output: str, refs: References) -> float:
    return float(any(normalize(output) == normalize(ref) for ref in refs))


def substring_match(output: str, refs: References) -> float:
    """1 if a normalised reference occurs in the normalised answer (HELMET's `substring_exact_match`)."""
    text = normalize(output)
    return float(any(normalize(ref) in text for ref in refs))


def token_f1(output: str, refs: References) -> float:
    """Best F1 over words; yes, no and noanswer count only when equal."""
    return max(_f1(normalize(output), normalize(ref)) for ref in refs)


def _f1(found: str, wanted: str) -> float:
    if found != wanted and ({found, wanted} & {"yes", "no", "noanswer"}):
        return 0.0
    common = sum((Counter(found.split()) & Counter(wanted.split())).values())
    if not common:
        return 0.0
    precision, recall = common / len(found.split()), common / len(wanted.split())
    return 2 * precision * recall / (precision + recall)


def rouge_l(output: str, refs: References) -> float:
    """Best ROUGE-L F1 with stemming (the `rouge-score` package)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return max(float(scorer.score(ref, output)["rougeL"].fmeasure) for ref in refs)


def parse_answer(output: str, label: str = "Answer:") -> str:
    """The line after a label, else the first line, without the label at its beginning (HELMET's `parse_output`)."""
    for pattern in (re.compile(f"(?:{label})(.*)(?:\n|$)", re.IGNORECASE), re.compile(r"(?:^)(.*)(?:\n|$)")):
        match = pattern.search(output)
        if match:
            return re.sub(f"^{re.escape(label)}", "", match[1].strip(), flags=re.IGNORECASE).strip()
    return ""


def best_of_raw_and_parsed(
    score: Callable[[str, References], float], output: str, refs: References, label: str = "Answer:"
) -> float:
    """HELMET scores an answer as it stands and after parsing, and takes the better."""
    return max(score(output, refs), score(parse_answer(output, label), refs))


# ------------------------------------------------------------------------------------------------------------ ranking
_RANKING = re.compile(r"(\d+)(?:\s*>\s*(\d+))*")


def parse_ranking(output: str) -> list[str]:
    """Ids of the longest run joined by `>`, in order, each once (HELMET: brackets, colons and "id" are dropped first;
    a list or commas parse to a single id)."""
    text = re.sub(r"[\[\]:]", "", output).lower().replace("id", "")
    longest = max((match[0] for match in _RANKING.finditer(text)), key=len, default="")
    return list(dict.fromkeys(part.strip() for part in longest.split(">") if part.strip()))


def ndcg(ranking: Sequence[str], labels: Mapping[str, int], k: int = 10) -> float:
    """NDCG@k as trec_eval computes it: gain = label, discount log2(rank + 1), ideal over all labelled documents."""
    gains = [labels.get(name, 0) for name in ranking[:k]]
    ideal = sorted((label for label in labels.values() if label > 0), reverse=True)[:k]
    best = _discounted(ideal)
    return _discounted(gains) / best if best else 0.0


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


# ---------------------------------------------------------------------------------------------------------- citations
Entails = Callable[[str, str], bool]
"""(passage, claim) -> does the passage support the claim? A language-inference model or a judge."""

_AT_MOST_CITED = 3
_CITED = re.compile(r"\[(\d+)")


def without_citations(sentence: str) -> str:
    text = re.sub(r"\[\d+", "", re.sub(r" \[\d+", "", sentence))
    return text.replace(" |", "").replace("]", "")


Pair = tuple[str, str]
"""(passage, claim)."""

Support = Generator[Pair, bool, tuple[int, int]]
"""Yields the pairs that decide about a sentence, one at a time, and is sent each verdict; gives (supported, citations
that are needed)."""


def citation_scores(sentences: Sequence[str], passages: Sequence[str], entails: Entails) -> tuple[float, float] | None:
    """(recall, precision) of the citations in an answer (ALCE, arXiv 2305.14627, section 4.3); None without sentences.

    Recall: share of sentences whose cited passages together support them; a sentence with no citation, or with one
    that does not exist, is not supported. Precision: share of citations that are needed: a citation is not, if it
    does not support its sentence alone and the others do without it. Of a sentence's citations the first three count
    (ALCE's `at_most_citations`).
    """
    if not sentences:
        return None
    refs = [cited(sentence, len(passages)) for sentence in sentences]
    found = [_driven(support(s, r, passages), entails) for s, r in zip(sentences, refs) if r]
    return citation_means(len(sentences), sum(map(len, refs)), found)


def citation_means(sentences: int, citations: int, found: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """(recall, precision) from the (supported, needed) of the sentences that cite."""
    needed = sum(n for _, n in found)
    return sum(s for s, _ in found) / sentences, needed / citations if citations else 0.0


def cited(sentence: str, passages: int) -> list[int]:
    """Passages that a sentence cites and that count; none if one of them does not exist."""
    refs = [int(number) - 1 for number in _CITED.findall(sentence)]
    return refs[:_AT_MOST_CITED] if all(0 <= r < passages for r in refs) else []


def support(sentence: str, refs: Sequence[int], passages: Sequence[str]) -> Support:
    """What `citation_scores` asks about one sentence. A later pair is asked only where an earlier verdict leaves it
    open, so that many sentences can be asked about side by side, each pair once."""
    claim = without_citations(sentence).strip()
    if not (yield "\n".join(passages[r] for r in refs), claim):
        return 0, 0
    if len(refs) == 1:
        return 1, 1
    needed = 0
    for place, ref in enumerate(refs):
        others = [*refs[:place], *refs[place + 1 :]]
        alone = yield passages[ref], claim
        needed += alone or not (yield "\n".join(passages[r] for r in others), claim)
    return 1, needed


def _driven(asking: Support, entails: Entails) -> tuple[int, int]:
    try:
        pair = next(asking)
        while True:
            pair = asking.send(entails(*pair))
    except StopIteration as done:
        return done.value


def answers_present(output: str, pairs: Sequence[References]) -> float:
    """ALCE's correctness for ASQA (`str_em`): share of the questions of which a short answer occurs."""
    return sum(substring_match(output, answers) for answers in pairs) / len(pairs)


def list_recall_top5(output: str, answers: Sequence[References]) -> float:
    """ALCE's correctness for QAMPARI (`qampari_rec_top5`): right items of a comma list, five being enough."""
    items = {normalize(part) for part in output.rstrip().rstrip(".").rstrip(",").split(",")}
    hits = sum(any(normalize(a) in items for a in group) for group in answers)
    return min(5, hits) / min(5, len(answers))
