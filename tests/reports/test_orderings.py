"""Each published ordering on cells made so that it holds, fails, or cannot be told."""

import pytest
import synthetic_cells as made

from expunge.reports.leaderboard_rows import boards
from expunge.reports.leaderboard_schema import Controlled
from expunge.reports.orderings import orderings

TAUS = (0.9, 0.6)
SEEDS = (0, 1, 2)
# method → before control (retain, forget), then forget at each of TAUS: everything published holds
GOOD = {
    "ga": ((0.0, 0.0), (0.50, 0.06)),
    "graddiff": ((0.30, 0.0), (0.20, 0.12)),
    "ga_kl": ((0.25, 0.0), (0.10, 0.02)),
    "idk": ((0.35, 0.20), (0.60, 0.40)),
    "npo": ((0.45, 0.30), (0.30, 0.20)),
    "rmu": ((0.0, 0.0), (0.70, 0.50)),
}
NOISE = (0.0, 0.004, -0.003)
"""What a seed adds to every score that is not zero; of another sign for every other method."""


def cells(changes=None, seeds=SEEDS, noise=1.0, retain=None):
    """Cells with the numbers of GOOD, changed by method; a method that is None is absent."""
    rows = {**GOOD, **(changes or {})}
    return [
        _cell(name, i, row, seed, noise, retain or {})
        for i, (name, row) in enumerate(rows.items())
        for seed in seeds
        if row is not None
    ]


def _cell(name, i, row, seed, noise, retain):
    (kept, left), held = row
    off = NOISE[seed] * noise * (1 if i % 2 else -1)

    def near(value):
        return max(0.0, min(1.0, value + off)) if value else 0.0

    return made.cell(
        name, seed, taus=list(TAUS), uncontrolled=made.scores(near(kept), near(left)),
        controlled=[
            made.scores(near(retain.get(name, 0.8 * tau)), near(value), kind=Controlled, tau=tau, alpha=0.5)
            for tau, value in zip(TAUS, held, strict=True)
        ],
    )  # fmt: skip


def found(name, changes=None, **more):
    (board,) = boards(cells(changes, **more))
    return next(ordering for ordering in orderings(board) if ordering.name == name)


@pytest.mark.parametrize("name", [f"R{i}" for i in range(1, 11)])
def test_what_was_published_holds_where_the_numbers_are_such(name):
    ordering = found(name)
    assert ordering.word == "holds", ordering.findings
    assert all(finding.numbers for finding in ordering.findings)


FAILS = {
    "R1": {"rmu": ((0.40, 0.0), GOOD["rmu"][1])},
    "R2": {"graddiff": ((0.60, 0.0), GOOD["graddiff"][1])},
    "R3": {"npo": ((0.45, 0.0), GOOD["npo"][1])},
    "R4": {"rmu": (GOOD["rmu"][0], (0.05, 0.01))},
    "R5": {"npo": (GOOD["npo"][0], (0.65, 0.20))},
    "R6": {"npo": (GOOD["npo"][0], (0.30, 0.0))},
    "R7": {"npo": (GOOD["npo"][0], (0.80, 0.20))},
    "R8": {"ga": (GOOD["ga"][0], (0.80, 0.70))},
    "R9": {"npo": (GOOD["npo"][0], (0.20, 0.30))},
}


@pytest.mark.parametrize("name", list(FAILS))
def test_what_was_published_fails_where_the_numbers_are_others(name):
    ordering = found(name, FAILS[name])
    assert ordering.word == "does not hold", ordering.findings
    assert ordering.counts[1] >= 1


def test_spread_of_retain_that_grows_under_control():
    equal = {name: ((0.5, row[0][1]), row[1]) for name, row in GOOD.items()}
    assert found("R10", equal, retain={"ga": 0.1, "rmu": 0.9}).word == "does not hold"


@pytest.mark.parametrize("name", ["R4", "R5", "R7", "R8"])
def test_within_noise_nothing_is_said(name):
    ordering = found(name, noise=40.0)
    assert ordering.word == "cannot be said", ordering.findings
    assert any(finding.why == "within noise" for finding in ordering.findings)


def test_a_lower_mean_within_noise_leaves_the_lowest_open():
    ordering = found("R6", {"graddiff": (GOOD["graddiff"][0], (0.098, 0.018))})
    assert ordering.word == "cannot be said"
    assert {finding.why for finding in ordering.findings if finding.holds is None} == {"within noise"}


@pytest.mark.parametrize("name", ["R1", "R3", "R4", "R6", "R7", "R10"])
def test_a_method_that_is_not_there_is_named(name):
    ordering = found(name, {"rmu": None})
    assert ordering.word == "cannot be said"
    assert any("rmu" in finding.why or "six methods" in finding.why for finding in ordering.findings)


def test_a_method_with_two_settings_is_not_guessed():
    other = [c.model_copy(update={"settings": {"beta": 9}}) for c in cells() if c.method == "npo"]
    (board,) = boards([*cells(), *other])
    r5 = orderings(board)[4]
    assert r5.word == "cannot be said"
    assert "npo (several settings)" in r5.findings[0].why


def test_an_equal_score_is_tied_and_does_not_fall():
    tied = {"graddiff": ((0.30, 0.0), (0.0, 0.0)), "ga_kl": ((0.25, 0.0), (0.0, 0.0))}
    assert found("R6", tied).word == "holds"
    assert all(f.holds for f in found("R9", tied).findings if f.where.startswith(("graddiff", "ga_kl")))


def test_numbers_are_those_of_the_cells():
    (first, *_) = found("R5", noise=0.0).findings
    assert first.where == "npo < idk, exact, τ = 0.6"
    assert first.numbers == "npo 0.200 ± 0.000, idk 0.400 ± 0.000"


def test_one_seed_rests_on_the_intervals_over_entities():
    assert found("R5", seeds=(0,)).word == "holds"
    near = {"npo": (GOOD["npo"][0], (0.55, 0.36))}
    assert found("R5", near, seeds=(0,)).word == "cannot be said"
    assert found("R10", seeds=(0,)).word == "cannot be said"


def test_no_cells_say_nothing():
    (board,) = boards([made.failed("ga", 0, "killed")])
    assert {ordering.word for ordering in orderings(board)} == {"cannot be said"}
