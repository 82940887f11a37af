"""Unlearning where the forget set names only part of its target, on a small classifier.

    python -m perf.label_domains

Runs retraining, fine-tuning, gradient ascent, random labels and TARF under the four relations of label
domains, with five worlds each. Writes docs/label-domains.md; takes about a minute on one core.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from expunge.benchmarks.label_domains import RELATIONS, Result, World, compare

PAGE = Path(__file__).resolve().parents[1] / "docs" / "label-domains.md"
SEEDS = range(5)
SCORES = ("UA", "RA", "TA", "MIA")
PARTS = ("listed forget data", "hidden forget data", "affected retain data", "retain data")

HEAD = """# Partly listed forget sets: four relations of label domains

A forget set often names only part of what should go. `expunge.benchmarks.label_domains` shows what that does
to unlearning, on generated points with a class and a superclass and a classifier of two hidden layers, after
Zhu et al. 2024 (arXiv 2406.08288). Written by `python -m perf.label_domains`.

- **target data**: all that should go; **listed forget data**: what the method is told;
- **hidden forget data**: target, but not listed; for the method they are data to keep;
- **affected retain data**: they stay, and have the model's label of the target.

| relation | the model tells apart | the target is | listed is | hidden | affected |
|---|---|---|---|---|---|
| all matched | classes | a class | that class | none | none |
| target mismatch | classes | a superclass | one of its classes | its other classes | none |
| model mismatch | superclasses | a class | that class | none | the superclass's other classes |
| data mismatch | superclasses | a superclass | one of its classes | its other classes | none |

UA is 1 − accuracy on the target data, RA accuracy on the retain data, TA on test data that stay, MIA the
share of target data that a loss threshold, fixed on retain and test data, calls non-members. The gap is the
mean distance of the four to retraining without the target data; 0 is best. Right of it stands the accuracy on
each part. World, classifier and all settings are ours, not the paper's.
"""

TAIL = """
## How to read it

Retraining is the goal, not UA = 1: where superclasses are told apart and one class of one must go (model
mismatch), a retrained model still answers most target points right, since their siblings stay. A method that
drives UA to 1 there is further from it than one that does nothing, and the original's own gap is small.

Where target data are hidden, a method that keeps what it was told to keep keeps them: random labels and
fine-tuning leave them as they are. With a model of superclasses (data mismatch) they share the label of what
is listed, so that ascent takes them along, and TARF's gate, which closes for the points whose loss moved
most, finds most of them. With a model of classes (target mismatch) ascent on one class hardly moves its
siblings: no method here forgets the hidden data, TARF's gate included.

Ascent has no end of its own: it stops after twelve steps, chosen by hand. TARF is told how many points are
hidden. For language models, `stress: {listed: 0.5}` of a recipe does the same to any request, see
[stress.md](stress.md).
"""


def rows(results: Sequence[Result]) -> list[str]:
    """One row per relation and method: mean over the worlds, ± deviation of the gap."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.relation, result.method].append(result)
    found = []
    for (relation, method), group in groups.items():
        four = [f"{statistics.mean(r.four[name] for r in group):.2f}" for name in SCORES]
        gaps = [r.gap for r in group]
        gap = (
            f"{statistics.mean(gaps):.3f} ± {statistics.stdev(gaps):.3f}"
            if len(gaps) > 1
            else f"{gaps[0]:.3f}"
        )
        parts = [statistics.mean(r.parts[name] for r in group) for name in PARTS]
        cells = [relation, method, *four, gap, *("–" if p != p else f"{p:.2f}" for p in parts)]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    torch.set_num_threads(1)
    start = time.process_time()
    results = [r for seed in SEEDS for r in compare(world=World(seed=seed))]
    results.sort(key=lambda r: list(RELATIONS).index(r.relation))
    took = time.process_time() - start
    head = ["relation", "method", *SCORES, "gap", *(name.removesuffix(" data") for name in PARTS)]
    table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows(results)]
    world = World()
    about = (
        f"Means over {len(SEEDS)} worlds of {world.superclasses} superclasses with {world.classes} classes "
        f"of {world.points} training points each ({world.wrong:.0%} of the labels are false); {took:.0f} s "
        "of processor time."
    )
    text = "\n".join([HEAD, about, "", *table, TAIL.rstrip(), ""])
    PAGE.write_text(text, encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
