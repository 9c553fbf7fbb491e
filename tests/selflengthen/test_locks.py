"""Settings may change until a phase has read them; the error names the phase."""

import json
from functools import partial

import pytest
import yaml

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext, StageResult
from lengthen.recipe.load import load_recipe
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.runner import marks, plan_run, run_recipe
from lengthen.selflengthen import locks
from lengthen.selflengthen.loop import self_lengthen
from lengthen.selflengthen.proposals import Proposals
from lengthen.selflengthen.store import Key, Store
from lengthen.selflengthen.training import take_over
from tests.conftest import make_model
from tests.selflengthen.parts import TINY, new_work


def stage(**changes) -> SelfLengthenStage:
    return SelfLengthenStage.model_validate({"name": "loop", "iterations": 2, **changes})


class Run:
    """A state file, and its settings at each moment."""

    def __init__(self, folder, **settings) -> None:
        self.store, self.settings = Store(folder / "state.sqlite"), settings
        self.check()

    def check(self, seed: int = 1, **changes) -> None:
        """As at the beginning of a call with changed settings."""
        found = stage(**{**self.settings, **changes})
        locks.check(self.store, found, seed)
        self.store.reads = partial(locks.reads, found, seed)

    def begin(self, *phases: tuple[int, str]) -> None:
        self.check()
        for iteration, phase in phases:
            self.store.begin(iteration, phase)

    def end(self, *phases: tuple[int, str]) -> None:
        self.begin(*phases)
        for iteration, phase in phases:
            self.store.end(iteration, phase, {})


FREE = {
    "instruct": {"tries": 3}, "respond": {"tries": 3}, "extend": {"growth": 1.1}, "sampling": {"temperature": 1.0},
    "checks": {"min_words": 5}, "retry": {"cut_tries": 2}, "select": {"strength": 1.0}, "training": {"epochs": 2},
    "constraints": {"low": "auto"}, "final": {"count": 10}, "held_out": {"count": 7}, "iterations": 3,
    "evaluate": {"suites": ["short"]},
}  # fmt: skip


TABLE = [
    ((1, "instruct"), {"instruct", "held_out", "sampling"}),
    ((0, "measure"), {"held_out", "sampling", "checks"}),
    ((0, "evaluate"), {"evaluate"}),
    ((1, "write"), {"respond", "extend", "sampling", "checks", "retry", "select"}),
    ((1, "train"), {"training"}),
    ((3, "instruct"), {"instruct", "held_out", "sampling", "final", "iterations"}),
    ((3, "weave"), {"constraints", "sampling", "iterations"}),
    ((3, "train"), {"training", "iterations"}),
]


@pytest.mark.parametrize("ended", [False, True], ids=["crashed", "ended"])
@pytest.mark.parametrize(("phase", "locked"), TABLE)
def test_a_section_is_locked_by_the_phase_that_reads_it(tmp_path, phase, locked, ended):
    refused = set()
    for key, value in FREE.items():
        run = Run(tmp_path / key)
        (run.end if ended else run.begin)(phase)
        try:
            run.check(**{key: value})
        except LengthenError as error:
            said = f"the phase `{phase[1]}` "
            said += f"after {phase[0]} trainings." if phase[0] == 0 else f"of macro-iteration {phase[0]}."
            assert said in str(error) and str(error).startswith(key)
            refused.add(key)
            run.check()
    # A training or an evaluation that stopped without a result must not lock the settings that stopped it.
    assert refused == (locked if ended or phase[1] not in ("train", "evaluate") else set())


@pytest.mark.parametrize("iteration", [1, 3])
def test_a_training_that_failed_begins_anew_with_other_settings(tmp_path, iteration):
    run = Run(tmp_path)
    run.end((1, "instruct"), (1, "write"))
    run.begin((iteration, "train"))
    names = ["final"] if iteration == 3 else ["1-generator", "1-extender"]
    for name in names:
        (tmp_path / "iterations" / name).mkdir(parents=True)
        (tmp_path / "iterations" / name / "chat.jsonl").write_text("begun")
    run.check()  # the same settings: it goes on
    assert (tmp_path / "iterations" / names[0] / "chat.jsonl").exists()
    with pytest.raises(LengthenError, match=r"extend\.growth"):  # refused: nothing is put aside
        run.check(training={"row_length": 512}, extend={"growth": 2.0})
    assert (tmp_path / "iterations" / names[0] / "chat.jsonl").exists()
    small = {"row_length": 512, "dtype": "bfloat16", "lora_rank": 4, "rows_per_step": 1}
    run.check(training=small)
    assert sorted(p.name for p in (tmp_path / "iterations").iterdir()) == sorted(f".{name}.old-1" for name in names)
    run.store.begin(iteration, "train")
    assert run.store.used()[-1][2]["training"]["row_length"] == 512


@pytest.mark.parametrize(("iteration", "name"), [(1, "1-generator"), (3, "final")])
def test_a_training_that_has_given_a_model_stays_as_it_is(tmp_path, iteration, name):
    run = Run(tmp_path)
    run.begin((iteration, "train"))
    (tmp_path / "iterations" / name).mkdir(parents=True)
    (tmp_path / "iterations" / name / "trained.json").write_text("{}")
    with pytest.raises(LengthenError, match=r"training\.row_length was 16384 .* the phase `train`"):
        run.check(training={"row_length": 512})


def test_an_evaluation_that_failed_may_change_or_be_dropped(tmp_path):
    run = Run(tmp_path, evaluate={"suites": ["longform"]})
    for change in ({"evaluate": None}, {"evaluate": {"suites": ["short"]}}):
        run.begin((0, "evaluate"))
        (tmp_path / "iterations" / "0-evaluate").mkdir(parents=True)
        run.check(**change)
        assert not run.store.used() and not (tmp_path / "iterations" / "0-evaluate").exists()
    run.end((0, "evaluate"), (1, "instruct"))
    run.begin((1, "evaluate"))
    with pytest.raises(LengthenError, match=r"evaluate\.suites was .* `evaluate` after 0 trainings"):
        run.check(evaluate={"suites": ["short"]})
    run.check(evaluate={"suites": ["longform"], "batch_size": 1})
    run.check(evaluate=None)
    assert [phase for _, phase, *_ in run.store.used()] == ["evaluate", "instruct"]


def test_requests_to_the_endpoint_may_be_given_more_often(tmp_path):
    run = Run(tmp_path)
    run.end((0, "measure"), (1, "instruct"), (1, "write"), (3, "final"), (3, "weave"), (1, "plan-and-write"))
    run.check(retry={"error_tries": 9})
    with pytest.raises(LengthenError, match=r"retry\.cut_tries"):
        run.check(retry={"error_tries": 9, "cut_tries": 2})


def test_another_spelling_of_the_run_folder_is_no_other_setting(tmp_path, monkeypatch):
    run = tmp_path / "a" / "run"
    base = run / "stages" / "base"
    (base / "model").mkdir(parents=True)
    (base / "model" / "config.json").write_text("{}")
    (base / "held.jsonl").write_text('{"prompt": "Write."}\n')
    (base / "chat.jsonl").write_text("{}\n")
    longform = {"suites": [{"suite": "longform", "tasks": ["prompts"], "options": {"prompts": "@base/held.jsonl"}}]}
    plain = stage(model="@base", training={"replay": "@base"}, held_out={"file": "@base/held.jsonl"}, evaluate=longform,
                  instruct={"source": "file", "file": "@base/held.jsonl"})  # fmt: skip
    phases = [(0, "measure"), (0, "evaluate"), (1, "instruct"), (1, "write"), (1, "train")]
    store = Store(tmp_path / "state.sqlite")

    def check(place):
        found = plain.resolved({"base": place})
        locks.check(store, found, 1)
        return partial(locks.reads, found, 1)

    monkeypatch.chdir(tmp_path)
    store.reads = check(base.relative_to(tmp_path))
    for phase in phases:
        store.begin(*phase)
        store.end(*phase, {})
    check(base)
    monkeypatch.chdir(run)
    check(base.relative_to(run))
    moved = (tmp_path / "a").rename(tmp_path / "b") / "run" / "stages" / "base"
    check(moved)
    (moved / "chat.jsonl").write_text('{"more": 1}\n')
    with pytest.raises(LengthenError, match=r"model was .* and is now .*: it was read by"):
        check(moved)


def test_a_stage_counts_by_what_its_manifest_lists(tmp_path):
    (tmp_path / "base").mkdir()
    manifest = {"stage": "base", "outputs": {"model/config.json": {"bytes": 2, "sha256": "a"}}}
    (tmp_path / "base" / "manifest.json").write_text(json.dumps(manifest))
    run = Run(tmp_path, model=str(tmp_path / "base"))
    run.end((1, "instruct"))
    (tmp_path / "base" / "report.html").write_text("made later")
    run.check()
    manifest["outputs"]["model/config.json"]["sha256"] = "b"
    (tmp_path / "base" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LengthenError, match="base has changed"):
        run.check()


def test_the_error_names_both_values_the_phase_and_the_way_out(tmp_path):
    run = Run(tmp_path)
    run.begin((1, "instruct"), (1, "write"))
    with pytest.raises(LengthenError) as caught:
        run.check(extend={"growth": 1.5})
    said = str(caught.value)
    assert "extend.growth was 1.2 and is now 1.5: it was read by the phase `write` of macro-iteration 1" in said
    assert "--redo loop" in said
    with pytest.raises(LengthenError, match="seed was 1 and is now 2"):
        run.check(seed=2)
    with pytest.raises(LengthenError, match="model was 'default' and is now 'other'"):
        run.check(model="other")


def test_what_nobody_has_read_changes_and_is_locked_with_its_new_value(tmp_path):
    run = Run(tmp_path)
    run.begin((1, "instruct"), (1, "write"), (1, "train"))
    run.check(constraints={"low": "auto"}, iterations=4, final={"count": 9})
    run.store.begin(5, "instruct")
    run.store.begin(5, "weave")
    for old in ({"constraints": {}}, {"iterations": 2}, {"final": {}}):
        with pytest.raises(LengthenError):
            run.check(**{"constraints": {"low": "auto"}, "iterations": 4, "final": {"count": 9}, **old})
    # Whether there is a last training is its own phase's matter.
    run.check(constraints={"low": "auto"}, iterations=4, final={"count": 9, "train": False})


def test_the_launcher_and_the_server_may_change_at_any_time(tmp_path):
    run = Run(tmp_path)
    run.end((1, "instruct"), (1, "write"), (1, "train"))
    run.check(training={"launch": ["torchrun", "--nproc-per-node", "8"]}, serve={"endpoint": "http://h:1/v1"})
    with pytest.raises(LengthenError, match=r"training\.epochs was 4"):
        run.check(training={"launch": ["torchrun"], "epochs": 1})


def test_fewer_macro_iterations_than_have_begun_are_refused(tmp_path):
    run = Run(tmp_path, iterations=3)
    run.begin((1, "instruct"), (2, "instruct"))
    run.check(iterations=2)
    run.check(iterations=9)
    with pytest.raises(LengthenError, match="iterations is 1, and macro-iteration 2 has begun"):
        run.check(iterations=1)


def test_files_that_were_read_must_stay_as_they_are(tmp_path):
    held, apart = tmp_path / "held.jsonl", tmp_path / "apart.jsonl"
    held.write_text('{"prompt": "Write."}\n')
    apart.write_text('{"prompt": "Write."}\n')
    run = Run(tmp_path, held_out={"file": str(held)})
    run.begin((1, "instruct"))
    longform = {"suites": [{"suite": "longform", "tasks": ["prompts"], "options": {"prompts": str(apart)}}]}
    with pytest.raises(LengthenError, match=r"apart.jsonl is a new file .* the phase `instruct`"):
        run.check(evaluate=longform)  # its prompts were not kept away from the instructions
    run.check(evaluate={"suites": ["short"]})
    kept = Run(tmp_path / "kept", evaluate=longform)
    kept.begin((1, "instruct"))
    kept.check(evaluate=None)  # to have kept away from more does no harm
    held.write_text('{"prompt": "Write more."}\n')
    with pytest.raises(LengthenError, match=r"held.jsonl has changed"):
        run.check()


def test_a_setting_of_a_later_version_counts_with_its_default(tmp_path):
    run = Run(tmp_path)
    run.begin((1, "write"))
    read = run.store.used()[0][2]
    del read["checks"]["meta"]
    run.store._write("UPDATE used SET settings=?", (json.dumps(read),))
    run.check()
    with pytest.raises(LengthenError, match=r"checks\.meta was True and is now False"):
        run.check(checks={"meta": False})


def test_a_phase_that_failed_without_a_result_is_put_away(tmp_path):
    run = Run(tmp_path)
    run.begin((0, "measure"), (1, "instruct"))
    for role, item in (("instruct", "c000001"), ("held-out", "h0000")):
        run.store.verdict(Key(1, role, item), "judged_no")
    run.store.failed(1, "instruct")
    run.check()  # the same settings: nothing is forgotten
    assert len(run.store.query("SELECT * FROM verdicts")) == 2
    run.check(instruct={"source": "templates"})
    assert run.store.query("SELECT role FROM verdicts") == [("held-out",)]
    assert [phase for _, phase, *_ in run.store.used()] == ["measure"]


def test_a_phase_that_is_put_away_takes_its_block_size_along(tmp_path):
    def block(size: int) -> int:
        work = new_work(tmp_path, instruct={"block": size}, serve={"in_flight": 1})
        locks.check(work.store, work.settings, work.seed)
        work.store.reads = partial(locks.reads, work.settings, work.seed)
        work.store.begin(1, "instruct")
        found = Proposals(work, 1, 10, {"en": []}, None).block
        work.store.failed(1, "instruct")
        work.store.close()
        return found

    assert [block(300), block(300), block(20)] == [300, 300, 20]


# ------------------------------------------------------------------------------------------------- with the runner
def test_the_runner_keeps_the_folder_when_a_setting_changes(tmp_path):
    model = make_model(tmp_path / "model")
    recipe = tmp_path / "loop.yaml"
    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "Write."}\n')

    def load(**changes):
        plain = {"kind": "self-lengthen", "iterations": 2, "instruct": {"source": "templates", "count": 8}, **changes}
        recipe.write_text(yaml.safe_dump({"name": "loop", "model": str(model), "stages": [plain]}))
        return load_recipe(str(recipe))

    def state(**changes) -> str:
        return plan_run(load(**changes), tmp_path / "run")[0].state

    first = load()
    folder = tmp_path / "run" / "stages" / "self-lengthen"
    folder.mkdir(parents=True)
    mark, stem = marks(first.stages[0], first, tmp_path / "run")
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": mark, "stem": stem, "status": "running"}))
    assert state() == "interrupted"
    changes = [{key: value} for key, value in FREE.items() if key != "instruct"]
    for change in [*changes, {"training": {"launch": ["torchrun"]}}, {"held_out": {"file": str(held)}}]:
        assert state(**change) == "grown", change
    assert state(languages=["zh"]) == "changed" and state(template_options={"enable_thinking": False}) == "changed"


def test_a_refused_change_leaves_a_finished_run_finished(tmp_path, monkeypatch):
    model = make_model(tmp_path / "model")

    def load(growth):
        plain = {"kind": "self-lengthen", "extend": {"growth": growth}}
        (tmp_path / "loop.yaml").write_text(yaml.safe_dump({"name": "loop", "model": str(model), "stages": [plain]}))
        return load_recipe(str(tmp_path / "loop.yaml"))

    def work(settings, ctx):
        store = Store(ctx.folder / "state.sqlite")
        locks.check(store, settings, ctx.seed)
        store.reads = partial(locks.reads, settings, ctx.seed)
        store.begin(1, "write")
        store.end(1, "write", {})
        store.close()
        return StageResult()

    monkeypatch.setattr("lengthen.runner.stage_function", lambda kind: work)
    run = tmp_path / "run"
    run_recipe(load(1.2), run)
    manifest = run / "stages" / "self-lengthen" / "manifest.json"
    before = manifest.read_bytes()
    with pytest.raises(LengthenError, match=r"extend\.growth was 1.2"):
        run_recipe(load(1.5), run)
    assert manifest.read_bytes() == before
    assert plan_run(load(1.2), run)[0].state == "done"


def test_the_loop_goes_on_after_an_evaluation_and_a_training_that_failed(tiny, tmp_path, monkeypatch):
    trained: list[int] = []

    def failing(*args):
        raise MemoryError("evaluation")

    def train_on(rows, model, settings, ctx, folder):
        folder.mkdir(parents=True)  # fails where another one was begun
        trained.append(settings.row_length)
        raise MemoryError("training")

    monkeypatch.setattr("lengthen.evaluate.run.evaluate", failing)
    monkeypatch.setattr("lengthen.selflengthen.loop.train_on", train_on)
    plain = {**TINY, "model": str(tiny), "iterations": 1, "held_out": {"count": 0}, "evaluate": {"suites": ["short"]}}
    for change, words in (
        ({}, "evaluation"),
        ({"evaluate": None}, "training"),
        ({"evaluate": None, "training": {**TINY["training"], "row_length": 1024}}, "training"),
    ):
        with pytest.raises(MemoryError, match=words):
            self_lengthen(SelfLengthenStage.model_validate({**plain, **change}), StageContext(tmp_path, seed=3))
    assert trained == [2048, 1024]


def test_a_stage_that_the_model_comes_from_too_is_part_of_the_stem():
    both = stage(model="@base", training={"replay": "@base/chat.jsonl"}, held_out={"file": "@other/held.jsonl"})
    assert both.growing_inputs() == {"@other"}
    documents = stage(method="back-translation", texts="t.jsonl", training={"replay": "t.jsonl"}, iterations=3)
    assert documents.growing_inputs() == set()


def test_a_training_under_another_launcher_takes_the_place_of_the_one_that_was_begun(tmp_path):
    stage, folder = tmp_path / "stage", tmp_path / "1-generator"
    for place, text in ((stage, "launched"), (folder, "begun in this process")):
        (place / "checkpoints" / "checkpoint-1").mkdir(parents=True)
        (place / "checkpoints" / "checkpoint-1" / "state").write_text(text)
        (place / "metrics.jsonl").write_text(text)
    (folder / "checkpoints" / "checkpoint-9").mkdir()
    take_over(stage, folder)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["checkpoint-1"]
    assert (folder / "metrics.jsonl").read_text() == "launched" and not (stage / "metrics.jsonl").exists()
