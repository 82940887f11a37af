"""`expunge study`: which metric ranks models the same way before and after an attack?

Every model of some finished runs is measured, attacked and measured again, on forget and on report apart. A
metric that an attack scrambles is no ground to choose a model or an α by; one that keeps its order is (Wang
et al. 2025, arXiv 2406.09179).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import expunge
from expunge.attacks import ATTACKS, Attack, Field
from expunge.attacks.chain import changed_models
from expunge.data.records import Record
from expunge.errors import ConfigError, NotComputable, Problem
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics import METRICS, compute
from expunge.metrics.robustness import metric_robustness
from expunge.progress import say
from expunge.registry import Registry
from expunge.reports.files import write_text
from expunge.reports.study import study_page
from expunge.runs.finished import Finished, open_run
from expunge.runs.folder import code_version, hash_of, now, write_json
from expunge.runs.models import set_threads
from expunge.runs.notes import read_json
from expunge.subjects.subject import Subject

__all__ = ["study"]

METRIC_NAMES = ("extraction_strength", "exact_memorization", "probability", "nll", "truth_ratio_true_better")
ATTACK_NAMES = ("prompts", "lens", "quantize", "relearn")
SIDES = ("forget", "report")
VARIANTS = ("gold", "paraphrased_answer", "perturbed")
PEERS: tuple[str, ...] = ("original", "oracle")
MODELS = ("original", "unlearned", "controlled", "oracle")


@dataclass(frozen=True)
class _Model:
    """One model of one run; original and oracle stand for themselves, whichever run they came from."""

    run: Finished
    name: str
    mark: str

    @property
    def label(self) -> str:
        return self.name if self.name in ("original", "oracle") else f"{self.run.name} {self.name}"


def study(
    runs: Sequence[Path],
    output: Path,
    *,
    metrics: Sequence[str] = (),
    attacks: Sequence[str] = (),
) -> Path:
    """Write study.json and study.html into `output`; returns the page's path.

    A model that was attacked and measured is not attacked again: a stopped study goes on. Raises ConfigError
    on what is no finished run, on unknown names, and where the runs score other records.
    """
    names, tried = tuple(metrics) or METRIC_NAMES, tuple(attacks) or ATTACK_NAMES
    _check_names(names, tried)
    finished = [open_run(run) for run in runs]
    _check_alike(finished)
    models = list(_models(finished))
    output = Path(output)
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for number, model in enumerate(models, start=1):
        for attack in (None, *tried):
            cells[model.mark, attack or ""] = _cell(output, model, attack, names, f"[{number}/{len(models)}]")
    data = _result(models, names, tried, cells)
    write_json(output / "study.json", data)
    return write_text(output / "study.html", study_page(data))


def _check_names(metrics: Sequence[str], attacks: Sequence[str]) -> None:
    problems: list[Problem] = []
    registries: tuple[Registry[Any], ...] = (METRICS, ATTACKS)
    for registry, names in zip(registries, (metrics, attacks), strict=True):
        for name in names:
            try:
                registry.card(name)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)


def _check_alike(runs: Sequence[Finished]) -> None:
    """Points of other records have no place in one plot."""
    first = runs[0]
    for run in runs[1:]:
        for split in SIDES:
            if [r.id for r in run.request[split]] != [r.id for r in first.request[split]]:
                what = f"scores other {split} records than {first.path}"
                raise ConfigError(Problem(str(run.path), what, "Study runs of one request"))


def _models(runs: Sequence[Finished]) -> Iterator[_Model]:
    """Every model once, however many runs share it."""
    seen: set[str] = set()
    for name in MODELS:
        for run in runs:
            if name in run.shelf.places:
                mark = run.shelf.load(name).fingerprint()
                if mark not in seen:
                    seen.add(mark)
                    yield _Model(run, name, mark)


def _cell(output: Path, model: _Model, attack: str | None, metrics: Sequence[str], at: str) -> dict[str, Any]:
    """{side: {metric: value}} of one model after one attack (None: before), kept by its key."""
    job = model.run.job
    code = code_version("attacks", "measure", "metrics", "training", "explain", "interventions")
    field = Field(job.request, "quick", model.run.recipe.seed, lrs=tuple(job.attack_lrs), batch=16)
    key = hash_of([model.mark, attack, metrics, job.request.fingerprint(), field.lrs, field.seed, code])
    kept = output / "cells" / f"{key}.json"
    if isinstance(found := read_json(kept), dict):
        return found
    say(f"{at} {model.label}: {attack or 'before any attack'}")
    subject = model.run.shelf.load(model.name)
    set_threads(subject.num_parameters())
    shelf = model.run.shelf
    field = replace(field, peers={m: partial(shelf.load, m) for m in PEERS if m in shelf.places})
    try:
        evidence = _after(attack, subject, field)
    except NotComputable as reason:
        made: dict[str, Any] = {"reason": str(reason)}
    else:
        made = {
            side: {name: compute(name, {side: found}, side).value for name in metrics}
            for side, found in evidence.items()
        }
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, made)
    return made


def _after(name: str | None, subject: Subject, field: Field) -> dict[str, Evidence]:
    """Evidence of both sides: asked directly, or by the configuration that brings out most on forget."""
    records = {side: field.request[side] for side in SIDES if side in field.request}
    if name is None:
        return _asked(subject, records)
    attack: Attack = ATTACKS.make(name)
    if reason := attack.missing(field):
        raise NotComputable(reason)
    if attack.card.fields["kind"] == "weights":
        found = [
            _asked(work, records)
            for _, parts in changed_models(attack, subject.unwrapped(), field)
            for work, _ in parts
        ]
        return max(found, key=lambda evidence: _known(evidence["forget"]))
    outcomes = {side: _outcomes(attack, subject, field, some) for side, some in records.items()}
    best = max(outcomes["forget"], key=lambda config: _known(outcomes["forget"][config]), default=None)
    if best is None:
        raise NotComputable(f"{name} gives no evidence of its own on all records")
    return {side: found[best] for side, found in outcomes.items() if best in found}


def _asked(subject: Subject, records: Mapping[str, Sequence[Record]]) -> dict[str, Evidence]:
    sheets = {side: make_sheet(subject.encoder, some, side, VARIANTS) for side, some in records.items()}
    return {side: score_sheet(subject, sheet) for side, sheet in sheets.items()}


def _outcomes(
    attack: Attack, subject: Subject, field: Field, records: Sequence[Record]
) -> dict[str, Evidence]:
    """Configuration → evidence of these records, in the place of the forget set."""
    ids = {record.id for record in records}
    hard = tuple(r for r in field.request["forget_hard"] if r.source_id in ids)
    splits = {**field.request.splits, "forget": tuple(records), "forget_hard": hard}
    asked = replace(field, request=replace(field.request, splits=splits), variants=VARIANTS)
    found = {}
    for outcome in attack.run(subject, asked):
        rows = outcome.evidence.get("forget")
        if rows is not None and not outcome.sources and set(rows.gold) == ids:
            found[repr(sorted(outcome.config.items()))] = rows
    return found


def _known(evidence: Evidence) -> float:
    return compute("extraction_strength", {"forget": evidence}, "forget").value or 0.0


def _result(
    models: Sequence[_Model],
    metrics: Sequence[str],
    attacks: Sequence[str],
    cells: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, Any]:
    rows, points = [], []
    for attack in attacks:
        kind = "knowledge" if ATTACKS.card(attack).fields["kind"] == "weights" else "surface"
        for side in SIDES:
            for metric in metrics:
                here = [_point(m, attack, side, metric, cells) for m in models]
                here = [p for p in here if p["before"] is not None and p["after"] is not None]
                points += here
                rows.append({"attack": attack, "kind": kind, "side": side, "metric": metric, **_fit(here)})
    return {
        "created": now(),
        "expunge_version": expunge.__version__,
        "models": [{"label": m.label, "method": m.run.method, "fingerprint": m.mark} for m in models],
        "rows": rows,
        "points": points,
        "ranking": _ranking(rows, metrics),
    }


def _point(
    model: _Model, attack: str, side: str, metric: str, cells: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, Any]:
    before, after = (cells[model.mark, name].get(side, {}).get(metric) for name in ("", attack))
    named = {"attack": attack, "side": side, "metric": metric, "model": model.label}
    return {**named, "method": model.run.method, "before": before, "after": after}


def _fit(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    before, after = ([float(p[key]) for p in points] for key in ("before", "after"))
    try:
        found = metric_robustness(before, after, [p["model"] for p in points])
    except NotComputable as reason:
        return {"pearson": None, "n": len(points), "reason": str(reason)}
    low, high = found.pearson_interval or (None, None)
    return {
        "pearson": found.pearson, "low": low, "high": high, "slope": found.slope,
        "intercept": found.intercept, "n": found.n, "reason": "",
    }  # fmt: skip


def _ranking(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Metrics by their least correlation over attacks and sides, those first that have every plot.

    The slope counts for surface attacks alone: one that alters knowledge may well move every model.
    """
    ranking = []
    for metric in metrics:
        own = [r for r in rows if r["metric"] == metric and r["pearson"] is not None]
        slopes = [abs(r["slope"] - 1) for r in own if r["kind"] == "surface"]
        ranking.append(
            {
                "metric": metric,
                "worst": min((r["pearson"] for r in own), default=None),
                "mean": sum(r["pearson"] for r in own) / len(own) if own else None,
                "slope_error": sum(slopes) / len(slopes) if slopes else None,
                "cells": len(own),
                "missing": sum(r["metric"] == metric and r["pearson"] is None for r in rows),
            }
        )
    last = -2.0  # below every correlation
    return sorted(ranking, key=lambda r: (-r["missing"], last if r["worst"] is None else r["worst"]))[::-1]
