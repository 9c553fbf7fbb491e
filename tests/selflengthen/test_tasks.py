"""Tasks driven by hand: what is asked, what a rejection changes, what ends a task."""

import json

import pytest
from pydantic import ValidationError

from lengthen.common.errors import LengthenError
from lengthen.common.words import count_words
from lengthen.generate.engine import Answer
from lengthen.recipe.stages.self_lengthen import Checks, RoleTraining, SelfLengthenStage
from lengthen.selflengthen.checks import check
from lengthen.selflengthen.cuts import beginning
from lengthen.selflengthen.distinct import Pool
from lengthen.selflengthen.extend import damaged, extend
from lengthen.selflengthen.instruct import Filters, from_templates, take_listed, tidy
from lengthen.selflengthen.phases import held_out_prompts, select
from lengthen.selflengthen.proposals import Proposals, yes_or_no
from lengthen.selflengthen.respond import respond
from lengthen.selflengthen.store import Key, Outcome
from lengthen.selflengthen.training import chat_row, fitting, with_replay
from lengthen.selflengthen.wording import Wording, read_seeds, wordings
from tests.selflengthen.parts import drive, new_work, prose

ASKED = "Write a story about gulls."


def answer_task(work, reply, **more):
    return drive(work, respond(work, 1, "i0", "en", ASKED, 0, **more), reply)


def test_a_response_is_asked_bare_and_kept_with_its_tries(tmp_path):
    work = new_work(tmp_path)
    replies = iter(["Too short.", prose(60) + " and then", prose(60)])
    asked = answer_task(work, lambda r: next(replies))
    assert [m["content"] for m in asked[0].messages or ()] == [ASKED]
    assert asked[0].stop == () and asked[0].max_new_tokens == 8192 - 5 - 64
    assert len({r.seed for r in asked}) == 3
    outcome = work.store.outcome(1, "response", "i0", 0)
    assert outcome is not None and outcome.text == prose(60) and outcome.info == {"tries": 3}
    rules = work.store.query("SELECT attempt, rule FROM verdicts ORDER BY 1")
    assert rules == [(1, "too_short"), (2, "no_sentence_end"), (3, "")]
    assert answer_task(work, lambda r: "never asked") == []


def test_a_cut_answer_is_marked_and_not_repeated_blindly(tmp_path):
    work = new_work(tmp_path, window=10**6, sampling={"max_new_tokens": 500})
    asked = answer_task(work, lambda r: Answer(r.id, prose(60), "length"))
    assert [r.max_new_tokens for r in asked] == [500, 1000]  # more room once, then no more tries
    assert work.store.outcome(1, "response", "i0", 0).text is None  # type: ignore[union-attr]
    assert work.store.query("SELECT DISTINCT finish_reason FROM requests") == [("length",)]
    circling = "We go on and on and never stop at all here now. " * 20
    work = new_work(tmp_path / "b", sampling={"max_new_tokens": 500})
    asked = answer_task(work, lambda r: Answer(r.id, circling, "length"))
    assert [r.max_new_tokens for r in asked] == [500, 500]
    assert [r.repetition_penalty for r in asked] == [1.1, 1.15]
    work = new_work(tmp_path / "c", retry={"after_cut": "stop"})
    assert len(answer_task(work, lambda r: Answer(r.id, prose(60), "length"))) == 1


def test_a_loop_raises_the_penalty_three_times_at_most(tmp_path):
    work = new_work(tmp_path, respond={"tries": 6})
    asked = answer_task(work, lambda r: "We go on and on and never stop at all here now. " * 20)
    assert [r.repetition_penalty for r in asked] == [1.1, 1.15, 1.2, 1.25, 1.25, 1.25]


def test_no_room_for_an_answer_is_a_rule(tmp_path):
    work = new_work(tmp_path, window=200)
    assert answer_task(work, lambda r: prose(60)) == []
    assert work.store.query("SELECT rule FROM verdicts") == [("no_room",)]


def test_two_stages_of_an_extension(tmp_path):
    work = new_work(tmp_path, extend={"rounds": 1})
    text, longer, rest = prose(120), prose(240, 1), prose(200, 2)
    asked = drive(work, extend(work, 1, "i0~0", "en", ASKED, text, 0), lambda r: rest if r.prefix else longer)
    half, kept = beginning(text, 0.5), beginning(longer, 2 / 3)
    assert half is not None and kept is not None and len(asked) == 2
    one, two = (r.messages[-1]["content"] for r in asked if r.messages)
    assert half.text in one and text not in one and asked[0].prefix == ""
    assert text in two and asked[1].prefix == kept.text
    outcome = work.store.outcome(1, "extension", "i0~0", 0)
    assert outcome is not None and outcome.text == f"{kept.text}\n\n{rest}"
    assert outcome.info["from_words"] == count_words(text) and outcome.words > 1.2 * count_words(text)
    steps = work.store.query("SELECT step, rule FROM verdicts ORDER BY step")
    assert steps == [("", ""), ("1a", ""), ("1b", "")]


def test_a_failed_round_goes_on_from_the_same_text_and_growth_is_asked_for(tmp_path):
    work = new_work(tmp_path, extend={"rounds": 2, "tries": 2})
    text = prose(120)

    def short(request):  # each second stage ends after a few words, so the text never grows
        return "That is all there is." if request.prefix else prose(90, 3)

    asked = drive(work, extend(work, 1, "i0~0", "en", ASKED, text, 0), short)
    assert len(asked) == 8 and all(text in r.messages[-1]["content"] for r in asked if r.prefix and r.messages)
    rules = dict(work.store.query("SELECT rule, COUNT(*) FROM verdicts GROUP BY rule"))
    assert rules == {"": 4, "not_longer": 4, "no_growth": 2}
    assert work.store.outcome(1, "extension", "i0~0", 0).text is None  # type: ignore[union-attr]


def test_extension_without_edge_or_room(tmp_path):
    work = new_work(tmp_path, extend={"tries": 1, "rounds": 1})
    assert drive(work, extend(work, 1, "a~0", "en", ASKED, "One sentence alone.", 0), lambda r: "x") == []
    small = new_work(tmp_path / "small", window=300, extend={"tries": 1, "rounds": 1})
    assert drive(small, extend(small, 1, "a~0", "en", ASKED, prose(400), 0), lambda r: "x") == []
    assert work.store.query("SELECT rule FROM verdicts WHERE step='1a'") == [("no_edge",)]
    assert small.store.query("SELECT rule FROM verdicts WHERE step='1a'") == [("no_room",)]


def test_a_killed_task_asks_only_what_is_missing(tmp_path):
    work = new_work(tmp_path, extend={"rounds": 3})
    text = prose(120)
    replies = {"n": 0}

    def reply(request):
        replies["n"] += 1
        return prose(100 * replies["n"] + 100, replies["n"])

    task = extend(work, 1, "i0~0", "en", ASKED, text, 0)
    ask = next(task)
    work.store.sending(ask.key, ask.request)
    work.store.answered(ask.key, Answer(ask.request.id, prose(200, 1), "stop"))
    task.close()  # killed after the first of six requests
    assert len(drive(work, extend(work, 1, "i0~0", "en", ASKED, text, 0), reply)) == 5


def test_damage_keeps_about_the_share_and_never_nothing():
    text = "\n\n".join(f"Line {i} of the text." for i in range(500))
    kept = damaged(text, 0.8, 1).count("Line")
    assert 360 < kept < 440 and damaged(text, 0.8, 1) == damaged(text, 0.8, 1)
    assert damaged("Only one line.", 0.01, 3) == "Only one line."
    sentences = " ".join(f"Sentence {i} is here." for i in range(100))
    assert 60 < damaged(sentences, 0.8, 2).count("Sentence") < 95


# --------------------------------------------------------------------------------------------------- instructions
def filters(threshold: float = 0.7) -> Filters:
    return Filters(3, 500, Pool(threshold), Pool(threshold, 8))


def test_instructions_are_completed_judged_and_new(tmp_path):
    work = new_work(tmp_path, instruct={"count": 3, "tries": 2, "block": 10})
    seeds = {"en": work.wordings["en"].seeds()}
    source = Proposals(work, 1, 3, seeds, filters())
    topics = iter(
        ["volcanoes and their neighbours", "the moon", "the quiet moon", "volcanoes and their many neighbours",
         "an old violin in Rome", "bread ovens of the far north", "x"]
    )  # fmt: skip
    verdicts = iter(["Yes.", "no", "Perhaps", "yes", "**Yes**", "yes"])

    def reply(request):
        content = request.messages[0]["content"]
        if "one word" in content:
            return next(verdicts)
        assert request.prefix.endswith("3.") and request.prefix.startswith("1. ")
        assert request.stop == ("\n4.",)
        return f' "Write a long and loving essay about {next(topics)}."\n4. Another one'

    asked = 0
    while (task := source.next_task()) is not None:
        asked += len(drive(work, task, reply))
    texts = [text for _, text in source.accepted]
    assert texts[0] == "Write a long and loving essay about volcanoes and their neighbours."
    assert [text.removesuffix(".").split("about ")[1] for text in texts] == [
        "volcanoes and their neighbours", "an old violin in Rome", "bread ovens of the far north",
    ]  # fmt: skip
    rules = dict(work.store.query("SELECT rule, COUNT(*) FROM verdicts WHERE rule!='' GROUP BY rule"))
    assert rules == {"judged_no": 1, "judge_unclear": 1, "near_duplicate": 1}
    assert asked == 12 and not source.more()


def test_examples_of_a_block_do_not_depend_on_the_order_of_arrival(tmp_path):
    """Two runs whose answers arrive in another order ask the same and accept the same."""
    accepted = []
    for order in (1, -1):
        few = {"in_flight": 2}  # a block has at least as many
        work = new_work(tmp_path / str(order), instruct={"count": 8, "block": 2, "judge": False}, serve=few)
        source = Proposals(work, 1, 8, {"en": ["Write one about a.", "Write two about b."]}, filters(1.0))
        shown = {}

        def reply(request, shown=shown):
            shown[request.id] = request.prefix
            return f"Describe thing {request.seed} for me."

        while source.more():
            tasks = []
            while (task := source.next_task()) is not None:
                tasks.append(task)
            for task in tasks[::order]:
                drive(work, task, reply)
        accepted.append((source.accepted, shown))
    assert accepted[0] == accepted[1] and len(accepted[0][0]) == 8
    assert any("Describe thing" in prefix for prefix in accepted[0][1].values())


@pytest.mark.parametrize(
    "said, meant",
    [("Yes", True), ("yes.", True), ("**Yes**", True), ("No, it is short.", False), ("no", False), ("Perhaps", None),
     ("", None), ("Yes or no", None), ("It depends. Yes.", None)],
)  # fmt: skip
def test_judges(said, meant):
    assert yes_or_no(said, Wording("en")) is meant


def test_judges_in_chinese():
    assert yes_or_no("是。", Wording("zh")) is True and yes_or_no("否", Wording("zh")) is False
    assert yes_or_no("是的吧", Wording("zh")) is None


def test_tidy():
    en = Wording("en")
    assert tidy(' "Write a story."\n\n4. Next', en) == "Write a story."
    assert tidy("**Request:** Write a story.", en) == "Write a story."
    assert tidy('Say "yes" and "no".', en) == 'Say "yes" and "no".'
    assert tidy("请求：写一个故事。\n5、另一个", Wording("zh")) == "写一个故事。"


def test_templates_are_many_distinct_and_apart_from_the_held_out_ones():
    for language, least in (("en", 170), ("zh", 75)):
        wording = Wording(language)
        trained, held = from_templates(wording, 1), from_templates(wording, 1, held_out=True)
        assert len(trained) == len(set(trained)) and not set(trained) & set(held)
        topics = [t for g in wording.templates["groups"] for i, t in enumerate(g["topics"]) if i % 6 == 5]
        assert len(held) == len(set(held)) == 2 * len(topics) and not any(
            t in text for t in topics for text in trained[:least]
        )
        assert from_templates(wording, 1) == trained != from_templates(wording, 2)


def test_enough_templates_survive_the_filters_for_the_laptop(tmp_path):
    """Two macro-iterations of 64 and 64 final ones must all be new; what is dropped is counted."""
    work = new_work(tmp_path, instruct={"source": "templates"})
    there, first, found = filters(), 0, []
    for iteration in (1, 2, 3):
        made, first = take_listed(work, iteration, first, 64, there)
        found += [text for _, text in made]
    assert len(found) == len(set(found)) == 192
    dropped = work.store.query("SELECT COUNT(*) FROM verdicts WHERE rule!=''")[0][0]
    assert dropped == first - 192


def test_evaluation_prompts_keep_their_distance(tmp_path):
    (tmp_path / "eval.jsonl").write_text('{"query": "Write an introduction to volcanoes for a popular magazine."}\n')
    (tmp_path / "mine.jsonl").write_text(
        '{"instruction": "Please write an introduction to volcanoes for a popular magazine."}\n'
        '{"instruction": "Describe how a glass blower spends a winter day in Murano."}\n'
    )
    from lengthen.selflengthen.instruct import evaluation_pool

    work = new_work(tmp_path, instruct={"source": "file", "file": str(tmp_path / "mine.jsonl")})
    apart = Filters(3, 500, Pool(0.7), evaluation_pool([str(tmp_path / "eval.jsonl")], [], 0.7, 8))
    made, _ = take_listed(work, 1, 0, 5, apart)
    assert [text for _, text in made] == ["Describe how a glass blower spends a winter day in Murano."]
    assert work.store.query("SELECT rule FROM verdicts WHERE rule!=''") == [("evaluation_prompt",)]


def test_seeds_that_cannot_be_used_are_refused(tmp_path):
    file = tmp_path / "seeds.jsonl"
    with pytest.raises(LengthenError, match="no file"):
        read_seeds(str(file), ["en"])
    file.write_text("")
    with pytest.raises(LengthenError, match="no seed instruction in en"):
        read_seeds(str(file), ["en"])
    file.write_text('{"instruction": "Schreib etwas.", "language": "de"}\n')
    with pytest.raises(LengthenError, match="language 'de' are not supported"):
        read_seeds(str(file), ["en"])
    file.write_text('{"text": "x"}\n')
    with pytest.raises(LengthenError, match="row 1 has none of"):
        read_seeds(str(file), ["en"])


def test_own_prompts_replace_packaged_ones_and_are_checked(tmp_path):
    (tmp_path / "extend.en.jinja2").write_text("Longer: {{ instruction }} / {{ outline }}")
    own = wordings(["en"], str(tmp_path))["en"]
    assert own.render("extend", {"instruction": "a", "outline": "b"}) == "Longer: a / b"
    assert "yes or no" in own.render("judge", {"instruction": "a"})
    (tmp_path / "judge.en.jinja2").write_text("Is it good?")
    with pytest.raises(LengthenError, match="does not use its slot instruction"):
        wordings(["en"], str(tmp_path))
    with pytest.raises(LengthenError, match="no folder"):
        wordings(["en"], str(tmp_path / "nowhere"))


def test_the_laptop_has_its_forty_held_out_prompts(tmp_path):
    crowd = new_work(tmp_path, held_out={"count": 40})
    assert len({text for _, text in held_out_prompts(crowd)}) == 40


def test_held_out_prompts_of_a_file_are_spread_over_it(tmp_path):
    file = tmp_path / "held.jsonl"
    rows = [{"query": f"第{i}个问题是什么？"} for i in range(10)] + [
        {"query": f"Answer {i}, please."} for i in range(9)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = {"file": str(file), "count": 3}
    work = new_work(tmp_path / "en", held_out=held)
    assert held_out_prompts(work) == [("en", f"Answer {i}, please.") for i in (0, 3, 6)]
    file.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(LengthenError, match="holds no prompt in en"):
        held_out_prompts(new_work(tmp_path / "none", held_out=held))


def test_prompts_of_the_evaluation_count_as_evaluation_prompts(tmp_path):
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("longen", "prompts")}
    stage = SelfLengthenStage.model_validate(
        {"name": "loop", "instruct": {"evaluation_prompts": ["mine.jsonl", files["longen"]]},
         "evaluate": {"suites": ["needle", {"suite": "longform", "options": files}]}}
    )  # fmt: skip
    assert stage.evaluation_files() == ["mine.jsonl", files["longen"], files["prompts"]]
    assert set(stage.evaluation_files()) <= set(stage.external_inputs())
    with pytest.raises(ValidationError, match="suitez"):
        SelfLengthenStage.model_validate({"name": "loop", "evaluate": {"suitez": ["longform"]}})


def test_instructions_of_a_language_that_is_not_written_are_counted(tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"instruction": "请写一篇关于渔村的小说。"}, {"instruction": "Describe a winter day in Murano."},
            {"instruction": "Beschreibe einen Wintertag in Murano.", "language": "de"}]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    work = new_work(tmp_path, instruct={"source": "file", "file": str(file)})
    made, _ = take_listed(work, 1, 0, 5, filters())
    assert made == [("en", "Describe a winter day in Murano.")]
    assert work.store.query("SELECT rule, COUNT(*) FROM verdicts WHERE rule!='' GROUP BY rule") == [
        ("other_language", 2)
    ]


# ------------------------------------------------------------------------------------------------------- selection
def test_one_extension_of_an_instruction_is_trained_on(tmp_path):
    """The original trains on up to four texts of an instruction, which differ little."""
    texts = {("i0~0", 0): 300, ("i0~1", 0): 500, ("i1~0", 0): 400}
    for each, kept in ((1, ["i0~1", "i1~0"]), (None, ["i0~0", "i0~1", "i1~0"])):
        work = new_work(tmp_path / str(each), extend={"per_instruction": each}, select={"enabled": False})
        for (item, sample), words in texts.items():
            work.store.finish(Outcome(1, "extension", item, sample, prose(words), words, words, None, {}))
        select(work, 1, "extension")
        assert [o.item for o in work.store.outcomes(1, "extension", kept=True)] == kept
        rules = work.store.query("SELECT item, rule FROM verdicts WHERE rule='same_instruction'")
        assert rules == ([("i0~0", "same_instruction")] if each else [])


def test_selection_counts_words_not_characters(tmp_path):
    """A Chinese text of 300 ideographs is longer than an English one of 100 words, which has more characters."""
    chinese, english = "港口比小镇醒得早。" * 34, prose(100)
    assert len(english) > len(chinese)
    work = new_work(tmp_path, languages=["en", "zh"])
    for item, wording, text in (("i0", "zh", chinese), ("i1", "en", english)):
        found = check(Answer("a", text, "stop"), text, Checks(repeated_share=1, longest_copy=999), Wording(wording))
        work.finish(Key(1, "extension", f"{item}~0"), text, found, None, {})
    select(work, 1, "extension")  # of two texts the longer one is always kept, the other never
    assert [o.item for o in work.store.outcomes(1, "extension", kept=True)] == ["i0~0"]


def test_rows_too_long_to_train_are_left_out_whole_and_counted(tmp_path):
    """The original cuts them at the limit, and the ending of the longest texts is lost."""
    work = new_work(tmp_path, training={"row_length": 200})
    rows = [chat_row(name, "Write.", prose(words), "self-lengthen", {}) for name, words in (("a", 100), ("b", 300))]
    assert fitting(work, 1, "generator", rows) == rows[:1]
    assert work.store.query("SELECT item, rule FROM verdicts WHERE rule!=''") == [("b", "too_long_to_train")]


def test_a_first_stage_without_an_edge_gives_no_empty_beginning(tmp_path):
    """The original keeps an empty beginning then, and its second stage rewrites everything."""
    work = new_work(tmp_path, extend={"tries": 1, "rounds": 1})
    one = "A single sentence " + " ".join(f"word{i}" for i in range(120)) + "."
    asked = drive(work, extend(work, 1, "i0~0", "en", ASKED, prose(120), 0), lambda r: one)
    assert len(asked) == 1 and asked[0].prefix == ""
    assert work.store.query("SELECT rule FROM verdicts WHERE step='1a'") == [("no_edge",)]


def test_empty_answers_and_refusals_are_rules(tmp_path):
    work = new_work(tmp_path, respond={"tries": 2})
    replies = iter(["", "I'm sorry, but I cannot help with that."])
    answer_task(work, lambda r: next(replies))
    assert work.store.query("SELECT rule FROM verdicts ORDER BY attempt") == [("empty",), ("refusal",)]
    assert work.store.outcome(1, "response", "i0", 0).text is None  # type: ignore[union-attr]


def test_replay_rows_without_messages_are_named(tmp_path):
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"text": "b"}\n')
    with pytest.raises(LengthenError, match=r"row 2 of .* has no messages"):
        with_replay([{}] * 9, RoleTraining(replay=str(tmp_path)), 1)
