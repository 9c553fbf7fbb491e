"""Settings of each stage kind, one file each, and the function that runs it (imported only when it runs)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from lengthen.recipe.base import StageSettings


@dataclass(frozen=True)
class StageKind:
    """kind: the word in a recipe. settings: `module:class`. run: `module:function`. parallel: every rank of a launch
    takes part; otherwise the first rank works and the others wait."""

    kind: str
    settings: str
    run: str
    about: str
    parallel: bool = False


_HERE = "lengthen.recipe.stages"
KINDS: dict[str, StageKind] = {
    kind.kind: kind
    for kind in (
        StageKind("prepare", f"{_HERE}.prepare:PrepareStage", "lengthen.data.prepare:prepare",
                  "texts, repositories or chats to packed training rows"),
        StageKind("tables", f"{_HERE}.tables:TablesStage", "lengthen.synthesize.tables:write_tables",
                  "synthetic lengthy tables with computed answers (LongSkywork)"),
        StageKind("questions", f"{_HERE}.questions:QuestionsStage", "lengthen.synthesize.questions:write_questions",
                  "facts planted in real documents and asked for"),
        StageKind("instructions", f"{_HERE}.instructions:InstructionsStage",
                  "lengthen.synthesize.instructions:write_instructions",
                  "questions and answers written by a model, about documents or everyday topics (LongAlign)"),
        StageKind("analyse-tokens", f"{_HERE}.analyse_tokens:AnalyseTokensStage",
                  "lengthen.train.impact:analyse_tokens",
                  "which kinds of words gain from long training (LongRecipe)"),
        StageKind("choose-sentences", f"{_HERE}.choose_sentences:ChooseSentencesStage",
                  "lengthen.data.sentences:choose_sentences",
                  "short rows of chosen sentences that stand for long ones (LongRecipe)"),
        StageKind("train", f"{_HERE}.train:TrainStage", "lengthen.train.run:train",
                  "train on rows, with longer positions", parallel=True),
        StageKind("merge", f"{_HERE}.merge:MergeStage", "lengthen.train.merge:merge",
                  "a weighted average of models or checkpoints"),
        StageKind("self-lengthen", f"{_HERE}.self_lengthen:SelfLengthenStage",
                  "lengthen.selflengthen.loop:self_lengthen",
                  "a model that trains itself to write longer"),
        StageKind("evaluate", f"{_HERE}.evaluate:EvaluateStage", "lengthen.evaluate.run:evaluate",
                  "measure how long a model reads and writes"),
        StageKind("report", f"{_HERE}.report:ReportStage", "lengthen.report.run:write_report",
                  "one HTML page, and the model with its card"),
    )
}  # fmt: skip


def settings_class(kind: str) -> type[StageSettings]:
    """The pydantic class of a kind."""
    module, name = KINDS[kind].settings.split(":")
    return getattr(importlib.import_module(module), name)


def stage_function(kind: str):
    """The function `(settings, context) -> StageResult` of a kind."""
    module, name = KINDS[kind].run.split(":")
    return getattr(importlib.import_module(module), name)
