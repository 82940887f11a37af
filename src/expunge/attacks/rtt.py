"""Held-out relearning: teach some forget facts, score the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from expunge.attacks.base import ATTACKS, Field, Profile
from expunge.attacks.finetuning import Arm, FinetuningAttack, Trial
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.stats import seed_from

MIN_ENTITIES = 4
"""With fewer entities the records themselves are divided."""

FOLDS = {"quick": 1, "default": 2, "deep": 5}


class Fold(NamedTuple):
    """T, the facts that are taught, and E, the facts that are scored."""

    train: tuple[Record, ...]
    scored: tuple[Record, ...]


@ATTACKS.register(
    "rtt",
    threat="fine-tune",
    kind="weights",
    injects="related facts",
    tier=1,
    profiles=["quick", "default", "deep"],
    budget="2 folds × 3 rates × 50 steps × 2 seeds (quick: 1 × 1 × 20; deep: 5 folds, 100 steps, 3 seeds)",
    source="Deeb and Roger 2024, arXiv 2410.08827",
)
@dataclass(frozen=True, kw_only=True)
class RetrainOnT(FinetuningAttack):
    """Fine-tune on a part T of the forget facts and score the rest E: whatever E gains, the weights had held.

    E and T share no entity and no answer, so nothing about E is injected but its format. Over all folds each
    fact is scored once, by a model that was not taught it; a quick audit runs one fold of two.
    """

    SWEEPS: ClassVar[Mapping[Profile, tuple[Arm, ...]]] = {
        "default": (Arm(), Arm(seed=1)),
        "deep": (Arm(), Arm(seed=1), Arm(seed=2)),
    }

    folds: int = 0  # 0: the profile's

    def missing(self, field: Field) -> str | None:
        if self._folds(field):
            return None
        return "the forget facts cannot be divided into two parts that share no answer"

    def trials(self, field: Field) -> Sequence[Trial]:
        chosen = self._folds(field)
        holdout = field.scored().get("holdout", ())
        trials = []
        for i, fold in enumerate(chosen):
            taught = _answers(fold.train)
            placebo = [r for r in holdout[i :: len(chosen)] if normalized(r.answer) not in taught]
            trials.append(Trial(fold.train, {"forget": fold.scored, "holdout": placebo}))
        return trials

    def _folds(self, field: Field) -> list[Fold]:
        wanted = self.folds or FOLDS[field.profile]
        return split_facts(field.request.forget, wanted, field.seed)[:wanted]


def split_facts(records: Sequence[Record], folds: int, seed: int = 0) -> list[Fold]:
    """Divide facts into max(2, folds) parts; fold k scores part k and teaches the others.

    Parts are made of whole entities (of records, where there are fewer than four entities); two entities of
    which one is named in an answer about the other stay together. A fact whose answer is also scored is not
    taught. Folds with nothing to teach or nothing to score are left out. Deterministic in `seed`.
    """
    units = _units(records)
    names = list(dict.fromkeys(units))
    parts = min(max(2, folds), len(names))
    if parts < 2:
        return []
    order = np.random.default_rng(seed_from(seed, "rtt")).permutation(len(names))
    part = {names[unit]: place % parts for place, unit in enumerate(order)}
    found = []
    for k in range(parts):
        scored = tuple(r for r, unit in zip(records, units, strict=True) if part[unit] == k)
        known = _answers(scored)
        rest = (r for r, unit in zip(records, units, strict=True) if part[unit] != k)
        found.append(Fold(tuple(r for r in rest if normalized(r.answer) not in known), scored))
    return [fold for fold in found if fold.train and fold.scored]


def _answers(records: Iterable[Record]) -> set[str]:
    return {normalized(r.answer) for r in records}


def _units(records: Sequence[Record]) -> list[str]:
    """For each record the name of what it must not be separated from."""
    entities = list(dict.fromkeys(r.entity for r in records if r.entity))
    if len(entities) >= MIN_ENTITIES:
        group = _linked(records, entities)
        units = [group[r.entity] if r.entity else f"record:{r.id}" for r in records]
        if len(set(units)) > 1:
            return units
    return [f"record:{r.id}" for r in records]


def _linked(records: Sequence[Record], entities: Sequence[str]) -> dict[str, str]:
    """Entity → the first entity of its group; an answer that names another entity joins the two."""
    group = {name: name for name in entities}
    named = {e: re.compile(rf"\b{re.escape(e)}\b", re.I) for e in entities if any(map(str.isalpha, e))}
    for record in records:
        for other, pattern in named.items():
            if record.entity and group[other] != group[record.entity] and pattern.search(record.answer):
                old, new = group[other], group[record.entity]
                group = {name: new if head == old else head for name, head in group.items()}
    return group
