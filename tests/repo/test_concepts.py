"""The concept guide names files, commands, recipes, methods and benchmarks that exist."""

import re
from pathlib import Path

import pytest

from expunge.benchmarks import BENCHMARKS
from expunge.cli import app
from expunge.methods import METHODS
from expunge.runs.catalog import KINDS

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`(expunge [^`]+|python -m [^`]+)`", GUIDE)
PROMISES = (
    "unlearning target", "unlearning scope", "influence erasure", "capability removal", "effectiveness",
    "efficiency", "data–model interaction", "multifaceted assessment", "excessive unlearning", "copyright",
    "privacy", "sociotechnical harm", "model editing", "influence functions", "explanation",
    "adversarial training", "reinforcement learning",
)  # fmt: skip


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_has_a_row(promise):
    assert re.search(rf"^\| {promise}", GUIDE, re.M)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(src/expunge/[^`]+)`", GUIDE))))
def test_where_it_lives_is_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_is_one(command):
    words = command.split()
    if words[0] == "python":
        assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file()
        return
    verbs = {c.name or c.callback.__name__ for c in app.registered_commands}
    assert words[1].replace("list", "list_") in {*verbs, "list_"}
    for word in words[2:]:
        if word.startswith("recipes/"):
            assert (ROOT / word).is_file()
        if word.startswith("method="):
            assert word.removeprefix("method=") in METHODS.names()
    if words[1] == "list":
        assert words[2] in KINDS


def test_benchmarks_of_the_table_are_registered_and_scenarios_have_a_tutorial():
    table = GUIDE.split("## What it is for")[1].split("## What it is related to")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert named == set(BENCHMARKS.names())
    told = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(\.\./recipes/(\w+)\.yaml\)\) \|[^|]*\|$", table, re.M):
        assert f"## {name}" in told.lower() or name in ("wmdp", "book")
