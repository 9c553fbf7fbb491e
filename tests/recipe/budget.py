"""What a recipe costs on two idle cores with the embedded model, from the speeds measured there."""

from __future__ import annotations

from lengthen.recipe.schema import Recipe
from lengthen.recipe.stages.evaluate import EvaluateStage, samples_at
from lengthen.recipe.stages.instructions import InstructionsStage
from lengthen.recipe.stages.prepare import PrepareStage
from lengthen.recipe.stages.questions import QuestionsStage
from lengthen.recipe.stages.tables import TablesStage
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.estimate import row_length_in

# Trained tokens a second by row length; seconds of one prompt by its length.
SPEED = {2048: 400, 4096: 370, 8192: 250, 16384: 120, 32768: 68}
PROMPT = {4096: 2.0, 8192: 5.5, 16384: 20.0, 32768: 67.5}


def trainings(recipe: Recipe) -> list[TrainStage]:
    return [stage for stage in recipe.stages if isinstance(stage, TrainStage)]


def trained_tokens(recipe: Recipe, train: TrainStage) -> int:
    """A training's own budget, else what its prepare stages hold (a step takes one row of conversations)."""
    return train.tokens or sum(_held(recipe, name, train.steps) for name in train.rows)


def _held(recipe: Recipe, name: str, steps: int | None) -> int:
    rows = recipe.stage(name.removeprefix("@"))
    assert isinstance(rows, PrepareStage), name
    if rows.tokens or all(source.tokens for source in rows.sources):
        return rows.tokens or sum(source.tokens or 0 for source in rows.sources)
    (source,) = rows.sources
    made = recipe.stage(source.inputs()[0].removeprefix("@"))
    assert isinstance(made, TablesStage | QuestionsStage) and source.packing == "none", "one conversation a row"
    return round(made.derived(None)[0].value / made.count * (steps or made.count))


def training_minutes(recipe: Recipe) -> float:
    """Trainings, and the chats that a model writes for them."""
    found = 0.0
    for stage in recipe.stages:
        if isinstance(stage, TrainStage):
            row = row_length_in(recipe, stage)
            assert row is not None
            found += trained_tokens(recipe, stage) / SPEED[next(n for n in SPEED if n >= row)] / 60
        elif isinstance(stage, InstructionsStage):
            found += stage.cost() / 60
    return found


def evaluation_minutes(recipe: Recipe) -> float:
    """Suites that ask at lengths; a text is read once for all its questions."""
    found = 0.0
    for stage in recipe.stages:
        for suite in stage.suites if isinstance(stage, EvaluateStage) else ():
            assert isinstance(stage, EvaluateStage)
            samples = stage.samples if suite.samples is None else suite.samples
            for length in suite.lengths or stage.lengths:
                found += len(suite.tasks or [1]) * samples_at(samples, length) * PROMPT[length] / 60
    return found
