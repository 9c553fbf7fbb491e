"""Every experiment file loads and dry-runs; arms of one table ask the same, spend equal tokens, and keep to the
budget of an arm."""

from __future__ import annotations

from pathlib import Path

import pytest

from lengthen.commands import dry_run_text
from lengthen.recipe.load import load_recipe
from lengthen.recipe.schema import Recipe
from lengthen.recipe.stages.evaluate import EvaluateStage
from lengthen.recipe.stages.prepare import PrepareStage
from lengthen.recipe.stages.questions import QuestionsStage
from lengthen.recipe.stages.report import ReportStage
from lengthen.recipe.stages.tables import TablesStage
from tests.recipe.budget import evaluation_minutes, trained_tokens, training_minutes, trainings

FOLDER = Path(__file__).parents[2] / "experiments"
HEADLINE = FOLDER / "longskywork/headline.yaml"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path != HEADLINE)
TABLES = ("bakeoff", "prolong-ablations", "longskywork")
ARMS = {table: [path for path in FILES if path.parent.name == table] for table in TABLES}
UNTRAINED = ("as-is", "yarn-untrained")
MOST_TOKENS, MOST_MINUTES = 300_000, 75
GRID_MINUTES = 30  # of the arm grid on two idle cores (measured)


def _id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def asked(recipe: Recipe) -> dict:
    """All that decides the questions of an arm's evaluation: everything but whom they are put to."""
    (grid,) = (stage for stage in recipe.stages if isinstance(stage, EvaluateStage))
    return grid.model_dump(exclude={"arm", "model", "rope"})


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
    names = [load_recipe(str(path)).name for path in [*FILES, HEADLINE]]
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
    mixes = ("concatenated", "isolated", "cip2")
    synl = {*mixes, *(f"{mix}-synl" for mix in mixes)}
    assert stems["longskywork"] == {*UNTRAINED, *synl, "synl", "questions"}


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_no_arm_goes_over_its_budget(path):
    recipe = load_recipe(str(path))
    if path.parent.name != "longskywork":  # whose arms have a budget of their own, below
        assert sum(stage.tokens or 0 for stage in trainings(recipe)) <= MOST_TOKENS
    assert GRID_MINUTES + training_minutes(recipe) <= MOST_MINUTES


@pytest.mark.parametrize("path", ARMS["longskywork"], ids=_id)
def test_longskyworks_arms_ask_the_same_and_keep_to_their_budget(path):
    """200K tokens of continued training or none, then 200 rows of long SFT or none; the same settings in each."""
    recipe, base = load_recipe(str(path)), load_recipe(str(FOLDER / "longskywork/cip2-synl.yaml"))
    assert asked(recipe) == asked(base) and recipe.seed == base.seed
    mix, _, sft = path.stem.partition("-") if path.stem not in UNTRAINED else ("", "", "")
    stages = {"long-pretraining": mix in ("concatenated", "isolated", "cip2"), "long-sft": "synl" in (mix, sft)}
    stages["long-sft"] |= mix == "questions"
    assert {stage.name for stage in trainings(recipe)} == {name for name, there in stages.items() if there}
    own = {"model", "length", "rope"}  # the first training of an arm extends the positions
    for stage in trainings(recipe):
        assert stage.model_dump(exclude=own) == base.stage(stage.name).model_dump(exclude=own)
        if stage.name == "long-sft":
            assert (stage.steps, stage.batch_rows) == (200, 1), "the paper's 200 iterations, of one row"
        else:
            assert (trained_tokens(recipe, stage), stage.epochs) == (200 * 1024, 1)
    first, start = trainings(recipe)[:1], trainings(base)[0]
    assert [(stage.length, stage.rope) for stage in first] == [(start.length, start.rope)] * len(first)
    if stages["long-pretraining"]:
        rows, others = (r.stage("interleaved") for r in (recipe, base))
        assert isinstance(rows, PrepareStage) and isinstance(others, PrepareStage)
        plain = [[s.model_dump(exclude={"interleave"}) for s in one.sources] for one in (rows, others)]
        assert plain[0] == plain[1] and rows.tokens == others.tokens, "the same texts in the same shares"


def test_questions_take_as_many_tokens_as_tables():
    tables = load_recipe(str(FOLDER / "longskywork/synl.yaml")).stage("tables")
    questions = load_recipe(str(FOLDER / "longskywork/questions.yaml")).stage("questions")
    assert isinstance(tables, TablesStage) and isinstance(questions, QuestionsStage)
    assert tables.count == questions.count == 200, "one row for each of the paper's iterations"
    # What a training sees: 200 rows, whose mean length the two stages derive from their bounds.
    assert questions.derived(None)[0].value == pytest.approx(tables.derived(None)[0].value, rel=0.02)


def test_the_headline_grid_is_the_plans(tmp_path):
    """20 prompts at 4K, 8K and 32K (5 at 32K for the untouched model), 40 at 16K, of needles; nothing is trained."""
    recipe = load_recipe(str(HEADLINE))
    grids = [stage for stage in recipe.stages if isinstance(stage, EvaluateStage)]
    assert not trainings(recipe) and [grid.arm for grid in grids] == [*UNTRAINED, "best"]
    whole = {4096: 20, 8192: 20, 16384: 40, 32768: 20}
    assert [grid.samples for grid in grids] == [{**whole, 32768: 5}, whole, whole]
    for grid in grids:
        assert grid.lengths == list(whole) and [(s.suite, s.options) for s in grid.suites] == [("needle", {})]
    assert (grids[0].rope, grids[2].rope) == (None, None) and evaluation_minutes(recipe) <= 2 * MOST_MINUTES
    text = dry_run_text(recipe, tmp_path)
    assert "runs/longskywork-cip2-synl/model: best.model" in text, "the arm's run has to be there first"


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_another_start_model_reaches_every_stage(path):
    recipe = load_recipe(str(path), model="./mine")
    dumped = str(recipe.model_dump())
    assert "'default'" not in dumped and "./mine" in dumped


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
