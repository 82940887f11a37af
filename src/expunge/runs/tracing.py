"""From every number of a scorecard to the stored rows it was computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from expunge.audit.scorecard import AttackRow, Scorecard, ScoreRow
from expunge.errors import ConfigError, Problem, nearest
from expunge.evidence import Evidence, read_evidence
from expunge.metrics import make_metric
from expunge.runs.notes import read_json
from expunge.runs.stages import read_splits

__all__ = ["Trace", "trace", "traced"]

STAGES = {"original": "baseline", "oracle": "baseline", "unlearned": "measure", "controlled": "measure"}


@dataclass(frozen=True)
class Trace:
    """A number, the file it comes from, its parts by record, and the same computed from them again."""

    name: str
    file: str
    told: float | None
    again: float | None
    records: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float | None, float | None] = (None, None)


def traced(card: Scorecard, run: Path) -> Scorecard:
    """The scorecard with the file behind each score and each attack row, relative to the run folder."""
    scores = [row.model_copy(update={"evidence": _evidence_of(row, run)}) for row in card.scores]
    attacks = [
        row.model_copy(update={"evidence": f"attack/{row.attack}-controlled/result.json"})
        for row in card.attacks
    ]
    return card.model_copy(update={"scores": scores, "attacks": attacks})


def _evidence_of(row: ScoreRow, run: Path) -> str:
    folder = Path(run) / STAGES[row.model] / row.model
    found = sorted(folder.glob(f"{row.split}-*.parquet"))
    return found[0].relative_to(run).as_posix() if found else ""


def trace(run: Path, name: str) -> list[Trace]:
    """What stands behind METRIC/SPLIT/MODEL, or behind the rows of an attack.

    Raises ConfigError where the scorecard has no such number, or its evidence is gone.
    """
    run = Path(run)
    card = Scorecard.read(run / "scorecard.json")
    scores = {f"{r.metric}/{r.split}/{r.model}": r for r in card.scores}
    if row := scores.get(name):
        return [_score(run, card, row)]
    attacks = [r for r in card.attacks if r.attack == name]
    if attacks:
        return list(_attack(run, name, attacks))
    known = [*scores, *sorted({r.attack for r in card.attacks})]
    raise ConfigError(Problem(f"--why {name}", "is no number of this scorecard", nearest(name, known)))


def _score(run: Path, card: Scorecard, row: ScoreRow) -> Trace:
    if not row.evidence or not (run / row.evidence).is_file():
        what = f"the evidence of {row.metric}/{row.split}/{row.model} is gone"
        raise ConfigError(Problem(str(run / (row.evidence or row.model)), what, "It was purged, or moved"))
    models: dict[str, dict[str, Evidence]] = {}
    for model, stage in STAGES.items():
        if (run / stage / model).is_dir():
            models[model] = read_splits(run / stage / model)
    models[row.model][row.split] = read_evidence(run / row.evidence)
    peers: dict[str, Any] = {"original": models.get("original"), "oracle": models.get("oracle")}
    seed = int(card.provenance.get("seed", 0))
    score = make_metric(row.metric).score(models[row.model], row.split, **peers, seed=seed)
    name = f"{row.metric}/{row.split}/{row.model}"
    return Trace(name, row.evidence, row.value, score.value, score.per_record, (score.low, score.high))


def _attack(run: Path, name: str, rows: list[AttackRow]) -> Iterator[Trace]:
    """One trace for each configuration: the controlled model's score, from the stored results."""
    for row in rows:
        file = run / row.evidence
        entries = read_json(file)
        if not isinstance(entries, list):
            what = f"the results of {name} are gone"
            raise ConfigError(Problem(str(file), what, "They were purged, or moved"))
        here = [
            e["scores"]["forget"][row.metric]
            for e in entries
            if row.metric in e["scores"].get("forget", {})
            and e["step"] != 0
            and ("worst of" in row.config or e["config"] == row.config)
        ]
        if here:
            best = max(here, key=lambda table: float(np.mean(list(table.values()))))
            again = float(np.mean(list(best.values())))
            yield Trace(f"{name} {row.config}", row.evidence, row.controlled, again, best)
