"""What the stage gives back beside its data: notes on what there was too little of, and errors that name what helps."""

from __future__ import annotations

import json
from functools import partial

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.generate.engine import Request
from lengthen.selflengthen import locks
from lengthen.selflengthen.baselines import back_translation, plan_and_write
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.evaluation import measured, measured_at_the_end
from lengthen.selflengthen.phases import Crew, demands, instruct, write
from lengthen.selflengthen.proposals import TooFew
from lengthen.selflengthen.results import enough, notes, result
from lengthen.selflengthen.serve import Serving
from lengthen.selflengthen.store import Key, Outcome
from tests.selflengthen.parts import new_work, prose
from tests.selflengthen.test_pipeline import Answer, Scripted
from tests.selflengthen.test_proposals import reply


class Answering(Serving):
    """Every role is answered by one function."""

    def __init__(self, work, folder, say) -> None:
        super().__init__(work.settings, folder, "0" * 8)
        self.engine = Scripted(lambda r: Answer(r.id, said := say(r), "stop", 5, len(said.split()), 0.01))

    def engines(self, after, roles):
        return dict.fromkeys(roles, self.engine)


def crew_in(folder, say=lambda r: prose(60, r.seed % 50), **settings) -> Crew:
    work = new_work(folder, **settings)
    work.store.reads = partial(locks.reads, work.settings, work.seed)
    return Crew(work, Answering(work, folder, say), StageContext(folder, seed=1, stage="loop"))


def test_too_few_texts_name_what_can_still_be_changed(tmp_path):
    work = crew_in(tmp_path, training={"least_rows": 5}, iterations=2).work
    work.store.begin(1, "write")
    work.judge(Key(1, "extension", "i0~0"), Verdict("no_growth"))
    with pytest.raises(LengthenError, match="Macro-iteration 1 leaves 2 texts to train on") as caught:
        enough(work, 1, [{}, {}])
    said = str(caught.value)
    assert "extension: no_growth 1x" in said and "set training.least_rows to 2, and run again" in said
    assert "row_length" not in said and "begin anew (--redo loop, or --out)" in said and "lower extend.growth" in said
    work.judge(Key(1, "row-generator", "r0"), Verdict("too_long_to_train"))
    with pytest.raises(LengthenError, match=r"raise training\.row_length or set training\.least_rows to 2"):
        enough(work, 1, [{}, {}])
    work.store.begin(1, "train")  # now they have been read
    with pytest.raises(LengthenError) as caught:
        enough(work, 2, [{}, {}])
    assert "run again" not in str(caught.value) and "least_rows to" not in str(caught.value)
    with pytest.raises(LengthenError, match=r"(?s)final data hold 2 texts .* constraints\.low, high and step to auto"):
        enough(work, 3, [{}, {}])
    enough(work, 1, [{}] * 5)


def test_a_band_that_holds_no_text_is_named_while_it_can_still_be_changed(tmp_path):
    narrow = {"low": 2000, "high": 8000, "without_band": "drop", "weave": "append"}
    texts = [Outcome(1, "extension", f"i{i}~0", 0, prose(100 + i), 100, 100, True, {}) for i in range(9)]
    pool = [(text, "en", "Write.") for text in texts]
    crew = crew_in(tmp_path, constraints=narrow)
    with pytest.raises(LengthenError, match="0 of 9 texts have 2,000 to 8,000 words") as caught:
        demands(crew, pool, 4)
    assert "low, high and step to auto" in str(caught.value)
    # What it says helps: nothing has read the old band.
    work = crew.work
    for better in ({"low": "auto", "high": "auto", "step": "auto", "weave": "append"}, {"weave": "append"}):
        changed = work.settings.model_validate({"name": "loop", "constraints": better})
        locks.check(work.store, changed, work.seed)
    auto = crew_in(tmp_path, constraints={"low": "auto", "high": "auto", "step": "auto", "weave": "append"})
    demands(auto, pool, 4)
    assert sum(o.text is not None for o in auto.work.store.outcomes(1, "constraint")) == 9


def test_shortfalls_are_notes(tmp_path):
    file = tmp_path / "mine.jsonl"
    texts = ["Describe a winter day in Murano.", "Describe a winter day in Murano!", "Tell how bread is baked here."]
    file.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in texts))
    crew = crew_in(tmp_path, instruct={"source": "file", "file": str(file), "count": 5}, held_out={"count": 900})
    instruct(crew, 1, 5)
    found = notes(crew.work)
    assert found[0] == "Macro-iteration 1 has 2 instructions of 5 asked for (instruct: near_duplicate 1x)."
    assert "held_out.count is 900" in found[1] and len(found) == 2
    crew.serving.note("Said by the server.")
    assert result(crew).notes == ["Said by the server.", *found]
    assert notes(crew_in(tmp_path / "b", held_out={"count": 4}).work) == []


def test_a_phase_without_instructions_may_be_tried_with_other_ones(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"instruction": "Write."}\n')
    crew = crew_in(tmp_path, instruct={"source": "file", "file": str(file)})
    with pytest.raises(LengthenError, match="Macro-iteration 1 has no instruction") as caught:
        instruct(crew, 1, 5)
    assert "instruct: out_of_size 1x" in str(caught.value) and "another instruct.source" in str(caught.value)
    file.write_text('{"instruction": "Describe a winter day in Murano."}\n')
    locks.check(crew.work.store, crew.work.settings, crew.work.seed)
    assert list(instruct(crew, 1, 5).values()) == [("en", "Describe a winter day in Murano.")]
    with pytest.raises(LengthenError, match="set iterations to 1"):
        instruct(crew, 2, 5)


def test_a_judge_that_never_says_yes_can_be_replaced_by_templates(tmp_path):
    def never(request: Request) -> str:
        return "No." if request.max_new_tokens == 16 else reply(request)

    crew = crew_in(tmp_path, never, instruct={"count": 500, "tries": 1}, serve={"in_flight": 16})
    with pytest.raises(TooFew, match="0 of the first 1"):
        instruct(crew, 1, 500)
    asked = crew.work.store.query("SELECT COUNT(*) FROM requests")[0][0]
    assert 200 <= asked <= 300  # of up to 1,500 candidates with two requests each
    changed = crew_in(tmp_path, never, instruct={"source": "templates", "count": 8})
    locks.check(changed.work.store, changed.work.settings, changed.work.seed)
    assert len(instruct(changed, 1, 8)) == 8
    assert changed.work.store.query("SELECT COUNT(*) FROM requests") == [(0,)]


def test_phases_record_how_many_requests_they_made_in_a_second(tmp_path):
    crew = crew_in(tmp_path, held_out={"count": 6})
    measured(crew, 0)
    facts = crew.work.store.phase(0, "measure")
    assert facts is not None and facts["requests"] == 6 and facts["requests_per_second"] > 0
    assert set(facts) == {"requests", "requests_per_second", "busy", "processor_seconds"}


def test_the_traffic_of_a_phase_is_that_of_all_its_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("lengthen.selflengthen.pipeline.RECORD_SECONDS", 0.0)
    said: list[str] = []

    def broken_off(request: Request) -> str:
        if len(said) == 4:
            raise KeyboardInterrupt
        said.append(request.id)
        return prose(60, request.seed % 50)

    with pytest.raises(KeyboardInterrupt):
        measured(crew_in(tmp_path, broken_off, held_out={"count": 6}, serve={"in_flight": 1}), 0)
    crew = crew_in(tmp_path, held_out={"count": 6}, serve={"in_flight": 1})
    measured(crew, 0)
    facts = crew.work.store.phase(0, "measure")
    assert facts is not None and facts["requests"] == 7, "the fifth was sent twice"
    measured(crew, 1)
    facts = crew.work.store.phase(1, "measure")
    assert facts is not None and facts["requests"] == 6, "each phase counts anew"


def test_answers_and_extensions_in_waves_are_counted_once(tmp_path):
    crew = crew_in(tmp_path, respond={"samples": 1}, extend={"tries": 1}, serve={"in_flight": 4})
    write(crew, 1, {f"i{n}": ("en", f"Write about the harbour {n}.") for n in range(6)})
    facts = crew.work.store.phase(1, "write")
    ((sends,),) = crew.work.store.query("SELECT SUM(sends) FROM requests")
    assert facts is not None and facts["requests"] == sends > 6


@pytest.mark.parametrize("method", ["plan-and-write", "back-translation"])
def test_baselines_record_their_traffic(tmp_path, method):
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": prose(90)}) + "\n")
    more = {"texts": str(texts)} if method == "back-translation" else {"instruct": {"source": "templates", "count": 2}}
    crew = crew_in(tmp_path, method=method, **more)
    (plan_and_write if method == "plan-and-write" else back_translation)(crew)
    facts = crew.work.store.phase(1, method)
    ((sends,),) = crew.work.store.query("SELECT SUM(sends) FROM requests")
    assert facts is not None and facts["requests"] == sends > 0


def test_at_an_endpoint_a_note_says_that_the_final_model_was_not_asked(tmp_path):
    crew = crew_in(tmp_path, held_out={"count": 4}, serve={"endpoint": "http://127.0.0.1:9/v1"})
    measured_at_the_end(crew, 4)
    assert crew.work.store.query("SELECT COUNT(*) FROM requests") == [(0,)]
    assert len(crew.serving.notes) == 1 and "did not answer the held-out prompts" in crew.serving.notes[0]
    here = crew_in(tmp_path / "here", held_out={"count": 4})
    measured_at_the_end(here, 4)
    assert here.work.store.query("SELECT COUNT(*) FROM requests") == [(4,)] and not here.serving.notes
