"""From attacked scores to rows: recovery per configuration, the worst of each sweep, relearning curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from expunge.attacks import ATTACKS
from expunge.audit.facts import Estimate
from expunge.audit.recovery import (
    Attacked,
    Recovery,
    ain,
    align,
    attacked,
    excess_area,
    halfway,
    recover,
    steps_to_recover,
)
from expunge.audit.scorecard import AttackRow, CurvePoint
from expunge.errors import NotComputable
from expunge.metrics.base import Score
from expunge.stats import Clusters, seed_from

__all__ = ["Direct", "attack_rows", "residual"]

Entries = Sequence[Mapping[str, Any]]
"""What `run_attack` returned for one model."""


@dataclass(frozen=True)
class Direct:
    """The unattacked scores of one metric on forget, and what stands in for the oracle."""

    metric: str
    scores: Mapping[str, Score]  # model → score on forget
    entities: Mapping[str, str]
    baseline: Literal["oracle", "placebo", "none"]
    placebo: Score | None = None  # the controlled model on the holdout
    placebo_entities: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    @property
    def base_value(self) -> float | None:
        score = self.scores.get("oracle") if self.baseline == "oracle" else self.placebo
        return score.value if score else None


def residual(direct: Direct, model: str = "controlled") -> Recovery | None:
    """The recovery of no attack at all: (M_u − M_r) / (M_o − M_r)."""
    if "original" not in direct.scores or direct.base_value is None:
        return None
    tables = {m: dict(s.per_record) for m, s in direct.scores.items()}
    base = tables.get("oracle") if direct.baseline == "oracle" else None
    against = base if base is not None else dict(direct.placebo.per_record) if direct.placebo else {}
    return _recover([tables["original"]], [tables[model]], [against], direct, own=base is not None)


def estimate(score: Score | None) -> Estimate | None:
    return None if score is None or score.value is None else Estimate(score.value, score.low, score.high)


Sweep = Mapping[str, Mapping[str, Entries]]
"""Configuration, as JSON → model → its entries."""


def attack_rows(
    name: str, results: Mapping[str, Entries], direct: Direct
) -> tuple[list[AttackRow], list[CurvePoint]]:
    """The rows of one attack (one per configuration, and the worst of them) and its curves over steps.

    The worst is a maximum over configurations, so they must be scored alike: by one metric, on the same
    records. Where an attack scores in several ways or on several sets of records, the first decides whether
    it found nothing; a further one, which may be coarser, is a worst of its own where it found something. An
    outcome that is set aside has a row and no recovery.
    """
    configs: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for model, entries in results.items():
        for entry in entries:
            key = json.dumps(entry["config"], sort_keys=True)
            configs.setdefault(key, {}).setdefault(model, []).append(entry)
    leaking = {k: m for k, m in configs.items() if not any(e.get("aside") for e in _all(m))}
    alike: dict[Any, dict[str, Mapping[str, Entries]]] = {}
    for key, models in leaking.items():
        alike.setdefault(_own_metric(models), {})[key] = models
    parts = [_sweep(name, part, direct) for sweep in alike.values() for part in _comparable(sweep)]
    rows = [row for part in parts for row in part]
    if any(row.worst and row.recovery is not None for row in (parts[0] if parts else ())):
        rows = [*parts[0], *(_found_or_not(row) for part in parts[1:] for row in part)]
    rows += [_aside_row(name, json.loads(k), m, direct) for k, m in configs.items() if k not in leaking]
    curves = [point for key, models in leaking.items() for point in _curve(name, key, models, direct)]
    return rows, curves


def _found_or_not(row: AttackRow) -> AttackRow:
    """The row, a worst of its own only where its recovery is clear of 0."""
    return row.model_copy(update={"worst": row.worst and row.low is not None and row.low > 0})


def _all(models: Mapping[str, Entries]) -> Iterator[Mapping[str, Any]]:
    return (entry for entries in models.values() for entry in entries)


def _own_metric(models: Mapping[str, Entries]) -> str:
    return next((e.get("metric", "") for e in _all(models)), "")


def _comparable(sweep: Sweep) -> list[Sweep]:
    """The sweep in parts that score the same records; whole where its first covers the others."""
    if covering(sweep):
        return [sweep]
    parts: dict[frozenset[str], dict[str, Mapping[str, Entries]]] = {}
    for key, models in sweep.items():
        scored = frozenset(next(_all(models))["entities"].get("forget", ()))
        parts.setdefault(scored, {})[key] = models
    return list(parts.values())


def _sweep(name: str, sweep: Sweep, direct: Direct) -> list[AttackRow]:
    """A row per configuration, and one of the worst: the maximum, taken again in each bootstrap draw."""
    rows = [_row(name, json.loads(key), models, direct) for key, models in sweep.items()]
    if len(rows) == 1 or covering(sweep):  # its first outcome is the maximum over the others
        return [rows[0].model_copy(update={"worst": True}), *rows[1:]]
    everything: dict[str, list[Mapping[str, Any]]] = {}
    for models in sweep.values():
        for model, entries in models.items():
            everything.setdefault(model, []).extend(e for e in entries if e["step"] != 0)
    worst = _row(name, {"worst of": len(rows)}, everything, direct, timed=False)
    timed = [r for r in rows if r.ain is not None or r.excess_area is not None]
    if timed:  # the fastest configuration against the oracle's own fastest
        worst = worst.model_copy(update=_fastest(timed))
    return [*rows, worst.model_copy(update={"worst": True})]


def covering(sweep: Sweep) -> bool:
    """Whether the first outcome says that it is the maximum over the others."""
    return bool(next(_all(next(iter(sweep.values()))), {}).get("covers"))


def _aside_row(name: str, config: dict[str, Any], models: Mapping[str, Entries], direct: Direct) -> AttackRow:
    """What each model did, without a recovery: shown for comparison, no leak by itself.

    `details["excess"]`: controlled − original with its paired interval, on the records both were scored on.
    """
    card, entry = ATTACKS.card(name).fields, next(_all(models))
    split = next(iter(entry["scores"]))
    metric = entry.get("metric") or direct.metric
    tables = {m: e[-1]["scores"][split][metric] for m, e in models.items() if e}
    means = {m: _highest([t]) for m, t in tables.items()}
    details = dict(models["controlled"][-1]["details"]) if models.get("controlled") else {}
    if "controlled" in tables and "original" in tables:
        ids, (ours, before) = align(tables["controlled"], tables["original"])
        clusters = Clusters([_entity(entry, split, i, direct) for i in ids], seed_from(direct.seed, "attack"))
        details["excess"] = [
            float((ours - before).mean()),
            *clusters.ends(clusters.ratio(ours - before)),
        ]
    return AttackRow(
        attack=name,
        config=config,
        threat=card["threat"],
        kind=card["kind"],
        injects=card["injects"],
        metric=metric,
        split=split,
        **{m: means.get(m) for m in ("original", "controlled", "oracle")},
        reason=entry["aside"],
        n=len(next(iter(tables.values()))),
        details=details,
    )


def _entity(entry: Mapping[str, Any], split: str, record: str, direct: Direct) -> str:
    return direct.entities.get(record) or f"{split}:{entry['entities'][split].get(record, record)}"


def _row(
    name: str, config: dict[str, Any], models: Mapping[str, Entries], direct: Direct, *, timed: bool = True
) -> AttackRow:
    card = ATTACKS.card(name).fields
    own_metric = _own_metric(models)
    metric = own_metric or direct.metric
    tables = {
        m: [e["scores"]["forget"][metric] for e in entries if e["step"] != 0] for m, entries in models.items()
    }
    details = dict(models["controlled"][-1]["details"]) if models.get("controlled") else {}
    row = AttackRow(
        attack=name,
        config=config,
        threat=card["threat"],
        kind=card["kind"],
        injects=card["injects"],
        metric=metric,
        line=card.get("line"),
        split="forget",
        direct=None if own_metric else direct.scores["controlled"].value,
        baseline="oracle" if direct.baseline == "oracle" else "placebo",
        details=details,
    )
    own = direct.baseline == "oracle"
    if own:
        base = tables.get("oracle", [])
    else:
        base = [
            e["scores"]["holdout"][metric]
            for e in models.get("controlled", [])
            if "holdout" in e["scores"] and e["step"] != 0
        ]
    if not tables.get("original") or not tables.get("controlled") or not base:
        lacking = "the original" if not tables.get("original") else "an oracle or holdout records"
        values = {m: _highest(t) for m, t in tables.items()}
        return row.model_copy(
            update={
                "reason": f"needs {lacking}",
                "controlled": values.get("controlled"),
                "original": values.get("original"),
            }
        )
    found = _recover(tables["original"], tables["controlled"], base, direct, own=own)
    update: dict[str, Any] = {
        "original": found.original,
        "controlled": found.controlled,
        "oracle": found.oracle,
        "leakage": found.leakage,
        "recovery": found.recovery,
        "low": found.interval.low if found.interval else None,
        "high": found.interval.high if found.interval else None,
        "reason": found.reason,
        "n": len(set(tables["controlled"][0])),
    }
    if timed and any(e["step"] for e in models["controlled"]):
        speed = _speed(models, direct)
        update |= {**speed, "details": {**details, **speed.get("details", {})}}
    return row.model_copy(update=update)


def _highest(tables: Sequence[Mapping[str, float]]) -> float | None:
    means = [float(np.mean(list(t.values()))) for t in tables if t]
    return max(means) if means else None


def _recover(
    original: Sequence[Mapping[str, float]],
    controlled: Sequence[Mapping[str, float]],
    base: Sequence[Mapping[str, float]],
    direct: Direct,
    *,
    own: bool,
) -> Recovery:
    """Worst configuration against worst configuration; `own`: the baseline was scored on the same records."""
    everything = [*original, *controlled, *(base if own else [])]
    ids, arrays = align(*everything)
    clusters = Clusters([direct.entities.get(i, i) for i in ids], seed_from(direct.seed, "attack"))
    first, second = len(original), len(original) + len(controlled)
    if own:
        third: Attacked = attacked(np.stack(arrays[second:]), clusters)
    else:
        placebo_ids, placebo = align(*base)
        names = [direct.placebo_entities.get(i, i) for i in placebo_ids]
        third = attacked(np.stack(placebo), Clusters(names, seed_from(direct.seed, "placebo")))
    return recover(
        attacked(np.stack(arrays[:first]), clusters),
        attacked(np.stack(arrays[first:second]), clusters),
        third,
    )


def _means(entries: Entries, metric: str, split: str = "forget") -> tuple[list[int], list[float]]:
    points = sorted(
        (e["step"], float(np.mean(list(e["scores"][split][metric].values()))))
        for e in entries
        if split in e["scores"]
    )
    return [s for s, _ in points], [v for _, v in points]


def _speed(models: Mapping[str, Entries], direct: Direct) -> dict[str, Any]:
    """Steps to recover halfway to the original, the excess area over the oracle's, and their ratio."""
    original = direct.scores["original"].value
    if original is None or direct.base_value is None:
        return {}
    level = halfway(original, direct.base_value)
    curves = {m: _means(entries, direct.metric) for m, entries in models.items()}
    if direct.baseline != "oracle":
        curves["oracle"] = _means(models["controlled"], direct.metric, "holdout")
    steps = {m: steps_to_recover(s, v, level) for m, (s, v) in curves.items() if s}
    update: dict[str, Any] = {"steps_to_recover": steps}
    (ours, values), (theirs, others) = curves["controlled"], curves.get("oracle", ([], []))
    if ours == theirs and ours:
        try:
            update["excess_area"] = excess_area(ours, values, others)
            found = ain(steps["controlled"], steps["oracle"], ours[-1])
            update["ain"] = found.value if found.bound != "lower" else None
            update["details"] = {"ain_bound": found.bound} if found.bound else {}
        except NotComputable:
            pass
    return update


def _fastest(rows: Sequence[AttackRow]) -> dict[str, Any]:
    """The worst case of a timed attack: the least share of the oracle's steps, the largest excess area."""
    ratios = [r.ain for r in rows if r.ain is not None]
    areas = [r.excess_area for r in rows if r.excess_area is not None]
    return {"ain": min(ratios) if ratios else None, "excess_area": max(areas) if areas else None}


def _curve(name: str, key: str, models: Mapping[str, Entries], direct: Direct) -> Iterator[CurvePoint]:
    label = ", ".join(f"{k} {v}" for k, v in json.loads(key).items())
    for model, entries in models.items():
        if model not in ("original", "controlled", "oracle") or not any(e["step"] for e in entries):
            continue
        for step, value in zip(*_means(entries, direct.metric), strict=True):
            yield CurvePoint(attack=name, config=label, model=model, step=step, value=value)
