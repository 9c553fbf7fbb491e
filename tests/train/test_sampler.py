"""Rows of each step: each once an epoch, the same for every number of ranks, balanced by cost."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.data.prepare import prepare
from lengthen.recipe.load import load_recipe
from lengthen.recipe.stages.prepare import PrepareStage
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.rows import open_training_rows
from lengthen.train.sampler import MicroBatches, StepPlan

ROOT = Path(__file__).parents[2]


def plan(costs, batch_rows, **changes) -> StepPlan:
    return StepPlan(costs, [int(c**0.5) for c in costs], batch_rows=batch_rows, **changes)


@given(
    st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4),
    st.sampled_from(["balanced", "sorted", "random"]), st.integers(0, 3),
)  # fmt: skip
def test_every_row_once_before_any_twice(n, dp, micro, accumulation, batching, seed):
    rng = random.Random(seed)
    costs = [float(rng.randrange(1, 100) ** 2) for _ in range(n)]
    batch = dp * micro * accumulation
    if batching == "sorted" and batch == 1:
        with pytest.raises(LengthenError, match="sorted has no effect"):
            plan(costs, batch, batching=batching)
        return
    made = plan(costs, batch, micro_rows=micro, dp_size=dp, batching=batching, seed=seed)
    steps = 3 * n // batch + 1
    places = []
    for step in range(steps):
        micro_batches = made.micro_batches(step)
        assert len(micro_batches) == accumulation and all(len(side) == dp for side in micro_batches)
        inside = [pick for side in micro_batches for group in side for pick in group]
        assert sorted(inside) == sorted(made.rows(step))
        assert all(len(group) == micro for side in micro_batches for group in side)
        places += sorted(inside, key=lambda pick: pick[1])
    assert [place for _, place in places] == list(range(steps * batch))
    for epoch in range(len(places) // n):
        assert sorted(row for row, _ in places[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_ranks_together_see_the_rows_of_one_process():
    costs = [float(i * i) for i in range(1, 50)]
    alone = plan(costs, 8)
    for dp in (2, 4):
        shared = plan(costs, 8, dp_size=dp)
        for step in range(10):
            assert shared.rows(step) == alone.rows(step)
        mine = [list(MicroBatches(shared, 10, rank)) for rank in range(dp)]
        assert all(len(batches) == len(MicroBatches(shared, 10, 0)) for batches in mine)
        together = sorted(pick for batches in mine for batch in batches for pick in batch)
        assert together == sorted(pick for step in range(10) for pick in alone.rows(step))


def test_balanced_beats_random():
    rng = random.Random(0)
    costs = [float(rng.lognormvariate(7, 0.5)) ** 2 for _ in range(512)]
    waits = {}
    for batching in ("balanced", "random"):
        made = plan(costs, 64, dp_size=8, batching=batching)
        waits[batching] = np.mean([made.imbalance(step) for step in range(8)])
    assert waits["balanced"] < 1.4 and waits["random"] > 1.25 * waits["balanced"]
    even = plan([4.0] * 64, 16, dp_size=8)
    assert even.imbalance(0) == 1.0


def test_sorted_steps_have_neighbours_in_length_in_every_epoch():
    """On one process with one row at a time, and where the rows are no multiple of the batch."""
    costs = [float(i * i) for i in random.Random(0).sample(range(1, 87), 86)]
    made, mixed = (plan(costs, 8, batching=batching) for batching in ("sorted", "random"))
    middles = []
    for step in range(5 * 86 // 8):
        lengths = [costs[row] ** 0.5 for row, _ in made.rows(step)]
        assert max(lengths) - min(lengths) < 3 * 8
        middles.append(np.mean(lengths))
        at_once = [costs[row] ** 0.5 for side in made.micro_batches(step) for group in side for row, _ in group]
        assert at_once == sorted(lengths)
    whole = [np.ptp([costs[row] for row, _ in made.rows(step)]) for step in range(10)]
    assert np.mean(whole) < 0.3 * np.mean([np.ptp([costs[row] for row, _ in mixed.rows(step)]) for step in range(10)])
    turns = np.sign(np.diff(middles))
    assert 0.3 < np.mean(turns > 0) < 0.7, "the steps come in random order"
    assert middles[:10] != middles[10:20]


def test_sorted_steps_are_the_same_for_any_number_of_ranks():
    costs = [float(i * i) for i in range(1, 51)]
    alone = plan(costs, 8, batching="sorted", seed=3)
    for dp, micro in ((2, 1), (4, 2), (1, 4)):
        shared = plan(costs, 8, dp_size=dp, micro_rows=micro, batching="sorted", seed=3)
        assert all(shared.rows(step) == alone.rows(step) for step in range(20))
        for step in range(20):
            for side in shared.micro_batches(step):
                lengths = sorted(costs[row] ** 0.5 for group in side for row, _ in group)
                inside = sorted(costs[row] ** 0.5 for row, _ in shared.rows(step))
                place = inside.index(lengths[0])
                assert lengths == inside[place : place + dp * micro], "ranks that wait for each other have like rows"


def test_sorted_ranks_wait_less():
    rng = random.Random(0)
    costs = [float(rng.lognormvariate(7, 0.5)) ** 2 for _ in range(512)]
    waits = {
        batching: np.mean([plan(costs, 64, dp_size=8, batching=batching).imbalance(step) for step in range(8)])
        for batching in ("sorted", "random")
    }
    assert waits["sorted"] < 1.2 < waits["random"]


def test_sorted_is_refused_where_it_could_gather_nothing():
    with pytest.raises(ValueError, match="sorted has no effect with batch_rows 1"):
        TrainStage(rows=["@prepare"], batching="sorted", batch_rows=1)
    TrainStage(rows=["@prepare"], batching="sorted", batch_rows=2)
    with pytest.raises(LengthenError, match="set batch_rows to 2 or more"):
        plan([1.0] * 9, 1, batching="sorted")


@pytest.mark.parametrize("name", ["longalign", "longalign-laptop"])
def test_longalign_packs_and_its_page_says_how_to_sort_instead(name):
    """The documented variant: one conversation a row, about as many in a step as its packs held."""
    packs = load_recipe(name).stage("sft")
    assert isinstance(packs, TrainStage) and packs.loss == "sequence" and packs.batching == "balanced"
    page = (ROOT / "docs/longalign.md").read_text().replace("\\\n", "")
    (line,) = re.findall(rf"^ +lengthen run {name} (--set .*batching=sorted.*)$", page, re.M)
    changed = load_recipe(name, changes=[word for word in shlex.split(line) if word != "--set"])
    stage = changed.stage("sft")
    assert isinstance(stage, TrainStage) and stage.batching == "sorted" and stage.loss == "sequence"
    assert stage.batch_rows and packs.batch_rows and stage.batch_rows > packs.batch_rows
    rows = changed.stage(stage.rows[0].removeprefix("@"))
    assert isinstance(rows, PrepareStage) and [source.packing for source in rows.sources] == ["none", "none"]


def test_conversations_of_a_prepare_stage_are_sorted_into_steps(tmp_path, model_folder):
    """What the variant trains on: one conversation a row, those of a step of like length."""
    said = [{"role": "user", "content": "Count."}]
    sizes = random.Random(0).sample(range(1, 120), 48)
    chats = [[*said, {"role": "assistant", "content": "crate " * size}] for size in sizes]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    source = {"kind": "chat", "name": "chats", "paths": [str(tmp_path / "chat.jsonl")], "packing": "none"}
    settings = {"name": "prepare", "model": str(model_folder), "row_length": 2048, "sources": [source],
                "executor": {"workers": 1}}  # fmt: skip
    prepare(PrepareStage.model_validate(settings), StageContext(tmp_path / "prepare", stage="prepare"))
    rows = open_training_rows([str(tmp_path / "prepare")])
    assert len(rows.data) == 48 and rows.costs.tolist() == [float(n * n) for n in rows.lengths], "nothing is packed"
    made = StepPlan(rows.costs.tolist(), rows.lengths.tolist(), batch_rows=6, batching="sorted")
    order = sorted(rows.lengths.tolist())
    steps = [sorted(int(rows.lengths[row]) for row, _ in made.rows(step)) for step in range(8)]
    assert sorted(steps) == [order[n : n + 6] for n in range(0, 48, 6)] and steps != sorted(steps)


def test_the_bake_offs_longalign_packs_too():
    stage = load_recipe(str(ROOT / "experiments/bakeoff/longalign.yaml")).stage("long")
    assert isinstance(stage, TrainStage) and stage.loss == "sequence" and stage.batching == "balanced"


def test_uneven_batch_is_refused():
    with pytest.raises(LengthenError, match="use 8"):
        plan([1.0] * 9, 6, dp_size=4)
    with pytest.raises(LengthenError, match="no rows"):
        plan([], 1)
