"""One cell, in a process of its own: a run for each τ over one training, and what they found as one file.

    python -m expunge.runs.bench.cell SPEC FOLDER

Exit code 0: the cell's file stands in FOLDER, finished or failed with its reason.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import expunge
from expunge.audit.scorecard import CostRow, Scorecard, ScoreRow
from expunge.controls.bar import is_met
from expunge.errors import ExpungeError, InputError
from expunge.reports.files import write_text
from expunge.reports.leaderboard_schema import (
    AttackScore,
    Cell,
    CellCost,
    Controlled,
    CurvePoint,
    Measured,
    Scores,
)
from expunge.runs.bench.engines import ATTEMPT, end_with_parent
from expunge.runs.bench.grid import Spec, profile_of
from expunge.runs.folder import now
from expunge.runs.pipeline import Pipeline
from expunge.runs.stages import load_json

__all__ = ["compute", "main"]

STRENGTH, PARAPHRASED = "extraction_strength", "extraction_strength_paraphrase"

FACETS = {
    "forgetting": ((STRENGTH, "forget_hard"), (STRENGTH, "forget")),
    "utility": (
        ("model_utility", "report"), (STRENGTH, "utility"), (STRENGTH, "neighbors"), (STRENGTH, "report"),
    ),
    "privacy": (("privacy_leak", "forget"), ("mia_min_k_plus_plus", "forget")),
}  # fmt: skip
"""The score that stands for a facet: the first that was measured."""


def compute(spec: Spec, folder: Path) -> Cell:
    """Run the cell and write its file; a failure that is none of expunge's is raised."""
    began = time.monotonic()
    cards: list[Scorecard] = []
    settings: dict[str, Any] = {}
    reason = ""
    try:
        for tau in spec.taus:
            run = folder / "runs" / f"{spec.name}--{tau:g}"
            pipeline = Pipeline(spec.recipe(tau, run), new=True)
            card = pipeline.run().scorecard
            assert card is not None
            settings = in_force(pipeline)
            cards.append(card)
    except ExpungeError as error:
        problems = error.problems if isinstance(error, InputError) else [error]
        reason = "; ".join(" ".join(str(problem).split()) for problem in problems)
    known = told(cards) if cards else {}
    cell = Cell(
        benchmark=spec.benchmark, part=spec.part, method=spec.method, seed=spec.seed, key=spec.key,
        status="failed" if reason else "ok", reason=reason, settings=settings, taus=list(spec.taus),
        created=now(), expunge_version=expunge.__version__, attempts=int(os.environ.get(ATTEMPT, "1")),
        profile=profile_of(spec.recipe(spec.taus[0])), **known, wall=time.monotonic() - began,
    )  # fmt: skip
    write_text(folder / "cells" / f"{spec.name}.json", cell.model_dump_json(indent=1) + "\n")
    return cell


def in_force(pipeline: Pipeline) -> dict[str, Any]:
    """The method's own settings, those of its training, and the axes that are not the default."""
    recipe, train = pipeline.recipe, pipeline.job.train
    axes = recipe.model_dump(
        mode="json", exclude_defaults=True, include={"adapter", "lora", "reference", "transform", "selection"}
    )
    during = [c.model_dump(mode="json") for c in recipe.control if c.name != "uwc"]
    own = load_json(pipeline.unlearned / "facts.json")["settings"]
    left_out = {"seed", "checkpoint_seconds", "report_to", "log_every"}
    more = {"control": during} if during else {}
    return {**own, **axes, **more, "train": train.model_dump(mode="json", exclude=left_out)}


# From scorecards to a cell ----------------------------------------------------------------------------


def told(cards: Sequence[Scorecard]) -> dict[str, Any]:
    """What the scorecards of a cell say: the first one for all but the rows under each bar."""
    card = cards[0]
    known = {name: str(model.get("fingerprint", "")) for name, model in card.models.items()}
    return {
        "bar_metric": card.control[0].metric if card.control else "",
        "environment": _environment(card.provenance),
        "original_fingerprint": known.get("original", ""),
        "oracle_fingerprint": known.get("oracle", ""),
        "calibration_fingerprint": card.control[0].calibration_fingerprint if card.control else "",
        "cost": _training(card),
        "original": _scores(card, "original"),
        "oracle": _scores(card, "oracle") if "oracle" in known else None,
        "uncontrolled": _scores(card, "unlearned", _efficiency(_training(card))),
        "controlled": [_controlled(card) for card in cards],
        "curve": _curve(cards),
    }


def _environment(provenance: dict[str, Any]) -> dict[str, str]:
    versions = provenance.get("versions", {})
    said = {name: provenance.get(name) for name in ("python", "machine", "device", "threads")}
    said |= {name: versions.get(name) for name in ("torch", "transformers")}
    return {name: str(value) for name, value in said.items() if value is not None}


def _scores(card: Scorecard, model: str, efficiency: Measured | None = None) -> Scores:
    """By extraction strength, unless the bar had to be by probability: then the original has no strength."""
    bar = card.control[0].metric if card.control else STRENGTH
    exact = bar if bar == "probability" else STRENGTH
    facets = {facet: _first(card, pairs, model) for facet, pairs in FACETS.items()}
    return Scores(
        retain=_measured(card, exact, "report", model), forget=_measured(card, exact, "forget", model),
        retain_paraphrased=_measured(card, PARAPHRASED, "report", model),
        forget_paraphrased=_measured(card, PARAPHRASED, "forget", model),
        facets={
            **{facet: found for facet, found in facets.items() if found},
            **({"efficiency": efficiency} if efficiency else {}),
        },
    )  # fmt: skip


def _measured(card: Scorecard, metric: str, split: str, model: str) -> Measured:
    row = card.score(metric, split, model)
    if row is None:
        lacks = "no rewordings" if metric == PARAPHRASED else "no such score"
        return Measured(reason=lacks, metric=metric, split=split)
    return _of_row(row)


def _of_row(row: ScoreRow) -> Measured:
    named = {"metric": row.metric, "split": row.split, "better": row.better}
    return Measured(value=row.value, low=row.low, high=row.high, n=row.n, reason=row.reason, **named)


def _first(card: Scorecard, pairs: Sequence[tuple[str, str]], model: str) -> Measured | None:
    rows = [row for metric, split in pairs if (row := card.score(metric, split, model))]
    best = next((row for row in rows if row.value is not None), rows[0] if rows else None)
    return _of_row(best) if best else None


def _controlled(card: Scorecard) -> Controlled:
    record, worst = card.control[0] if card.control else None, _worst(card)
    cost = _held(card)
    scores = _scores(card, "controlled", _efficiency(cost))
    facets = dict(scores.facets)
    if worst:
        named = {"metric": "recovery", "split": "forget", "better": "lower"}
        facets["robustness"] = Measured(
            value=worst.recovery, low=worst.low, high=worst.high, reason=worst.reason, **named
        )
    return Controlled(
        **{**scores.model_dump(), "facets": facets}, tau=card.verdict.tau,
        alpha=record.alpha if record else None, met=_met(card), verdict=card.verdict.word,
        worst_attack=worst, cost=cost, flags=_flags(card),
    )  # fmt: skip


def _met(card: Scorecard) -> bool | None:
    """Whether the shipped model holds the bar on calibration."""
    record = card.control[0] if card.control else None
    if record is None or record.original_value is None:
        return None
    return is_met(record.value, record.original_value, record.tau, record.better)


def _flags(card: Scorecard) -> list[str]:
    marked = [flag.name for flag in card.flags if flag.model == "controlled"]
    return list(dict.fromkeys([*marked, *card.verdict.modifiers]))


def _worst(card: Scorecard) -> AttackScore | None:
    name = card.verdict.worst_attack
    tried = [row for row in card.attacks if row.worst]
    if name is None:
        reasons = "; ".join(dict.fromkeys(row.reason for row in tried if row.reason))
        return AttackScore(name=tried[0].attack, reason=reasons) if tried else None
    rows = [row for row in tried if row.attack == name and row.recovery is not None]
    row = max(rows, key=lambda row: row.recovery or 0.0, default=None)
    ends = {"low": row.low, "high": row.high} if row else {}
    return AttackScore(name=name, recovery=card.verdict.worst_recovery, **ends)


def _training(card: Scorecard) -> CellCost:
    """Of the unlearning alone."""
    stage = next((row for row in card.cost if row.stage == "unlearn"), None)
    if stage is None:
        return CellCost()
    retraining = next((row.wall for row in card.cost if row.stage in ("oracle", "benchmark: oracle")), 0.0)
    share = {"ratio_to_retraining": stage.wall / retraining, "ratio_basis": "measured"} if retraining else {}
    return CellCost(wall=stage.wall, tokens=stage.tokens, flops=stage.flops, **share)


def _held(card: Scorecard) -> CellCost:
    """Of control, measuring and attacks under this bar; the ratio is that of training and control."""

    def ours(row: CostRow) -> bool:
        name = row.stage
        return name in ("control", "measure/controlled") or (
            name.startswith("attack/") and name.endswith("-controlled")
        )

    wall = sum(row.wall for row in card.cost if ours(row))
    ratio, basis = card.ratio_to_retraining, card.ratio_basis
    return CellCost(wall=wall, ratio_to_retraining=ratio, ratio_basis=basis)


def _efficiency(cost: CellCost) -> Measured | None:
    if cost.ratio_to_retraining is None:
        return None
    return Measured(value=cost.ratio_to_retraining, metric="ratio_to_retraining", better="lower")


def _curve(cards: Sequence[Scorecard]) -> list[CurvePoint]:
    """The α-curve; every bar adds the points where it was settled."""
    points: dict[float, dict[str, float | None]] = {}
    names = {"calibration": "retain", "forget": "forget"}
    for point in (point for card in cards for point in card.alpha_curve):
        if point.split in names:
            points.setdefault(point.alpha, {}).setdefault(names[point.split], point.value)
    for record in (record for card in cards for record in card.control):
        for alpha, value, _ in record.probes:
            points.setdefault(alpha, {}).setdefault("retain", value)
    return [CurvePoint(alpha=alpha, **known) for alpha, known in sorted(points.items())]


# The process ------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    end_with_parent()
    spec, folder = arguments
    compute(Spec.loaded(spec), Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
