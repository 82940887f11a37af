"""One trial of a search: train → calibrate → measure the selection split. No attack, no generated text.

The models go when the trial is done: what stays is `trial.json` and the training log. A killed trial goes on
from its last checkpoint, a trained one is not trained again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.controls.bar import Bar, Probe
from expunge.controls.paths import path_of
from expunge.controls.uwc import UWC
from expunge.data.records import Record
from expunge.errors import ExpungeError, InputError
from expunge.evidence import Evidence
from expunge.measure import EvidencePlan, take_evidence
from expunge.metrics.base import Metric, Score
from expunge.runs import stages
from expunge.runs.folder import remove, write_json
from expunge.runs.models import Shelf
from expunge.runs.prepare import Job
from expunge.subjects import Subject

__all__ = ["Course", "run_trial"]

SPLIT = "forget_hard"
"""The selection split is of this kind: forget knowledge, asked differently."""

FORGOTTEN = 0.01
"""Share of the original's forget score that must be gone for anything to count as forgotten."""


@dataclass(frozen=True)
class Course:
    """What all trials of a search share: the bar, the objective and the records it is measured on."""

    bar: Bar
    objective: Metric
    selection: Sequence[Record]
    forget_original: float
    seed: int

    @property
    def better(self) -> str:
        return self.objective.better(SPLIT)

    def forget(self, subject: Subject) -> Score:
        """The objective on the selection split."""
        return self.measure(subject, SPLIT, self.selection, self.objective)

    def measure(self, subject: Subject, split: str, records: Sequence[Record], metric: Metric) -> Score:
        plan = EvidencePlan(tuple(dict.fromkeys(("gold", *metric.reads))), generate=False)
        evidence = take_evidence(subject, {split: records}, plan=plan, name=f"the trial on {split}")
        return metric.score(evidence, split, seed=self.seed)


def run_trial(
    folder: Path, job: Job, shelf: Shelf, original: Mapping[str, Evidence], course: Course, uwc: UWC
) -> dict[str, Any]:
    """Fill `folder` with `trial.json`: {status, score, alpha, …}; returns what the trial cost."""
    done = folder / "trial.json"
    if done.is_file():  # killed between this and the end of the stage
        return dict(stages.load_json(done)["cost"])
    cost: dict[str, Any] = {"tokens": 0, "flops": 0, "seconds": 0.0}
    try:
        cost = _train(folder, job, shelf, original)
        began = time.monotonic()
        result = _judge(folder, job, shelf, original, course, replace(uwc, taus=()))
        cost["seconds"] += time.monotonic() - began
    except ExpungeError as error:  # these settings with this method, control or data
        reason = " ".join(str(error).split())
        refused = "refused" if isinstance(error, InputError) else "failed"
        result = {"status": "diverged" if "non-finite" in reason else refused, "reason": reason}
    write_json(done, {**result, "cost": cost})
    for name in ("model", "work", "cost.json", "training/adapter", "training/checkpoint"):
        remove(folder / name)
    return cost


def _train(folder: Path, job: Job, shelf: Shelf, original: Mapping[str, Evidence]) -> dict[str, Any]:
    """θ_u in `folder/model`; the cost is kept beside it for a trial that is killed later."""
    kept = folder / "cost.json"
    if not kept.is_file():
        began = time.monotonic()
        cost = stages.unlearn(folder, job, shelf, original)
        write_json(kept, {**cost, "seconds": time.monotonic() - began})
    return dict(stages.load_json(kept))


def _judge(
    folder: Path, job: Job, shelf: Shelf, original: Mapping[str, Evidence], course: Course, uwc: UWC
) -> dict[str, Any]:
    """α* under the bar, and the forget score there: what trials are ranked by."""
    facts = stages.load_json(folder / "facts.json")
    about = {
        "steps": facts["steps"],
        "moved_fraction": facts.get("moved_fraction"),
        "settings": facts["settings"],
    }
    if facts["status"] == "diverged":
        return {"status": "diverged", "reason": "; ".join(facts["notes"]), **about}
    places = {**shelf.places, "unlearned": str(folder / "model")}
    live, unlearned = shelf.load("original"), replace(shelf, places=places).load("unlearned")
    path = path_of(live, unlearned, folder / "work", folder / "training" / "adapter")
    bar, calibration = course.bar, job.request["calibration"]
    probe = Probe(live, calibration, bar.metric)
    entities = original["calibration"].entities(bar.original.per_record)
    found = uwc.calibrate(bar, lambda a: probe(path.at(a)), entities, seed=course.seed)
    star = found.found[bar.keep]
    loose, held = course.forget(path.at(1.0)), course.forget(path.at(star.alpha))
    report = job.request["report"] or calibration
    utility = course.measure(path.at(star.alpha), "report", report, bar.metric)
    return {
        "status": _status(star.alpha, held.value, course),
        "score": held.value, "low": held.low, "high": held.high, "n": held.n,
        "reason": "; ".join([*([held.reason] if held.reason else []), *facts["notes"]]),
        "forget_original": course.forget_original, "forget_uncontrolled": loose.value,
        "alpha": star.alpha, "bracket": star.bracket, "monotone": star.monotone, "passes": found.passes,
        "calibration": found.scores[star.alpha].value, "utility": utility.value,
        "warnings": list(found.warnings), **about,
    }  # fmt: skip


def _status(alpha: float, held: float | None, course: Course) -> str:
    """ok, or how the trial is degenerate; such trials are kept, and never win."""
    if held is None:
        return "failed"
    gone = course.forget_original - held if course.better == "lower" else held - course.forget_original
    if gone > FORGOTTEN * abs(course.forget_original):
        return "ok"
    return "no_effect" if alpha == 1 else "did_not_survive"
