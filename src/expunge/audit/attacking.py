"""Running attacks: per-record scores of the attacked model, as plain data that is kept and compared later."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from expunge.attacks import ATTACKS, Attack, Field
from expunge.audit.recovery import strongest
from expunge.evidence import Evidence
from expunge.metrics import make_metric
from expunge.subjects.subject import Subject

__all__ = ["ATTACK_METRICS", "PROFILES", "attack_plan", "make_attack", "out_of_reach", "run_attack"]

ATTACK_METRICS = ("extraction_strength", "probability")

PROFILES: Mapping[str, Sequence[str]] = {
    "quick": ("benign", "prefill", "quantize", "rtt", "worst_case"),
    "default": ("benign", "prefill", "quantize", "relearn", "rtt", "worst_case"),
    "deep": ("benign", "prefill", "quantize", "relearn", "rtt", "worst_case"),
}
"""The attacks of each profile; how far each one goes is its own business (see its file)."""


def make_attack(name: str, settings: Mapping[str, Any] | None = None) -> Attack:
    attack: Attack = ATTACKS.make(name, **(settings or {}))
    return attack


def attack_plan(audit: str | Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """(attack name, settings) pairs of a profile or of an explicit list."""
    if isinstance(audit, str):
        return [(name, {}) for name in PROFILES[audit]]
    return [(name, dict(settings)) for name, settings in audit]


def out_of_reach(attack: Attack, can: Collection[str]) -> str | None:
    """Why this attack cannot be made on a model that answers no more than `can`; None when it can."""
    needs = "weights" if attack.card.fields["kind"] in ("weights", "read-out") else "logprobs"
    return None if needs in can else f"it needs {needs}, the model gives {', '.join(sorted(can))}"


def run_attack(attack: Attack, subject: Subject, field: Field) -> list[dict[str, Any]]:
    """One entry per outcome: config, step, details, and {split: {metric: {record: value}}} with `entities`.

    Where several rows stand for one record (`sources`), its value is the maximum over them. Whoever attacks
    the weights holds them, and takes a wrapper off first.
    """
    entries = []
    target = subject.unwrapped() if attack.card.fields["kind"] == "weights" else subject
    about = {} if target is subject else {"attacked": "the model behind the wrapper"}
    for outcome in attack.run(target, field):
        scores: dict[str, dict[str, dict[str, float]]] = {}
        entities: dict[str, dict[str, int]] = {}
        for split, evidence in outcome.evidence.items():
            scores[split], entities[split] = {}, _entities(evidence, outcome.sources)
            for name in ATTACK_METRICS:
                score = make_metric(name).score({split: evidence}, split)
                scores[split][name] = strongest(score.per_record, outcome.sources)
        entries.append(
            {
                "config": dict(outcome.config),
                "step": outcome.step,
                "details": {**outcome.details, **about},
                "scores": scores,
                "entities": entities,
            }
        )
    return entries


def _entities(evidence: Evidence, sources: Mapping[str, str]) -> dict[str, int]:
    """record → number of its entity; names have no business in a result."""
    numbers: dict[str, int] = {}
    found = {}
    for record, entity in evidence.entity_of.items():
        found[sources.get(record, record)] = numbers.setdefault(entity or f"record:{record}", len(numbers))
    return found
