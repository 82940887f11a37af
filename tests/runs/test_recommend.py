"""Which methods `plan` recommends: rules over cards, each seen at work."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.errors import ConfigError
from expunge.methods import METHODS
from expunge.registry import Card
from expunge.runs import catalog
from expunge.runs import recommend as rules
from expunge.runs.recommend import Budget, Facts, cost_of, passes, recommend, retraining
from tiny_world import command, inside, write_recipe

BILLION = Facts(
    entities=True, forget=80, parameters=10**9, tokens={"forget": 4_000, "retain": 40_000}, seen=20_000,
    seconds_per_flop=1e-14, default="wga",
)  # fmt: skip
EXACT = {"retrain", "sisa", "sharded_lora"}


def card(name: str = "toy", **fields) -> Card:
    """A card that nothing speaks against."""
    plain = {
        "family": "toys", "erases": "influence", "targets": ["records"], "access": "weights", "needs": [],
        "cost": "1F+1B", "scale": "single", "source": "", "verified": ["forgetting", "utility"],
    }  # fmt: skip
    return Card(name, "A toy.", "toys", plain | fields)


def names(facts: Facts, cards: list[Card] | None = None) -> list[str]:
    return [one.name for one in recommend(cards or METHODS.cards(), facts).recommended]


def reason(facts: Facts, **fields) -> str | None:
    return recommend([card(**fields)], facts).ruled_out.get("toy")


@pytest.mark.parametrize("module", [rules, catalog], ids=["recommend", "catalog"])
def test_examples_in_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


# Ruled out --------------------------------------------------------------------------------------------


def test_nothing_speaks_against_the_toy():
    assert reason(BILLION) is None


@pytest.mark.parametrize(
    ("facts", "fields", "said"),
    [
        ({"kind": "attribute"}, {}, "the target is attribute"),
        ({"access": "logits"}, {}, "only logits can be had"),
        ({"access": "text"}, {"access": "logits"}, "only text can be had"),
        ({"splits": frozenset({"forget"})}, {"needs": ["retain"]}, "needs retain"),
        ({"splits": frozenset({"forget"})}, {"needs": ["retain, for the budget"]}, "needs retain, for"),
        ({}, {"needs": ["holdout"]}, "needs holdout"),
        ({"entities": False}, {"needs": ["entities"]}, "needs entities"),
        ({"access": "logits"}, {"access": "logits", "needs": ["the embeddings"]}, "needs the embeddings"),
        ({}, {"needs": ["a model from before exposure"]}, "needs a model from before"),
        ({"exact": True}, {}, "exactness"),
        ({"exact": True}, {"family": "exact"}, "exactness"),  # such as a certificate for the head alone
        ({"budget": Budget(seconds=1)}, {}, "the budget is 1 s"),
        ({"budget": Budget(flops=1e12)}, {}, "the budget is 1.0e+12"),
    ],
)
def test_ruled_out(facts, fields, said):
    assert said in (reason(replace(BILLION, **facts), **fields) or "")


@pytest.mark.parametrize(
    ("facts", "fields"),
    [
        ({"access": "text"}, {"access": "text"}),
        (
            {},
            {"needs": ["reference", "refusals", "alternates (made where there are none)"]},
        ),
        ({"splits": frozenset({"forget", "holdout"})}, {"needs": ["holdout"]}),
        ({"clean_model": True}, {"needs": ["a model from before exposure"]}),
        ({"exact": True}, {"family": "exact", "cost": "1/S of retraining"}),
        ({"budget": Budget(seconds=2)}, {}),
        ({"budget": Budget(seconds=1), "parameters": None}, {}),  # nothing to compare it with
    ],
)
def test_not_ruled_out(facts, fields):
    assert reason(replace(BILLION, **facts), **fields) is None


def test_a_need_that_nobody_can_check_is_asked_of_the_user():
    (one,) = recommend([card(needs=["a blessing"])], BILLION).recommended
    (other,) = recommend([card()], BILLION).recommended
    assert one.asks == ["a blessing"]
    assert one.points < other.points


# Ranked -----------------------------------------------------------------------------------------------


def test_the_default_comes_first_where_it_suits_and_three_families_are_shown():
    advice = recommend(METHODS.cards(), BILLION)
    assert advice.recommended[0].name == "wga"
    assert len({one.family for one in advice.recommended}) == 3
    assert advice.considered + len(advice.ruled_out) == len(METHODS.cards())


def test_what_is_erased_must_fit_the_aim():
    cards = [card(kind, erases=kind, family=kind) for kind in ("output", "capability", "influence")]
    assert names(BILLION, cards) == ["influence", "capability", "output"]
    wanted = replace(BILLION, aim="remove_capability")
    assert names(wanted, cards) == ["capability", "influence", "output"]
    said = {one.name: " ".join(one.cannot) for one in recommend(cards, wanted).recommended}
    assert "weights still hold" in said["output"]
    assert "other sources" in said["influence"]
    assert "other sources" not in said["capability"]


def test_a_capability_is_taken_from_the_weights():
    erased = {
        METHODS.card(name).fields["erases"]
        for name in names(replace(BILLION, kind="capability", aim="remove_capability"))
    }
    assert erased == {"capability"}


def test_exactness_leaves_what_trains_without_the_records():
    advice = recommend(METHODS.cards(), replace(BILLION, exact=True))
    assert {one.name for one in advice.recommended} == EXACT
    assert advice.considered == len(EXACT)
    assert "certified" in advice.ruled_out


def test_exact_methods_are_not_pressed_on_those_who_did_not_ask():
    assert not EXACT & set(names(BILLION))


def test_robustness_puts_first_whose_card_verifies_it():
    verified = {c.name for c in METHODS.cards() if "robustness" in c.fields["verified"]}
    assert names(replace(BILLION, robust=True))[0] in verified
    cards = [card("plain"), card("sturdy", verified=["forgetting", "robustness"])]
    assert names(replace(BILLION, robust=True), cards) == ["sturdy", "plain"]
    (sturdy, plain) = recommend(cards, replace(BILLION, robust=True)).recommended
    assert any("trains the model again" in text for text in plain.cannot)
    assert not any("trains the model again" in text for text in sturdy.cannot)


def test_only_text_leaves_the_wrappers_and_says_what_they_cannot_do():
    advice = recommend(METHODS.cards(), replace(BILLION, access="text"))
    assert advice.recommended
    for one in advice.recommended:
        assert METHODS.card(one.name).fields["access"] == "text"
        assert any("weights still hold" in text for text in one.cannot)


def test_a_limit_on_the_card_is_told_and_counts():
    first, second = recommend([card("lame", limits="limps"), card("sound")], BILLION).recommended
    assert (first.name, second.name) == ("sound", "lame")
    assert "limps" in second.cannot


def test_few_records_and_many():
    cards = [card("each", cost="1F+1B per record"), card("all", cost="2F+2B")]
    assert names(replace(BILLION, forget=10), cards)[0] == "each"
    assert names(replace(BILLION, forget=1_000), cards)[0] == "all"


def test_without_a_retain_set_it_takes_what_needs_none():
    for name in names(replace(BILLION, splits=frozenset({"forget"}))):
        assert "retain" not in METHODS.card(name).fields["needs"]


# Cost -------------------------------------------------------------------------------------------------


def test_every_card_speaks_of_a_cost_that_is_understood():
    for one in METHODS.cards():
        cost = one.fields["cost"]
        assert "F" in cost or cost.startswith("no training") or retraining(cost) is not None, one.name
        assert cost_of(cost, BILLION) >= 0


def test_costs_in_order():
    billion = 1e9 * 20_000
    assert cost_of("1F+1B", BILLION) == 6 * billion
    assert cost_of("2F+2B", BILLION) == 12 * billion
    assert cost_of("full training", BILLION) == 6e9 * 5 * 40_000  # epochs, retain tokens
    assert cost_of("1F+1B per row, once", BILLION) == 6e9 * 44_000
    assert cost_of("no training; 0F per token", BILLION) == 0
    assert passes("1F+1B, and the reinforced model") == (2, 2)
    assert passes("K(1F+1B) on forget") == (5, 5)
    assert passes("10 to 100 times 2F+2B, by the length") == (110, 110)


@pytest.mark.parametrize("text", ["soon", "", "-3", "0", "3 weeks"])
def test_a_budget_that_is_none(text):
    with pytest.raises(ConfigError, match="--budget"):
        Budget.read(text)


# Through the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with inside(tmp_path_factory.mktemp("world")):
        write_recipe(Path("r.yaml"), method="dpo")
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("world")
class TestPlan:
    def test_says_three_with_their_reasons(self):
        said = command("plan", "r.yaml")
        assert said.code == 0, said.err
        assert "1 wga" in said.out
        assert "3 " in said.out
        assert "ruled out" not in said.out

    def test_says_why_not(self):
        said = command("plan", "r.yaml", "--exact", "--why")
        assert "ruled out: exactness" in said.out
        assert "1 retrain" in said.out
        assert "dpo does not suit this request: exactness" in said.err

    def test_the_same_as_json(self):
        advice = json.loads(command("plan", "r.yaml", "--budget", "5flops", "--json").out)["advice"]
        assert {one["flops"] for one in advice["recommended"]} == {0.0}
        assert "the budget" in advice["ruled_out"]["wga"]

    def test_a_required_recovery_asks_for_robustness(self):
        advice = json.loads(command("plan", "r.yaml", "require.recovery=0.1", "--json").out)["advice"]
        assert advice["recommended"][0]["name"] == "undo"

    def test_a_budget_nobody_understands_is_an_input_error(self):
        said = command("plan", "r.yaml", "--budget", "soon")
        assert said.code == 2
        assert "5e15flops" in said.err
