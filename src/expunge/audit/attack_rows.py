"""From attacked scores to rows: recovery per configuration, the worst of each sweep, relearning curves."""

from __future__ import annotations

import json
import math
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


def attack_rows(
    name: str, results: Mapping[str, Entries], direct: Direct
) -> tuple[list[AttackRow], list[CurvePoint]]:
    """The rows of one attack (one per configuration, and the worst of them) and its curves over steps."""
    configs: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for model, entries in results.items():
        for entry in entries:
            key = json.dumps(entry["config"], sort_keys=True)
            configs.setdefault(key, {}).setdefault(model, []).append(entry)
    if not configs:
        return [], []
    rows = [_row(name, json.loads(key), models, direct) for key, models in configs.items()]
    if first_covers_all(configs):
        # its first outcome is the maximum over the others
        rows[0] = rows[0].model_copy(update={"worst": True})
    elif len({row.metric for row in rows}) > 1:  # no maximum over scores of different kinds
        top = max(range(len(rows)), key=lambda i: -math.inf if (r := rows[i].recovery) is None else r)
        rows[top] = rows[top].model_copy(update={"worst": True})
    elif len(rows) > 1:
        everything = {model: [e for e in entries if e["step"] != 0] for model, entries in results.items()}
        worst = _row(name, {"worst of": len(rows)}, everything, direct, timed=False)
        timed = [r for r in rows if r.ain is not None or r.excess_area is not None]
        if timed:  # the fastest configuration against the oracle's own fastest
            worst = worst.model_copy(update=_fastest(timed))
        rows.append(worst.model_copy(update={"worst": True}))
    else:
        rows[0] = rows[0].model_copy(update={"worst": True})
    curves = [point for key, models in configs.items() for point in _curve(name, key, models, direct)]
    return rows, curves


def first_covers_all(configs: Mapping[str, Mapping[str, Entries]]) -> bool:
    """Whether the first configuration stands for more records than the others: not all have every form."""
    counts = [len(next(iter(models.values()))[0]["entities"]["forget"]) for models in configs.values()]
    return len(set(counts)) > 1 and counts[0] == max(counts)


def _row(
    name: str, config: dict[str, Any], models: Mapping[str, Entries], direct: Direct, *, timed: bool = True
) -> AttackRow:
    card = ATTACKS.card(name).fields
    own_metric = next((e.get("metric", "") for entries in models.values() for e in entries), "")
    metric = own_metric or direct.metric
    tables = {
        m: [e["scores"]["forget"][metric] for e in entries if e["step"] != 0]
        for m, entries in models.items()
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
