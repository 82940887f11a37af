"""Cells to rows, ranks and pages: by hand numbers, and nothing that failed out of sight."""

import re
import statistics

import pytest
import synthetic_cells as made

from expunge.errors import DataError
from expunge.reports.leaderboard import read_results, write_page
from expunge.reports.leaderboard_ranking import difference, pairs, places, turns
from expunge.reports.leaderboard_rows import boards
from expunge.reports.leaderboard_schema import Controlled, Measured


def forgetting(method: str, values, **changes):
    """Cells that differ in their forget score at τ = 0.9 alone, one a seed."""
    return [
        made.cell(
            method, seed, taus=[0.9], **changes,
            controlled=[made.scores(0.7, value, kind=Controlled, tau=0.9, alpha=0.4)],
        )
        for seed, value in enumerate(values)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The page of a whole bench, with a cell that failed in a hostile way and one that is missing."""
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)> /srv/secret/place/log.txt"
    cells = [c for c in made.bench() if (c.method, c.seed) != ("idk", 1)]
    cells.append(made.failed("<b>own</b>", 0, hostile))
    cells += [made.cell("npo", seed).model_copy(update={"method": "<i>drawn</i>"}) for seed in made.SEEDS]
    return write_page(cells, tmp_path_factory.mktemp("leaderboard"), [made.asked()])


def ranks(board, tau=0.9):
    return {place.entry.label: place.rank for place in places(board, tau)}


def test_mean_and_deviation_by_hand():
    (board,) = boards(forgetting("npo", [0.10, 0.12, 0.14]))
    row = board.entries[0].controlled(0.9)
    assert row.scores["forget"].mean == pytest.approx(0.12)
    assert row.scores["forget"].sd == pytest.approx(0.02)
    assert (row.n, row.alpha.mean, row.recovery.mean) == (3, pytest.approx(0.4), None)
    loose = board.entries[0].uncontrolled
    assert loose.wall.mean == pytest.approx(31.0)
    assert loose.wall.sd == pytest.approx(1.0)
    assert board.original.scores["forget"].mean == 0.90


def test_a_failed_cell_enters_no_mean_and_stays_in_sight(tmp_path):
    cells = [*forgetting("npo", [0.1, 0.2]), made.failed("npo", 2, "the loss of step 14 is not finite")]
    (board,) = boards(cells)
    (entry,) = board.entries
    assert entry.controlled(0.9).scores["forget"].values == (0.1, 0.2)
    assert entry.failed == {2: "the loss of step 14 is not finite"}
    assert board.counts == {"finished": 2, "failed": 1, "missing": 0, "apart": 0}
    for name, path in write_page(cells, tmp_path).items():
        text = path.read_text(encoding="utf-8")
        assert "the loss of step 14 is not finite" in text, name
        assert "2 of 3" in text, name


def test_what_was_asked_for_and_is_not_there_is_missing(tmp_path):
    cells = [made.cell("npo", seed) for seed in (0, 2)]
    asked = [made.asked(parts=["forget05", "forget10"], methods=["npo", "rmu"])]
    first, second = boards(cells, asked)
    assert {e.label: e.missing for e in first.entries if e.missing} == {"npo": (1,), "rmu": (0, 1, 2)}
    assert (second.part, second.counts["missing"]) == ("forget10", 6)
    html = write_page(cells, tmp_path, asked)["index.html"].read_text(encoding="utf-8")
    assert "seeds 0, 1, 2: asked for, no cell there" in html
    assert "seed 1: asked for, no cell there" in html


def test_a_method_that_failed_in_every_seed_has_a_row_and_no_rank():
    cells = [*forgetting("npo", [0.1, 0.2]), *(made.failed("ga", seed, "killed") for seed in (0, 1))]
    (board,) = boards(cells)
    assert [entry.label for entry in board.entries] == ["npo", "ga"]
    place = places(board, 0.9)[-1]
    assert (place.entry.label, place.rank, place.note) == ("ga", None, "2 failed")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"original_fingerprint": "other"}, "another original model"),
        ({"oracle_fingerprint": "other"}, "another oracle"),
        ({"calibration_fingerprint": "other"}, "other calibration records"),
        ({"profile": "deep"}, "another audit profile (deep, not quick)"),
        ({"bar_metric": "probability"}, "another bar metric"),
        ({"expunge_version": "0.2.0"}, "expunge 0.2.0, not 0.1.0"),
    ],
)
def test_what_is_not_comparable_is_listed_apart(changes, why):
    (board,) = boards([*forgetting("npo", [0.1, 0.2]), made.cell("ga", 0, **changes)])
    assert [entry.label for entry in board.entries] == ["npo"]
    ((cell, reason),) = board.apart
    assert cell.method == "ga"
    assert why in reason


def test_a_second_result_of_a_cell_is_listed_apart_and_a_copy_is_not():
    one = made.cell("npo", 0)
    newer = one.model_copy(update={"created": "2026-11-28T00:00:00Z", "key": "new"})
    (board,) = boards([one, one.model_copy(), newer, made.failed("npo", 0, "killed")])
    assert board.entries[0].cells[0].key == "new"
    assert [cell.key for cell, _ in board.apart] == ["npo0", ""]


def test_other_settings_make_another_entry_and_a_seed_does_not():
    other = [c.model_copy(update={"settings": {**c.settings, "beta": 0.5}}) for c in forgetting("npo", [0.3])]
    (board,) = boards([*forgetting("npo", [0.1, 0.2]), *other])
    assert sorted(entry.label for entry in board.entries) == ["npo (beta 0.1)", "npo (beta 0.5)"]
    assert sorted(len(entry.cells) for entry in board.entries) == [1, 2]


def test_paired_difference_by_hand():
    a = {seed: Measured(value=v) for seed, v in enumerate([0.30, 0.32, 0.31])}
    b = {seed: Measured(value=v) for seed, v in enumerate([0.20, 0.21, 0.22])}
    found = difference(a, b)
    half = 4.302653 * statistics.stdev([0.10, 0.11, 0.09]) / 3**0.5
    assert (found.mean, found.low) == (pytest.approx(0.1), pytest.approx(0.1 - half, abs=1e-6))
    assert found.sign == 1
    assert difference(a, {7: Measured(value=0.1)}) is None
    shifted = {seed: Measured(value=m.value - 0.01) for seed, m in a.items()}
    assert difference(a, shifted).sign == 1


def test_without_spread_the_intervals_over_entities_decide():
    near = {0: Measured(value=0.30, low=0.2, high=0.4)}
    far = {0: Measured(value=0.60, low=0.5, high=0.7)}
    bare = {0: Measured(value=0.60)}
    assert difference(near, far).sign == -1
    assert difference(near, {0: Measured(value=0.35, low=0.3, high=0.5)}).sign == 0
    assert difference(near, bare).sign == 0


def test_methods_within_noise_share_a_rank():
    cells = [
        *forgetting("npo", [0.10, 0.11, 0.12]),
        *forgetting("ga", [0.12, 0.10, 0.12]),
        *forgetting("rmu", [0.50, 0.51, 0.52]),
    ]
    (board,) = boards(cells)
    assert ranks(board) == {"npo": 1, "ga": 1, "rmu": 3}
    assert {p.entry.label: p.tied for p in places(board, 0.9)}["npo"] == ("ga",)
    found = pairs(board, 0.9)
    assert (found["npo", "ga"].text, found["npo", "ga"].stable) == ("1/3, 1 equal", False)
    assert (found["npo", "rmu"].text, found["npo", "rmu"].stable) == ("3/3", True)


def test_alpha_zero_did_not_survive_and_ranks_last():
    dead = [
        cell.model_copy(update={"controlled": [cell.controlled[0].model_copy(update={"alpha": 0.0})]})
        for cell in forgetting("ga", [0.0, 0.0])
    ]
    (board,) = boards([*forgetting("npo", [0.3, 0.31]), *dead])
    assert [(p.entry.label, p.rank, p.note) for p in places(board, 0.9)] == [
        ("npo", 1, ""),
        ("ga", 2, "did not survive control"),
    ]


def test_an_order_that_turns_with_the_bar_is_told(full):
    (board,) = boards([cell for cell in made.bench() if cell.method in ("npo", "ga", "ga_kl", "graddiff")])
    found = {(t.first, t.second): t for t in turns(board)}
    assert found["npo", "ga"].sure
    assert (found["npo", "ga"].tau, found["npo", "ga"].other) == (0.95, 0.6)
    assert ("ga_kl", "graddiff") not in found
    text = full["leaderboard.md"].read_text(encoding="utf-8")
    assert "npo leaves less than ga at τ = 0.95 and more at τ = 0.6 (beyond noise under both)" in text


def test_page_holds_nothing_from_elsewhere_and_no_path(full):
    files = full
    html = full["index.html"].read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    assert "<img" not in html
    assert "<b>own" not in html
    assert "<i>drawn" not in html
    assert html.count("&lt;i&gt;drawn") > 5
    assert not re.findall(r"https?://", html)
    assert len(html.encode()) < 1_500_000
    for path in files.values():
        text = path.read_text(encoding="utf-8")
        assert "secret" not in text
        assert "/mnt/me" not in text
        assert "benchmark.folder=…/tofu" in text
    assert "<img" not in files["leaderboard.md"].read_text(encoding="utf-8")


def test_markdown_has_the_numbers_of_the_table(tmp_path):
    text = write_page(forgetting("npo", [0.10, 0.12, 0.14]), tmp_path)["leaderboard.md"].read_text("utf-8")
    assert "Scored on exact prompts by extraction strength, on paraphrased prompts by" in text
    (line,) = [row for row in text.splitlines() if row.startswith("| **npo** | τ = 0.9 | 0.400 ± 0.000 |")]
    assert "| 0.120 ± 0.020 |" in line
    assert line.endswith("| 3 of 3 |")
    assert re.search(r"\| \*npo\* \| none \| 1\.000 .*\| 31 s \|", text)


def test_a_bench_without_cells_makes_a_page(tmp_path):
    text = write_page([], tmp_path, [made.asked()])["index.html"].read_text(encoding="utf-8")
    assert "of 18" in text


def test_results_folder_is_read_and_every_bad_file_named(tmp_path):
    cell = made.cell("npo", 0)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{cell.name}.json").write_text(cell.model_dump_json(), encoding="utf-8")
    (tmp_path / "bench.json").write_text(made.asked().model_dump_json(), encoding="utf-8")
    assert read_results([tmp_path]) == ([cell], [made.asked()])
    (tmp_path / "cells" / "bad.json").write_text("{}", encoding="utf-8")
    (tmp_path / "cells" / "torn.json").write_text('{"benchmark": "to', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_results([tmp_path, tmp_path / "none"])
    assert [p.where.rsplit("/")[-1] for p in caught.value.problems] == ["bad.json", "torn.json", "none"]
