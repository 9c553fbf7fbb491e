"""Settings may change until a phase has read them; the error names the phase."""

import json
from functools import partial

import pytest
import yaml

from lengthen.common.errors import LengthenError
from lengthen.recipe.load import load_recipe
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.runner import marks, plan_run
from lengthen.selflengthen import locks
from lengthen.selflengthen.store import Key, Store
from lengthen.selflengthen.training import take_over
from tests.conftest import make_model


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


FREE = {
    "instruct": {"tries": 3}, "respond": {"tries": 3}, "extend": {"growth": 1.1}, "sampling": {"temperature": 1.0},
    "checks": {"min_words": 5}, "retry": {"cut_tries": 2}, "select": {"strength": 1.0}, "training": {"epochs": 2},
    "constraints": {"low": "auto"}, "final": {"count": 10}, "held_out": {"count": 7}, "iterations": 3,
    "evaluate": {"suites": ["short"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("begun", "locked"),
    [
        ([], set()),
        ([(1, "instruct")], {"instruct", "held_out", "sampling"}),
        ([(0, "measure")], {"held_out", "sampling", "checks"}),
        ([(0, "evaluate")], {"evaluate"}),
        ([(1, "write")], {"respond", "extend", "sampling", "checks", "retry", "select"}),
        ([(1, "train")], {"training"}),
        ([(3, "instruct")], {"instruct", "held_out", "sampling", "final", "iterations"}),
        ([(3, "weave")], {"constraints", "sampling", "iterations"}),
        ([(3, "train")], {"training", "iterations"}),
    ],
)  # fmt: skip
def test_a_section_is_locked_by_the_phase_that_reads_it(tmp_path, begun, locked):
    run = Run(tmp_path)
    run.begin(*begun)
    refused = set()
    for key, value in FREE.items():
        try:
            run.check(**{key: value})
        except LengthenError as error:
            iteration, phase = begun[0]
            assert f"the phase `{phase}`" in str(error) and key in str(error) and str(iteration) in str(error)
            refused.add(key)
    assert refused == locked
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
    run.begin((1, "instruct"), (1, "write"), (1, "train"))
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
