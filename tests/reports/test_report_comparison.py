"""Pairs of rows, ranks and the comparison page."""

import re
from itertools import pairwise

import pytest
import synthetic_scorecards as made

from expunge.errors import ConfigError
from expunge.reports import charts, compare
from expunge.reports.comparison import group_runs


def shifted(name: str, by: float, **changes):
    """A good run whose controlled forget score lies `by` higher; its interval is 0.008 wide."""
    card = made.good(name, method=name)
    scores = [
        row.model_copy(update={"value": row.value + by, "low": row.low + by, "high": row.high + by})
        if (row.metric, row.split, row.model) == ("extraction_strength", "forget", "controlled")
        else row
        for row in card.scores
    ]
    return card.model_copy(update={"scores": scores, **changes})


def control(**changes):
    return [made.good().control[0].model_copy(update=changes)]


def ranks(group):
    return {row.run: row.rank for row in group.rows if row.model == "controlled"}


def test_original_and_oracle_open_and_each_run_is_a_pair():
    (group,) = group_runs([shifted("b", 0.2), shifted("a", 0.0)])
    assert [(row.run, row.model) for row in group.rows] == [
        ("", "original"),
        ("", "oracle"),
        ("a", "unlearned"),
        ("a", "controlled"),
        ("b", "unlearned"),
        ("b", "controlled"),
    ]
    assert all(row.rank is None for row in group.rows if row.model != "controlled")


def test_overlapping_intervals_share_a_rank():
    (group,) = group_runs([shifted("a", 0.0), shifted("near", 0.004), shifted("far", 0.3)])
    assert ranks(group) == {"a": 1, "near": 1, "far": 3}


def test_alpha_zero_ranks_last_even_with_the_best_forget_score():
    (group,) = group_runs(
        [shifted("dead", -0.06, control=control(alpha=0.0)), shifted("a", 0.0), shifted("b", 0.3)]
    )
    assert ranks(group) == {"a": 1, "b": 2, "dead": 3}
    assert "did not survive control" in next(
        row.flags for row in group.rows if row.run == "dead" and row.model == "controlled"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"tau": 0.9},
        {"metric": "probability"},
        {"calibration_fingerprint": "other"},
        {"original_fingerprint": "other"},
    ],
)
def test_no_rank_across_bars(changes):
    groups = group_runs([shifted("a", 0.0), shifted("b", 0.3, control=control(**changes))])
    assert len(groups) == 2
    assert [rank for group in groups for rank in ranks(group).values()] == [1, 1]


def test_runs_without_control_are_never_ranked():
    (group,) = group_runs([shifted("a", 0.0, control=[]), shifted("b", 0.3, control=[])])
    assert set(ranks(group).values()) == {None}


def test_files(tmp_path):
    files = compare([shifted("a", 0.0), shifted("b", 0.3), made.hostile()], tmp_path)
    html = files["compare.html"].read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    assert "<img" not in html
    assert not re.findall(r"https?://", html)
    assert re.search(r'<tr class="uncontrolled">.*?<tr class="controlled">', html, re.S)
    rows = made.read_csv(files["csv/compare.csv"])
    a = next(row for row in rows if (row["run"], row["model"]) == ("a", "controlled"))
    assert float(a["forget"]) == pytest.approx(0.062)
    assert a["rank"] == "1"
    points = made.read_csv(files["csv/compare_trade_off.csv"])
    b = next(row for row in points if (row["run"], row["model"]) == ("b", "controlled"))
    assert float(b["forgotten"]) == pytest.approx(1 - 0.362)
    assert "| a | a | early\\_stop, uwc |" in files["compare.md"].read_text(encoding="utf-8")


def test_equal_names_stay_apart(tmp_path):
    files = compare([made.good("run"), made.good("run")], tmp_path)
    assert {"run (1)", "run (2)"} <= set(
        re.findall(r"run \(\d\)", files["compare.html"].read_text(encoding="utf-8"))
    )


def test_one_run_is_no_comparison(tmp_path):
    with pytest.raises(ConfigError, match="two or more"):
        compare([made.good()], tmp_path)
    assert not list(tmp_path.iterdir())


def test_labels_of_close_points_stand_a_line_apart():
    rows = [{"label": str(i), "forgotten": 0.9, "kept": 0.9 - i / 1000} for i in range(5)]
    lifts = charts._label_lifts(rows, 350)
    heights = [lifts[row["label"]] + (1 - row["kept"]) * 350 for row in rows]
    assert all(b - a >= 14 - 1e-9 for a, b in pairwise(heights))
