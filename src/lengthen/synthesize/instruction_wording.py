"""What the `instructions` stage says to the model that writes, in English and Chinese."""

from __future__ import annotations

import random

ASK: dict[str, dict[str, str]] = {
    "en": {
        "general": "Here is a text.\n\n{text}\n\nThink of {n} different things that an attentive reader of this "
        "text might "
        "want to know. Write each as one question that the text answers, without saying 'the text' or 'the passage'.",
        "summary": "Read the following.\n\n{text}\n\nWrite {n} requests that can only be met by summing up: the "
        "whole, one "
        "of its parts, one thread that runs through it, or one person's or component's role in it.",
        "reasoning": "Below is a document.\n\n{text}\n\nWrite {n} questions that no single place of it answers: "
        "each must "
        "need facts from at least two places far apart, put together or compared, with one answer that follows from "
        "them.",
        "extraction": "Study this document.\n\n{text}\n\nWrite {n} questions whose answer is a detail that stands "
        "in it "
        "word for word: a name, a number, a date, a place, a condition, or a list of such details.",
    },
    "zh": {
        "general": "下面是一篇文章。\n\n{text}\n\n请设想认真的读者会想知道的{n}件不同的事，每件写成一个能由"
        "文章回答的问题，问题中不要出现“本文”或“文章”。",
        "summary": "请阅读以下内容。\n\n{text}\n\n请写出{n}个只有通过概括才能完成的要求：概括全文、其中一部"
        "分、贯穿始终的一条线索，或某个人物、部件所起的作用。",
        "reasoning": "以下是一份文件。\n\n{text}\n\n请写出{n}个问题，每个问题都不能只凭一处回答，必须把相距"
        "较远的至少两处内容结合或比较，并且只有一个可由此推出的答案。",
        "extraction": "请仔细研究这份文件。\n\n{text}\n\n请写出{n}个问题，其答案是文件中原样出现的细节：人名"
        "、数字、日期、地点、条件，或这些细节的列举。",
    },
}
FORM = {
    "en": "Write nothing but the {n} questions, one a line, numbered 1. to {n}.",
    "zh": "只写这{n}个问题，每行一个，编号为1.到{n}.，不要写别的。",
}
ANSWER = {
    "en": "{text}\n\n{question}",
    "zh": "{text}\n\n{question}",
}
_TOPICS = {
    "en": {
        "What is {} and what is it used for?": (
            "a compass", "a barometer", "a lathe", "a thermos flask", "a spreadsheet", "a sundial", "a pulley",
            "a microscope", "a fuse", "a greenhouse", "a passport", "a dictionary", "an almanac", "a battery",
        ),
        "How does {} work?": (
            "a bicycle brake", "a zip fastener", "a sailing boat", "a water filter", "a door lock", "a windmill",
            "a rain gauge", "a piano", "a pressure cooker", "an escalator", "a ballpoint pen", "a solar panel",
        ),
        "Explain to a child why {}.": (
            "leaves fall", "ships float", "the moon changes its shape", "we yawn", "bread rises", "cats purr",
            "metal feels cold", "echoes happen", "stars twinkle", "birds fly south", "soap cleans", "rivers bend",
        ),
        "Give me some advice on {}.": (
            "learning to swim", "growing tomatoes", "speaking in public", "saving money", "keeping a diary",
            "choosing a used car", "cooking for a large family", "preparing for an examination", "moving to a new town",
            "mending a torn coat", "reading more books", "waking up early", "planning a walking tour",
        ),
        "What is the difference between {}?": (
            "a frog and a toad", "weather and climate", "a novel and a short story", "butter and margarine",
            "a lake and a pond", "a violin and a viola", "jam and jelly", "a comet and a meteor", "glass and crystal",
        ),
        "Write a short letter {}.": (
            "to a neighbour about a borrowed ladder", "to a hotel about a lost umbrella", "to a teacher with thanks",
            "to a landlord about a leaking roof", "inviting a friend to a picnic", "to a library about a late book",
        ),
        "Tell me about the history of {}.": (
            "paper", "chocolate", "the umbrella", "postage stamps", "chess", "lighthouses", "the alphabet", "tea",
            "the bicycle", "clocks", "maps", "the telephone", "glass", "silk",
        ),
        "Write a small Python function that {}, and say how it works.": (
            "reverses a string", "counts the vowels in a word", "adds up the even numbers of a list",
            "tells whether a word is a palindrome", "finds the longest word of a sentence", "turns minutes into hours",
            "removes doubles from a list", "finds the median of three numbers",
        ),
    },
    "zh": {
        "什么是{}？它有什么用途？": ("指南针", "算盘", "温度计", "显微镜", "滑轮", "温室", "护照", "词典", "电池"),
        "请解释{}是怎样工作的。": ("自行车刹车", "拉链", "帆船", "净水器", "风车", "钢琴", "高压锅", "太阳能板"),
        "请给我一些关于{}的建议。": ("学习游泳", "种西红柿", "当众讲话", "攒钱", "写日记", "准备考试", "早起"),
        "请简单介绍{}的历史。": ("纸", "茶叶", "丝绸", "象棋", "邮票", "钟表", "地图", "雨伞"),
        "{}有什么区别？": ("青蛙和蟾蜍", "天气和气候", "长篇小说和短篇小说", "湖和池塘", "彗星和流星"),
    },
}  # fmt: skip


def ask_for_questions(language: str, kind: str, text: str, n: int) -> str:
    """The prompt of LongAlign's first call: n questions of one kind about a document."""
    return f"{ASK[language][kind].format(text=text, n=n)}\n\n{FORM[language].format(n=n)}"


def topics(language: str, rng: random.Random) -> list[str]:
    """All everyday questions of a language, shuffled."""
    made = [form.format(thing) for form, things in _TOPICS[language].items() for thing in things]
    rng.shuffle(made)
    return made
