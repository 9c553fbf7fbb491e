"""What the documentation says can be typed: commands parse, recipes load, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lengthen.cli import app
from lengthen.recipe.load import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("docs/*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md"))]
)
COMMAND = typer.main.get_command(app)


def commands(text: str) -> list[str]:
    """Indented and fenced lines, and inline code, that begin with `lengthen`."""
    lines = re.findall(r"^(?: {4}|\$ )?(?:\.venv/bin/|make \S+ && )?(lengthen .+)$", text, re.M)
    inline = re.findall(r"(?<!`)`(lengthen [^`]+)`", text)
    return [one.split("  #")[0].strip() for one in lines + inline]


def recipes(text: str) -> list[dict]:
    found = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)]
    return [one for one in found if isinstance(one, dict) and "stages" in one]


def ids(pages):
    return [page.relative_to(ROOT).as_posix() for page in pages]


def check(line: str, where: str) -> None:
    """A command exists, with the options that the line gives it."""
    words = [w for w in shlex.split(line.split(" > ")[0].split(" | ")[0])[1:] if w not in ("...", "..")]
    command: Any = COMMAND
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        if words[0].isupper():  # a placeholder such as COMMAND
            return
        assert words[0] in command.commands, f"{where}: {line}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h", "--debug"}
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in known, f"{where}: {line}: no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_commands_exist_with_their_options(page):
    for line in commands(page.read_text()):
        check(line, page.name)


def _leaves(command, name: str):
    for inner, one in getattr(command, "commands", {"": command}).items():
        yield from _leaves(one, f"{name} {inner}") if hasattr(one, "commands") else [(f"{name} {inner}".strip(), one)]


@pytest.mark.parametrize(("name", "command"), _leaves(COMMAND, "lengthen"), ids=lambda value: str(value)[:30])
def test_the_help_of_each_command_teaches_by_examples_that_hold(name, command):
    examples = [line.strip() for line in command.help.partition("Examples:")[2].splitlines() if line.strip()]
    assert examples and all(line.startswith(name) for line in examples), f"{name} --help shows no example"
    for line in examples:
        check(line, f"{name} --help")
    first = command.get_short_help_str(limit=200)
    assert len(first) <= 60, f"{name}: its line in the list of commands would be cut off: {first}"


@pytest.mark.parametrize("page", [p for p in PAGES if recipes(p.read_text())], ids=lambda p: p.name)
def test_recipes_load(page, tmp_path):
    for number, recipe in enumerate(recipes(page.read_text())):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        assert load_recipe(str(path)).stages


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not link.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    missing = {page.name for page in ROOT.glob("docs/*.md")} - listed
    assert not missing, f"add to nav in mkdocs.yml: {missing}"
