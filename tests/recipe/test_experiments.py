"""Every experiment file loads and dry-runs; arms of one table ask the same, spend equal tokens, and keep to the
budget of an arm."""

from __future__ import annotations

from pathlib import Path

import pytest

from lengthen.commands import dry_run_text
from lengthen.recipe.load import load_recipe
from lengthen.recipe.schema import Recipe
from lengthen.recipe.stages.evaluate import EvaluateStage
from lengthen.recipe.stages.instructions import InstructionsStage
from lengthen.recipe.stages.report import ReportStage
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.estimate import row_length_in

FOLDER = Path(__file__).parents[2] / "experiments"
FILES = sorted(FOLDER.rglob("*.yaml"))
ARMS = {table: sorted((FOLDER / table).glob("*.yaml")) for table in ("bakeoff", "prolong-ablations", "longskywork")}
UNTRAINED = ("as-is", "yarn-untrained")
MOST_TOKENS, MOST_MINUTES = 300_000, 75
# Tokens a second of the embedded model on two idle cores by row length, minutes of the arm grid there (measured).
SPEED = {2048: 400, 4096: 370, 8192: 250, 16384: 120}
GRID_MINUTES = 30


def _id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def trainings(recipe: Recipe) -> list[TrainStage]:
    return [stage for stage in recipe.stages if isinstance(stage, TrainStage)]


def asked(recipe: Recipe) -> dict:
    """All that decides the questions of an arm's evaluation: everything but whom they are put to."""
    (grid,) = (stage for stage in recipe.stages if isinstance(stage, EvaluateStage))
    return grid.model_dump(exclude={"arm", "model", "rope"})


def minutes(recipe: Recipe) -> float:
    found = float(GRID_MINUTES)
    for stage in recipe.stages:
        if isinstance(stage, TrainStage):
            row = row_length_in(recipe, stage)
            assert row is not None and stage.tokens is not None
            found += stage.tokens / SPEED[next(n for n in SPEED if n >= row)] / 60
        elif isinstance(stage, InstructionsStage):
            found += stage.cost() / 60
    return found


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_each_experiment_is_one_resumable_command(path, tmp_path):
    recipe = load_recipe(str(path))
    text = dry_run_text(recipe, tmp_path)
    assert f"{len(recipe.stages)} of {len(recipe.stages)} stages remain" in text
    assert all(f"{stage.name} on " in text for stage in trainings(recipe)), "every training is priced"
    reports = [stage for stage in recipe.stages if isinstance(stage, ReportStage)]
    assert recipe.stages[-1:] == reports, "one report, at the end"
    grid = next(stage for stage in recipe.stages if isinstance(stage, EvaluateStage))
    assert [one.label for one in reports[0].evaluations] == [grid.arm] == [path.stem]
    assert set(reports[0].train) == {f"@{stage.name}" for stage in trainings(recipe)}
    shown = {"prepare", "tables", "questions", "instructions"} - ({"prepare"} if "first" in recipe.names else set())
    assert {f"@{stage.name}" for stage in recipe.stages if stage.kind in shown} <= set(reports[0].data)


def test_run_folders_differ():
    names = [load_recipe(str(path)).name for path in FILES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("table", ["bakeoff", "prolong-ablations"])
def test_arms_of_a_table_ask_the_same_and_spend_the_same(table):
    base = load_recipe(str(FOLDER / "bakeoff/plain.yaml"))
    budget = sum(stage.tokens or 0 for stage in trainings(base))
    sft = base.stage("sft").model_dump(exclude={"model"})
    for path in ARMS[table]:
        recipe = load_recipe(str(path))
        assert asked(recipe) == asked(base) and recipe.seed == base.seed, path
        if path.stem in UNTRAINED:
            assert not trainings(recipe)
            continue
        assert all(stage.tokens for stage in trainings(recipe)), "a budget in tokens, so that arms can be compared"
        assert sum(stage.tokens or 0 for stage in trainings(recipe)) == budget, path
        assert recipe.stage("sft").model_dump(exclude={"model"}) == sft, "the same short SFT after every arm"
        assert recipe.stage("chats") == base.stage("chats")
        assert recipe.stage("grid").model_dump()["model"] == "@sft", "evaluated after it"
        if table == "bakeoff":
            assert recipe.stage("sft-rows") == base.stage("sft-rows")


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_the_grid_is_the_plans(path):
    """(texts, questions a text) of each suite: `samples` counts texts."""
    (grid,) = (stage for stage in load_recipe(str(path)).stages if isinstance(stage, EvaluateStage))
    found = {s.suite: (s.samples, s.options.get("questions", 1), s.options.get("count")) for s in grid.suites}
    assert grid.lengths == [4096, 16384]
    assert found == {
        "needle": (6, 4, None), "own": (6, 4, None), "ruler": ({4096: 10, 16384: 6}, 1, None),
        "perplexity": (None, 1, 8), "short": (None, 1, None),
    }  # fmt: skip


def test_every_table_has_the_arms_that_the_plan_names():
    stems = {table: {path.stem for path in paths} for table, paths in ARMS.items()}
    assert stems["bakeoff"] == {*UNTRAINED, "plain", "prolong", "longskywork", "longalign", "longrecipe", "pose"}
    # The 60% share, the mask and the short-only SFT are bakeoff/prolong, which these three pairs are compared with.
    assert stems["prolong-ablations"] == {"mask-off", "long-0", "long-100", "synl-10", "synl-50"}
    assert len(stems["longskywork"]) == 10


@pytest.mark.parametrize("path", [*ARMS["bakeoff"], *ARMS["prolong-ablations"]], ids=_id)
def test_no_arm_goes_over_its_budget(path):
    recipe = load_recipe(str(path))
    assert sum(stage.tokens or 0 for stage in trainings(recipe)) <= MOST_TOKENS
    assert minutes(recipe) <= MOST_MINUTES


@pytest.mark.parametrize("path", ARMS["prolong-ablations"], ids=_id)
def test_the_papers_direction_is_stated_before_the_run(path):
    head = path.read_text().split("\nname:")[0]
    assert "# Paper" in head and "# Expected before the run" in head


def test_shares_of_the_ablations_are_those_of_their_names():
    def long_share(name: str) -> float:
        sources = load_recipe(str(FOLDER / f"{name}.yaml")).stage("mix").model_dump()["sources"]
        total = sum(source["tokens"] for source in sources)
        assert 159 * 1024 <= total <= 160 * 1024, "ten rows of 16K, and no eleventh"
        return sum(s["tokens"] for s in sources if s["packing"] == "whole_documents") / total

    shares = [long_share(f"prolong-ablations/{name}") for name in ("long-0", "long-100", "mask-off")]
    assert [*shares, long_share("bakeoff/prolong")] == pytest.approx([0, 1, 0.6, 0.6], abs=0.01)
    for percent in (10, 50):
        rows = load_recipe(str(FOLDER / f"prolong-ablations/synl-{percent}.yaml")).stage("sft-rows").model_dump()
        assert {s["name"]: s["share"] for s in rows["sources"]}["tables"] == percent / 100


def test_the_mask_is_the_only_difference_of_its_arm():
    on, off = (
        load_recipe(str(FOLDER / f"{n}.yaml")).model_dump() for n in ("bakeoff/prolong", "prolong-ablations/mask-off")
    )
    for stage_on, stage_off in zip(on["stages"], off["stages"], strict=True):
        if stage_on["name"] == "mix":
            for source in stage_off["sources"]:
                assert (source["pool"] == "short") == (source.pop("interleave") == {"method": "cip", "chunks": 1})
            for source in stage_on["sources"]:
                assert source.pop("interleave") is None
        if stage_on["name"] not in ("grid", "report"):
            assert stage_on == stage_off
