"""Running attacks: per-record scores of the attacked model, as plain data that is kept and compared later."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from expunge.attacks import ATTACKS, Attack, Field
from expunge.audit.recovery import strongest
from expunge.metrics import make_metric
from expunge.subjects.subject import Subject

__all__ = ["ATTACK_METRICS", "attack_plan", "make_attack", "out_of_reach", "run_attack"]

ATTACK_METRICS = ("extraction_strength", "probability")

WHITE_BOX = ("white-box", "fine-tune")
"""Threats whose attacker holds the weights, and takes a wrapper off first."""


def make_attack(name: str, settings: Mapping[str, Any] | None = None) -> Attack:
    attack: Attack = ATTACKS.make(name, **(settings or {}))
    return attack


def attack_plan(audit: str | Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """(attack name, settings) pairs of a profile, as the cards say, or of an explicit list.

    How far each attack goes in a profile is its own business (see its file).
    """
    if isinstance(audit, str):
        every = ("default", "deep")
        return [(c.name, {}) for c in ATTACKS.cards() if audit in c.fields.get("profiles", every)]
    return [(name, dict(settings)) for name, settings in audit]


def out_of_reach(attack: Attack, field: Field, can: Collection[str]) -> str | None:
    """Why this attack cannot be made on a model that answers no more than `can`; None when it can."""
    if reason := attack.missing(field):
        return reason
    lacking = [peer for peer in attack.card.fields.get("peers", ()) if peer not in field.peers]
    if lacking:
        return f"it compares with the {' and the '.join(lacking)}, and there is none"
    needs = "weights" if attack.card.fields["threat"] in WHITE_BOX else "logprobs"
    return None if needs in can else f"it needs {needs}, the model gives {', '.join(sorted(can))}"


def run_attack(attack: Attack, subject: Subject, field: Field) -> list[dict[str, Any]]:
    """One entry per outcome: config, step, details, and {split: {metric: {record: value}}} with `entities`.

    Where several rows stand for one record (`sources`), its value is the maximum over them. An attack with a
    score of its own has that one instead (`metric`).
    """
    entries = []
    known = {r.id: r.entity for records in field.request.splits.values() for r in records}
    target = subject.unwrapped() if attack.card.fields["threat"] in WHITE_BOX else subject
    about = {} if target is subject else {"attacked": "the model behind the wrapper"}
    for outcome in attack.run(target, field):
        scores: dict[str, dict[str, dict[str, float]]] = {}
        entities: dict[str, dict[str, int]] = {}
        for split, evidence in outcome.evidence.items():
            entity_of = {outcome.sources.get(r, r): entity for r, entity in evidence.entity_of.items()}
            scores[split], entities[split] = {}, numbered(entity_of, entity_of)
            for name in ATTACK_METRICS:
                score = make_metric(name).score({split: evidence}, split)
                scores[split][name] = strongest(score.per_record, outcome.sources)
        for split, values in outcome.values.items():
            scores[split], entities[split] = {outcome.metric: dict(values)}, numbered(known, values)
        entries.append(
            {
                "config": dict(outcome.config),
                "step": outcome.step,
                "metric": outcome.metric,
                "covers": outcome.covers,
                "aside": outcome.aside or attack.card.fields.get("aside", ""),
                "details": {**outcome.details, **about},
                "scores": scores,
                "entities": entities,
            }
        )
    return entries


def numbered(entity_of: Mapping[str, str], records: Iterable[str]) -> dict[str, int]:
    """record → number of its entity; names have no business in a result."""
    numbers: dict[str, int] = {}
    names = ((record, entity_of.get(record) or f"record:{record}") for record in records)
    return {record: numbers.setdefault(name, len(numbers)) for record, name in names}
