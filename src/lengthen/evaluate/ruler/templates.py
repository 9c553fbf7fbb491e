"""RULER's prompts and parameters.

The wording, the parameters of the 13 tasks and the numbers of new tokens are those of RULER (arXiv 2404.06654,
https://github.com/NVIDIA/RULER, commit c3f5e3b, Copyright 2024 NVIDIA CORPORATION, Apache License 2.0): the prompts are
the benchmark, and scores move when a word of them does. The code that fills them is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

NIAH_HEAD = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
NIAH_TAIL = "What are all the special magic {kind} for {query} mentioned in the provided text?"
NIAH_PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
# One answer: RULER puts the question in the singular by replacing words in the template.
NIAH_HEAD_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
NIAH_TAIL_ONE = "What is the special magic {kind} for {query} mentioned in the provided text?"
NIAH_PREFIX_ONE = " The special magic {kind} for {query} mentioned in the provided text is"

VT_HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
VT_TAIL = "\nQuestion: Find all variables that are assigned the value {query} in the text above."
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the "
    "value {query}, they are: "
)

CWE_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
CWE_TAIL = "\nQuestion: What are the 10 most common words in the above list?"
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"

FWE_HEAD = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words."
)
FWE_TAIL = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"

QA_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
QA_HEAD = f"{QA_INSTRUCTION}\n\nThe following are given documents.\n\n"
QA_TAIL = f"{QA_INSTRUCTION}\n\nQuestion: {{query}}"
QA_PREFIX = " Answer:"
QA_DOCUMENT = "Document {number}:\n{document}"


@dataclass(frozen=True)
class RulerTask:
    """Parameters of a task (RULER `scripts/synthetic.yaml`).

    haystack: noise, essay or needle. keys, values, queries: of the needle tasks.
    data: which question set the task reads; "" for tasks that make all their text.
    """

    name: str
    family: Literal["niah", "vt", "cwe", "fwe", "qa"]
    new_tokens: int
    haystack: Literal["", "noise", "essay", "needle"] = ""
    key_kind: Literal["words", "uuids"] = "words"
    value_kind: Literal["numbers", "uuids"] = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    data: Literal["", "squad", "hotpotqa"] = ""


TASKS: dict[str, RulerTask] = {
    task.name: task
    for task in (
        RulerTask("niah_single_1", "niah", 128, "noise"),
        RulerTask("niah_single_2", "niah", 128, "essay"),
        RulerTask("niah_single_3", "niah", 128, "essay", value_kind="uuids"),
        RulerTask("niah_multikey_1", "niah", 128, "essay", keys=4),
        RulerTask("niah_multikey_2", "niah", 128, "needle"),
        RulerTask("niah_multikey_3", "niah", 128, "needle", key_kind="uuids", value_kind="uuids"),
        RulerTask("niah_multivalue", "niah", 128, "essay", values=4),
        RulerTask("niah_multiquery", "niah", 128, "essay", keys=4, queries=4),
        RulerTask("vt", "vt", 30, "noise"),
        RulerTask("cwe", "cwe", 120),
        RulerTask("fwe", "fwe", 50),
        RulerTask("qa_1", "qa", 32, data="squad"),
        RulerTask("qa_2", "qa", 32, data="hotpotqa"),
    )
}
