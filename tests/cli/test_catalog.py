"""`list`: every kind, readable on a terminal of 80 to 120 columns, complete as JSON, one thing in full."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from expunge.methods import METHODS
from expunge.runs.catalog import KINDS, OPTIMIZERS, about, cards, class_of, settings_of
from tiny_world import command

ALL = [*KINDS, "optimizers"]


def lines(*args: str) -> list[str]:
    said = command("list", *args)
    assert said.code == 0, said.err
    return said.out.splitlines()


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("what", ALL)
def test_one_line_each_within_the_terminal(what, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = lines(what)
    assert max(map(len, shown)) <= width
    for card in cards(what):
        (line,) = [line for line in shown if line.split()[:1] == [card["name"]]]
        said = line[line.rindex(f"  {card['summary'][:8]}") + 2 :].removesuffix(" …")
        assert card["summary"].startswith(said)
        assert len(said) >= min(20, len(card["summary"]))


def test_methods_stand_in_families_with_their_cost_where_there_is_room(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    shown = lines("methods")
    heads = [line for line in shown if line and not line.startswith(" ")]
    assert heads == sorted({card.fields["family"] for card in METHODS.cards()})
    assert "cost" in shown[0]
    assert shown.index("likelihood") < next(i for i, line in enumerate(shown) if " npo " in line)
    monkeypatch.setenv("COLUMNS", "80")
    assert "cost" not in lines("methods")[0]


def test_a_family_alone():
    rows = json.loads(command("list", "methods", "--family", "robust", "--json").out)
    assert {row["family"] for row in rows} == {"robust"}
    assert {row["name"] for row in rows} == {
        c.name for c in METHODS.cards() if c.fields["family"] == "robust"
    }


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["methods", "--family", "robst"], "Did you mean robust"),
        (["controls", "--family", "robust"], "Only methods have families"),
        (["methods", "nop"], "Did you mean npo"),
        (["optimizers", "adamv"], "Did you mean adamw"),
        (["transform"], "Did you mean transforms"),
        (["runs", "one"], "expunge show RUN"),
    ],
)
def test_what_there_is_not(args, said):
    done = command("list", *args)
    assert done.code == 2
    assert said in done.err


def test_json_holds_the_whole_card():
    rows = {row["name"]: row for row in json.loads(command("list", "methods", "--json").out)}
    for card in METHODS.cards():
        assert rows[card.name] == {"name": card.name, "summary": card.summary, **card.fields}


@pytest.mark.parametrize("what", ALL)
def test_each_of_a_kind_in_full(what):
    for card in cards(what):
        found = about(what, card["name"])
        assert found.items() >= card.items()
        json.dumps(found, allow_nan=False)
        assert ("settings" in found) == (what != "optimizers")


def test_one_method_in_full(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = "\n".join(lines("methods", "npo"))
    assert "beta: 0.1" in shown
    assert "log σ" in shown, "the formula"
    assert "2404.05868" in shown
    assert json.loads(command("list", "methods", "npo", "--json").out)["settings"]["beta"] == 0.1


def test_settings_are_what_the_class_has():
    for card in METHODS.cards():
        cls = class_of(card)
        assert cls is METHODS.get(card.name)
        assert list(settings_of(cls)) == [f.name for f in fields(cls) if f.init]


def test_nothing_needed_is_left_out_of_an_optimizers_card():
    assert all({"summary", "needs", "source"} <= facts.keys() for facts in OPTIMIZERS.values())
