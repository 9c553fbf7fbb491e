"""Conversations that a model writes: over a real endpoint that answers well or badly, and by a model here."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.instructions import InstructionsStage
from lengthen.synthesize import instruction_wording
from lengthen.synthesize.instructions import WORK, Maker, questions_in, write_instructions
from lengthen.synthesize.kept import kept_file
from lengthen.synthesize.tokens import Counter
from tests.conftest import make_model
from tests.generate.server import Script, serving

QUESTIONS = "\n".join(f"{n}. What did the keeper count on day {n}?" for n in range(1, 6))


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(3):
        lines = [f"On day {day} of year {number} the keeper counted {day * 7} crates of crab." for day in range(300)]
        (folder / f"{number}.txt").write_text("\n".join(lines))
    return folder


def writes(prompt: str, body: dict) -> str:
    """Five questions when five are asked for; else an answer that names the question."""
    if "numbered 1." in prompt or "编号" in prompt:
        return QUESTIONS
    day = re.findall(r"on day (\d+)\?", prompt)[-1]
    return f"The keeper counted {int(day) * 7} crates on that day, as the text says."


def stage(address: str, model: Path, texts: Path, **changes) -> InstructionsStage:
    plain = {"model": str(model), "writer": f"{address}#test-model", "documents": [str(texts)], "count": 6,
             "min_tokens": 200, "max_tokens": 400, "batch": 4, "endpoint": {"retries": 0}}  # fmt: skip
    return InstructionsStage.model_validate({**plain, **changes})


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "chat.jsonl").read_text().splitlines()]


def test_a_document_a_drawn_question_and_its_answer(tmp_path, model_folder, texts):
    script = Script(write=writes)
    with serving(script) as address:
        result = write_instructions(stage(address, model_folder, texts), StageContext(tmp_path / "a", seed=1))
        write_instructions(stage(address, model_folder, texts, batch=64), StageContext(tmp_path / "b", seed=1))
    samples = read(tmp_path / "a")
    assert len(samples) == 6 and result.counts["conversations"] == 6
    drawn = set()
    for sample in samples:
        user, answer = (message["content"] for message in sample["messages"])
        text, _, question = user.rpartition("\n\n")
        assert text.split("\n")[1] in "".join(p.read_text() for p in texts.glob("*.txt"))
        day = re.fullmatch(r"What did the keeper count on day (\d)\?", question)
        assert day and answer.startswith(f"The keeper counted {int(day[1]) * 7} crates")
        assert sample["meta"]["document_tokens"] <= 400 and sample["meta"]["kind"] in (
            "general", "summary", "reasoning", "extraction")  # fmt: skip
        drawn.add(day[1])
    assert len(drawn) > 1, "one of the five is drawn, not always the first"
    assert (tmp_path / "a/chat.jsonl").read_bytes() == (tmp_path / "b/chat.jsonl").read_bytes()


def chinese(folder: Path, days: int = 300) -> Path:
    lines = [f"第{day}天，看守人数了{day * 7}箱螃蟹，把数目写在门边的板上。" for day in range(days)]
    folder.mkdir()
    (folder / "zh.txt").write_text("\n".join(lines))
    return folder


def test_the_four_kinds_ask_differently_in_the_documents_language(tmp_path, model_folder, texts):
    script = Script(write=lambda prompt, body: QUESTIONS if "1." in prompt else "七天一共有四十九箱螃蟹。")
    documents = [str(texts), str(chinese(tmp_path / "zh"))]
    with serving(script) as address:
        settings = stage(address, model_folder, texts, documents=documents, count=24, languages=["en", "zh"], batch=64)
        result = write_instructions(settings, StageContext(tmp_path / "out", seed=2))
    asked = [prompt for prompt in script.asked if "numbered 1." in prompt or "编号" in prompt]
    assert len({prompt.split("\n")[0] for prompt in asked}) == 8
    assert all(("编号" in prompt) == ("看守人" in prompt) != ("the keeper" in prompt) for prompt in asked)
    assert sum(result.figures["languages"].values()) == 24 and min(result.figures["languages"].values()) > 4
    for sample in read(tmp_path / "out"):
        assert (sample["meta"]["language"] == "zh") == ("看守人" in sample["messages"][0]["content"])


def test_documents_in_other_languages_are_left_out_and_counted(tmp_path, model_folder, texts):
    """In a source of both languages, as a source of its own, and where nothing is left."""
    mixed = chinese(tmp_path / "mixed", days=900)
    (mixed / "en.txt").write_text((texts / "0.txt").read_text())
    script, only = Script(write=writes), str(chinese(tmp_path / "only"))
    with serving(script) as address:
        settings = stage(address, model_folder, texts, documents=[str(mixed), only], languages=["en"])
        result = write_instructions(settings, StageContext(tmp_path / "out", seed=0))
        asked = len(script.asked)
        with pytest.raises(LengthenError, match=r"No source of documents .* in en; .* 400 .*\n-> .*more languages"):
            write_instructions(stage(address, model_folder, texts, documents=[only]), StageContext(tmp_path / "none"))
        both = stage(address, model_folder, texts, count=2, languages=["en", "zh"])
        told = write_instructions(both, StageContext(tmp_path / "both")).notes
    assert not any("看守人" in prompt for prompt in script.asked) and asked == 12 + 4
    assert result.drops["redrawn:document_in_other_language"]["items"] > 0
    assert result.drops["source_in_other_language"]["items"] == 1 and any(only in note for note in result.notes)
    assert told == ["The documents hold too little text in zh: no conversation is in it"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_too_little_text_is_told_before_the_writer_is_asked(tmp_path, model_folder, texts, language):
    """In tokens: a Chinese source of as many bytes holds more of them."""
    folder = texts if language == "en" else chinese(tmp_path / "zh")
    holds = sum(Counter.of_model(str(model_folder)).text(path.read_text()) for path in folder.iterdir())
    script = Script(write=writes)
    with serving(script) as address:
        settings = stage(address, model_folder, folder, languages=[language], min_tokens=32, count=3, tries=8)
        short = settings.model_copy(update={"max_tokens": int(1.05 * holds)})
        with pytest.raises(LengthenError, match=rf"holds [\d,]+ tokens of text; .* {short.max_tokens:,} \(max_tokens"):
            write_instructions(short, StageContext(tmp_path / "short", seed=1))
        assert not script.asked
        enough = settings.model_copy(update={"min_tokens": int(0.9 * holds), "max_tokens": int(0.97 * holds)})
        maker = Maker(enough, 1, Counter.of_model(str(model_folder)))
    items = [maker.item(i) for i in range(4)]
    assert all(0.88 * holds < item.tokens <= 0.97 * holds and item.language == language for item in items)


def test_refused_answers_are_counted_and_made_up_for(tmp_path, model_folder, texts):
    answers = iter([*["No."] * 3, " ".join(["the crab was counted and counted again by the keeper in the hall"] * 9)])

    def write(prompt: str, body: dict) -> str:
        said = writes(prompt, body)
        return said if said == QUESTIONS else next(answers, said)

    with serving(Script(write=write)) as address:
        result = write_instructions(stage(address, model_folder, texts, tries=3), StageContext(tmp_path, seed=1))
    assert len(read(tmp_path)) == 6
    rules = {rule: row["items"] for rule, row in result.drops.items()}
    assert rules == {"answer_too_short": 3, "answer_repeats_itself": 1}


def test_what_was_answered_is_never_asked_again(tmp_path, model_folder, texts):
    down = Script(write=writes, trouble=lambda number, prompt: 500 if number >= 6 else None)
    with serving(down) as address, pytest.raises(LengthenError, match="answered none"):
        write_instructions(stage(address, model_folder, texts), StageContext(tmp_path / "a", seed=1))
    kept = (tmp_path / "a" / WORK).read_text().splitlines()
    assert kept
    (tmp_path / "a" / WORK).write_text("\n".join([*kept, '{"i": 1, "st']))  # killed while writing a line
    up = Script(write=writes)
    with serving(up) as address:
        write_instructions(stage(address, model_folder, texts), StageContext(tmp_path / "a", seed=1))
        asked = len(up.asked)
        write_instructions(stage(address, model_folder, texts, count=7), StageContext(tmp_path / "a", seed=1))
        assert len(up.asked) == asked, "the second batch had spare conversations"
        write_instructions(stage(address, model_folder, texts), StageContext(tmp_path / "whole", seed=1))
    assert asked == 16 - len(kept)
    mine, whole = read(tmp_path / "a"), read(tmp_path / "whole")
    assert [{**s, "meta": {**s["meta"], "writer": ""}} for s in mine[:6]] == [
        {**s, "meta": {**s["meta"], "writer": ""}} for s in whole
    ]


def test_a_writer_that_lists_nothing_is_told(tmp_path, model_folder, texts):
    script = Script(write=lambda prompt, body: "I would rather not.")
    with serving(script) as address, pytest.raises(LengthenError, match="no_question 12"):
        write_instructions(stage(address, model_folder, texts), StageContext(tmp_path, seed=1))


def test_everyday_topics_with_a_model_in_this_process(tmp_path, model_folder):
    settings = InstructionsStage(model=str(model_folder), about="topics", count=3, answer_tokens=8, temperature=0)
    # A random model never ends by itself: each answer is refused by its rule, and that is said.
    with pytest.raises(LengthenError, match="answer_cut_off 6"):
        write_instructions(settings, StageContext(tmp_path, seed=0))


def test_answers_of_the_default_model_to_topics_are_kept_for_the_next_recipe(tmp_path, own_cache, monkeypatch):
    """Arms of an experiment share their chats; another seed or another room for the answer is another draw."""
    default = make_model(Path(os.environ["LENGTHEN_CACHE"]) / "models" / "smollm2-135m-instruct")
    settings = InstructionsStage(about="topics", count=3, tries=1.0, answer_tokens=8, batch=2)
    with pytest.raises(LengthenError, match="answer_cut_off 3"):  # a random model never ends
        write_instructions(settings, StageContext(tmp_path / "first", seed=0))
    (default / "model.safetensors").write_bytes(b"")  # whoever asks the model again now fails
    with pytest.raises(LengthenError, match="answer_cut_off 3"):
        write_instructions(settings, StageContext(tmp_path / "second", seed=0))
    assert (tmp_path / "first" / WORK).read_bytes() == (tmp_path / "second" / WORK).read_bytes()
    for changed, seed in ((settings, 1), (settings.model_copy(update={"answer_tokens": 9}), 0)):
        assert kept_file(changed, seed) not in (kept_file(settings, 0), None)
    assert kept_file(settings.model_copy(update={"count": 9, "batch": 64}), 0) == kept_file(settings, 0)
    assert kept_file(settings.model_copy(update={"writer": str(default)}), 0) is None
    before = kept_file(settings, 0)
    monkeypatch.setitem(instruction_wording._TOPICS, "en", {"What is {}?": ["tea"]})
    assert kept_file(settings, 0) != before, "answers to other questions"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1. What is the first?\n2) What is the next?", ["What is the first?", "What is the next?"]),
        ("Sure!\n\n**1.** Who counted it all?\n", ["Who counted it all?"]),
        ("1. 谁数了所有的螃蟹箱子？\n2、为什么港口先醒来呢？", ["谁数了所有的螃蟹箱子？", "为什么港口先醒来呢？"]),
        ("1. Same thing here?\n2. Same thing here?", ["Same thing here?"]),
        ("no list", []),
    ],
)
def test_reading_a_list_of_questions(text, found):
    assert questions_in(text) == found


def test_the_last_question_of_a_list_cut_off_is_left_out():
    assert questions_in("1. What is whole here?\n2. What is cu", cut=True) == ["What is whole here?"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"documents": []}, "documents is empty"), ({"about": "topics"}, "no meaning"), ({"min_tokens": 999}, "above")],
)
def test_settings_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        InstructionsStage.model_validate({"documents": ["x"], "max_tokens": 400, "min_tokens": 200, **change})
