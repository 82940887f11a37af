"""docs/tofu-leaderboard.md from cells: command, time, table and what holds of the published orderings."""

import synthetic_cells as made
from perf.tofu_bench_page import page


def test_page_says_command_time_and_which_orderings_hold():
    cells = [c for c in made.bench() if (c.method, c.seed) != ("idk", 2)]
    cells.append(made.failed("idk", 2, "the loss of step 3 is not finite"))
    text = page(cells, [made.asked()])
    assert "expunge bench tofu --splits forget05 benchmark.folder=…/tofu" in text
    assert "All cells together took 25 min 30 s" in text
    assert "17 cells finished, 1 failed, 0 missing." in text
    assert "- idk, seed 2: failed, the loss of step 3 is not finite" in text
    (r8,) = [line for line in text.splitlines() if line.startswith("| R8 |")]
    assert "| **holds** | 2 / 0 / 0 |" in r8
    (r4,) = [line for line in text.splitlines() if line.startswith("| R4 |")]
    assert r4.endswith("**cannot be said** | 22 / 0 / 2 |")
    assert "; turns with idk, npo, rmu" in text


def test_a_method_that_moved_nothing_is_named():
    still = made.scores(made.RETAIN, made.FORGET)
    cells = [c.model_copy(update={"uncontrolled": still}) if c.method == "rmu" else c for c in made.bench()]
    told = "Forget and retain within 2% of the original's before control, in every seed: "
    assert f"{told}rmu. " in page(cells, [made.asked()])
    one = next(i for i, c in enumerate(cells) if c.method == "rmu")
    cells[one] = cells[one].model_copy(update={"uncontrolled": made.scores(made.RETAIN, made.FORGET - 0.1)})
    assert told not in page(cells, [made.asked()])


def test_page_escapes_what_a_cell_says():
    text = page([made.failed("<b>x</b>", 0, "<img src=x>")], [])
    assert "<img" not in text
    assert "<b>" not in text
