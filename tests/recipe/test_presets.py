"""Every packaged recipe loads, names the sources of its numbers and can be planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from lengthen.commands import plan_text, show_text
from lengthen.recipe.base import ModelFacts
from lengthen.recipe.load import load_recipe, preset_names
from lengthen.recipe.rope import extend
from lengthen.recipe.stages.evaluate import EvaluateStage
from lengthen.recipe.stages.report import ReportStage
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.estimate import estimate, parse_devices
from tests.recipe.budget import evaluation_minutes, training_minutes, trainings
from tests.recipe.conftest import config_only


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_loads_shows_and_plans_every_training(name, eight_billion):
    recipe = load_recipe(name, model=str(eight_billion))
    text = show_text(recipe)
    assert all(f"name: {stage}" in text for stage in recipe.names)
    trainings = [stage for stage in recipe.stages if isinstance(stage, TrainStage)]
    planned = plan_text(recipe, "64xH100-80GB")
    assert (
        all(f"{stage.name} on 64 x" in planned for stage in trainings) if trainings else "nothing to price" in planned
    )


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_says_where_its_numbers_come_from(name):
    data = load_recipe(name)
    assert data.description
    # quickstart-full and self-lengthen-laptop take their base's sources along.
    assert data.sources, "published, second-hand or lengthen's own: a reader must be able to tell"
    assert all(len(source) > 3 for source in data.sources.values())


LAPTOPS = ("prolong-laptop", "longskywork-laptop", "longalign-laptop", "longrecipe-laptop", "pose-laptop")


@pytest.mark.parametrize("name", [*LAPTOPS, "prolong", "prolong-sources"])
def test_a_preset_shows_whether_it_worked(name):
    """The start model as it is and with untrained YaRN stand beside the result, asked the same, up to the trained
    length."""
    recipe = load_recipe(name)
    arms = {stage.name: stage for stage in recipe.stages if isinstance(stage, EvaluateStage)}
    (report,) = (stage for stage in recipe.stages if isinstance(stage, ReportStage))
    assert [one.label for one in report.evaluations] == ["as-is", "yarn-untrained", arms["after"].arm]
    assert [one.run for one in report.evaluations] == ["@as-is", "@yarn-untrained", "@after"]
    assert arms["as-is"].model == arms["yarn-untrained"].model == recipe.model and arms["as-is"].rope is None
    assert arms["yarn-untrained"].rope is not None and arms["yarn-untrained"].rope.type == "yarn"
    assert arms["after"].model == report.model
    for stage in arms.values():
        for suite in stage.suites:
            same = [one for one in arms["after"].suites if one.suite == suite.suite]
            assert [(one.tasks, one.options) for one in same] == [(suite.tasks, suite.options)], "asked the same"
            assert set(suite.lengths or stage.lengths) <= set(same[0].lengths or arms["after"].lengths)


@pytest.mark.parametrize("name", [name for name in preset_names() if not name.startswith(("quickstart", "self-"))])
def test_evaluation_reaches_the_trained_length(name):
    recipe = load_recipe(name)
    trained = max(stage.length or 0 for stage in recipe.stages if isinstance(stage, TrainStage))
    asked = [stage for stage in recipe.stages if isinstance(stage, EvaluateStage) and stage.name == "after"]
    assert max(n for stage in asked for suite in stage.suites for n in suite.lengths or stage.lengths) >= trained


def test_longskywork_laptop_runs_the_four_stages_within_two_hours():
    """Pretraining is the start model; then continued training, SFT on short chats, and 200 iterations of tables."""
    recipe = load_recipe("longskywork-laptop")
    assert [stage.name for stage in trainings(recipe)] == ["long-pretraining", "sft", "long-sft"]
    assert [stage.model for stage in trainings(recipe)] == ["default", "@long-pretraining", "@sft"]
    assert training_minutes(recipe) + evaluation_minutes(recipe) <= 120
    arm = load_recipe(str(Path(__file__).parents[2] / "experiments/bakeoff/plain.yaml"))
    assert recipe.stage("chats") == arm.stage("chats") and recipe.stage("sft-rows") == arm.stage("sft-rows")


@pytest.mark.parametrize("name", LAPTOPS)
def test_a_laptops_evaluation_is_small(name):
    assert evaluation_minutes(load_recipe(name)) <= 45


def test_published_rope_bases_come_out(eight_billion):
    """Bases that papers and model cards print, from the presets' own settings."""
    facts = ModelFacts.read(eight_billion)

    def base(preset: str, stage: str) -> float:
        train = load_recipe(preset).stage(stage)
        assert isinstance(train, TrainStage)
        parameters = extend(facts, train.length, train.rope).parameters
        assert parameters is not None
        return parameters["rope_theta"]

    assert base("prolong", "train-64k") == 8e6 and base("prolong", "train-512k") == 1.28e8
    assert base("longrecipe", "long") == pytest.approx(48_877_309.5, rel=1e-6)
    assert base("gradient", "train-1m") == 2.8e9 and base("smollm3", "train-32k") == 1.5e6


def test_a_given_first_window_replaces_the_scaling_that_a_model_has(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192, "rope_theta": 5e5}
    facts = ModelFacts.read(config_only(tmp_path, max_position_embeddings=131072, rope_parameters=scaling))
    train = load_recipe("ultralong").stage("train")
    assert isinstance(train, TrainStage)
    made = extend(facts, train.length, train.rope)
    assert made.window == 2**20 and made.parameters is not None
    assert (made.parameters["rope_type"], made.parameters["factor"]) == ("yarn", 128.0)
    assert (made.parameters["original_max_position_embeddings"], made.parameters["beta_fast"]) == (8192, 4.0)


def test_ultra_long_rows_fit_somewhere(eight_billion):
    """The plan of a 512K stage finds a sequence-parallel degree that fits."""
    train = load_recipe("prolong").stage("train-512k")
    assert isinstance(train, TrainStage)
    found = estimate(train, ModelFacts.read(eight_billion), parse_devices("64xH100-80GB"))
    assert found.fits and found.sequence_parallel >= 2
