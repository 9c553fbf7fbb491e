"""HELMET's tasks: categories, item counts by length, room for answers, prompts.

Counts, wordings and numbers of new tokens are those of HELMET (arXiv 2410.02694, github.com/princeton-nlp/HELMET,
MIT licence, commit 4526dfb; the instructions of the citation tasks are those of ALCE, arXiv 2305.14627, MIT licence,
prompts/asqa_default.json and qampari_default.json): prompts are the benchmark. The code is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LENGTHS = (8192, 16384, 32768, 65536, 131072)
HELMET = "helmet"  # the mean of the seven categories
Category = Literal["recall", "rag", "rerank", "cite", "icl", "longqa", "summ"]
_RAG_COUNTS = (50, 105, 220, 440, 1000)
_ALCE_COUNTS = (30, 75, 165, 345, 700)


@dataclass(frozen=True)
class HelmetTask:
    """counts: items (pairs, passages, documents, examples) at each of LENGTHS; empty where the text is cut to length.

    metrics: what enters the category's average: `score`, or the names of rows that the suite's summary makes.
    reserved: tokens kept free besides the answer where the text is cut.
    """

    name: str
    category: Category
    new_tokens: int
    counts: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ("score",)
    labels: int = 0
    reserved: int = 200

    def count(self, length: int) -> int:
        return self.counts[LENGTHS.index(length)]


TASKS: dict[str, HelmetTask] = {
    task.name: task
    for task in (
        HelmetTask("json_kv", "recall", 100, (105, 220, 440, 900, 1800)),
        HelmetTask("ruler_niah_mk_2", "recall", 50),
        HelmetTask("ruler_niah_mk_3", "recall", 100),
        HelmetTask("ruler_niah_mv", "recall", 50),
        HelmetTask("nq", "rag", 20, _RAG_COUNTS),
        HelmetTask("triviaqa", "rag", 20, _RAG_COUNTS),
        HelmetTask("hotpotqa", "rag", 20, _RAG_COUNTS),
        HelmetTask("popqa", "rag", 20, _RAG_COUNTS),
        HelmetTask("msmarco_rerank", "rerank", 200, (50, 130, 285, 600, 1000)),
        HelmetTask("alce_asqa", "cite", 300, _ALCE_COUNTS, ("score", "citation recall", "citation precision")),
        HelmetTask("alce_qampari", "cite", 300, _ALCE_COUNTS, ("score", "citation recall", "citation precision")),
        HelmetTask("icl_trec_coarse", "icl", 20, (400, 800, 1600, 3300, 6600), labels=6),
        HelmetTask("icl_trec_fine", "icl", 20, (400, 800, 1600, 3200, 6400), labels=50),
        HelmetTask("icl_nlu", "icl", 20, (510, 1020, 2040, 4080, 8296), labels=68),
        HelmetTask("icl_banking77", "icl", 20, (360, 720, 1450, 2900, 5900), labels=77),
        HelmetTask("icl_clinic150", "icl", 20, (440, 880, 1750, 3525, 7050), labels=151),
        HelmetTask("narrativeqa", "longqa", 100, metrics=("judged",)),
        HelmetTask("infbench_qa", "longqa", 10),
        HelmetTask("infbench_choice", "longqa", 10),
        HelmetTask("infbench_sum", "summ", 1200, metrics=("judged",)),
        HelmetTask("multi_lexsum", "summ", 400, metrics=("judged",), reserved=300),
    )
}
RULER_NAMES = {
    "ruler_niah_mk_2": "niah_multikey_2",
    "ruler_niah_mk_3": "niah_multikey_3",
    "ruler_niah_mv": "niah_multivalue",
}

RAG_USER = (
    "Use the given documents to write a concise and short answer to the question. "
    "Write your answer in the following format:\nAnswer: [answer]\n\n{demos}{context}\n\nQuestion: {question}"
)
RAG_PASSAGE = "Document (Title: {title}): {text}"
RAG_DEMO = "{documents}\n\nQuestion: {question}\nAnswer: {answer}\n\n"
RERANK_USER = (
    "You are provided with a list of documents, each indicated by their ID. Rank each document based on their "
    "relevance to the question in descending order from most relelvant to least relevant texts. Include all documents "
    "in the rankings. Write your answer using the unique IDs, with the following format:\nRanking: ID3 > ID1 > ID2\n\n"
    "{demos}{context}\n\nQuery: {question}"
)
RERANK_PASSAGE = "[ID: {id}] Document: {text}"
RERANK_TITLED = "[ID: {id}] Document (Title: {title}): {text}"
ICL_USER = (
    "Use the provided mapping from the text to label to assign a label to the text. "
    'Only output "label: {{label}}" and nothing else. \n\n{context}\n\n{question}'
)
CITE_USER = "{demos}{instruction}\n\nQuestion: {question}\n\n{context}"
CITE_DEMO = "{instruction}\n\nQuestion: {question}\n\n{context}\n\nAnswer: {answer}"
CITE_PASSAGE = "Document [{number}](Title: {title}): {text}"
CITE_INSTRUCTIONS = {
    "alce_asqa": (
        "Instruction: Write an accurate, engaging, and concise answer for the given question using only the provided "
        "search results (some of which might be irrelevant) and cite them properly. Use an unbiased and journalistic "
        "tone. Always cite for any factual claim. When citing several search results, use [1][2][3]. Cite at least one "
        "document and at most three documents in each sentence. If multiple documents support the sentence, only cite "
        "a minimum sufficient subset of the documents."
    ),
    "alce_qampari": (
        "Instruction: Provide a list of accurate answers for the given question using only the provided search results "
        "(some of which might be irrelevant) and cite them properly. Always cite one and only one document for each "
        "answer. Separate answers by commas. For questions that have more than 5 answers, write at least 5 answers."
    ),
}
NARRATIVE_USER = (
    "You are given a story, which can be either a novel or a movie script, and a question. Answer the question as "
    "concisely as you can, using a single phrase if possible.\n\n{demos}{context}\n\nQuestion: {question}"
)
NARRATIVE_DEMOS = "For example:\n\n{demos}\n\nNow, use the following story to answer the question:\n\n"
BOOK_QA_USER = (
    "You are given a story and a question. Answer the question as concisely as you can, using a single phrase if "
    "possible.\n\n{demos}{context}\n\nQuestion: {question}"
)
BOOK_CHOICE_USER = (
    "You are given a story and a question with multiple choices. Choose the best answer from the options provided. "
    "Only one of the following options is correct, output the answer using one single letter (A, B, C, or D). "
    "Don't say anything else.\n\n{demos}{context}\n\nQuestion: {question}"
)
BOOK_SUM_USER = (
    "You are given a book and you are tasked to summarize it. Write a summary of about 1000 to 1200 words. Only write "
    "about the plot and characters of the story. Do not discuss the themes or background of the book. Do not provide "
    "any analysis or commentary.\n\n{demos}{context}\n\nNow summarize the book."
)
BOOK_DEMOS = "For example:\n\n{demos}\n\nNow, read the following story:\n\n"
LAW_SUM_USER = (
    "You are given the legal documents in a civil rights lawsuit, and you are tasked to summarize the case. Write a "
    "concise summary of one paragraph (200 to 250 words). The summary should contain a short description of the "
    "background, the parties involved, and the outcomes of the case.\n\n{demos}Legal documents:\n{context}\n\n"
    "Now please summarize the case."
)
LAW_DEMOS = "Example summaries:\n\n{demos}\n\nNow, write a summary of the following legal documents.\n"
OMITTED = " ... [the rest of the text is omitted]"


def category_metrics() -> dict[str, tuple[str, ...]]:
    """Category -> the numbers that its average is made of, as rows of scores.json name them."""
    found: dict[str, list[str]] = {}
    for task in TASKS.values():
        names = [task.name if metric == "score" else f"{task.name}:{metric}" for metric in task.metrics]
        found.setdefault(task.category, []).extend(names)
    return {category: tuple(names) for category, names in found.items()}
