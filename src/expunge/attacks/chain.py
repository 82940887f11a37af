"""Two attacks, one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.attacks.finetuning import FinetuningAttack
from expunge.attacks.perturbing import Perturbation, ask, sheets_of
from expunge.errors import ConfigError, Problem
from expunge.evidence import Evidence
from expunge.subjects.subject import Subject

PAIRS = (("rtt", "lens"), ("benign", "prefill"), ("quantize", "prompts"), ("quantize", "lens"))
INJECTED = "its first attack trains on the scored answers: shown for comparison, no leak by itself"


@ATTACKS.register(
    "chain",
    threat="fine-tune",
    kind="weights",
    injects="related facts",
    tier=2,
    profiles=["deep"],
    budget="4 pairs of a weight attack and another attack, each as far as in a quick audit",
    source="Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True, kw_only=True)
class Chain(Attack):
    """Attack the weights, then attack what came out of it by another attack: relearn and read, round and ask.

    Each pair gives the outcomes of its first attack alone (the changed model, asked directly), of its second
    alone, and of both, on the same records: the worst of a chain is never below one of its parts. Outcomes
    of the second attack that score only some of the records are left out. `settings`: attack → its settings.
    """

    pairs: tuple[tuple[str, str], ...] = PAIRS
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"rtt": {"folds": 2}})

    def missing(self, field: Field) -> str | None:
        reasons = [self._lacking(pair, field) for pair in self.pairs]
        return "; ".join(dict.fromkeys(filter(None, reasons))) if all(reasons) else None

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("weights", "logprobs", what="the attack chain")
        near = replace(field, profile="quick")
        seen: set[str] = set()
        for pair in self.pairs:
            if self._lacking(pair, field) is None:
                for outcome in self._linked(pair, subject, near):
                    key = json.dumps(dict(outcome.config), sort_keys=True)
                    if key not in seen:  # two pairs may share a part
                        seen.add(key)
                        yield outcome

    def _lacking(self, pair: tuple[str, str], field: Field) -> str | None:
        """Why this pair cannot be run here; None when it can."""
        for attack in map(self._made, pair):
            lacking = [p for p in attack.card.fields.get("peers", ()) if p not in field.peers]
            if lacking:
                return f"{attack.name} compares with the {' and the '.join(lacking)}, and there is none"
            if reason := attack.missing(field):
                return f"{attack.name}: {reason}"
        return None

    def _made(self, name: str) -> Attack:
        attack: Attack = ATTACKS.make(name, **self.settings.get(name, {}))
        return attack

    def _linked(self, pair: tuple[str, str], subject: Subject, field: Field) -> Iterator[Outcome]:
        first, second = map(self._made, pair)
        injected = INJECTED if first.card.fields["injects"] == "the answer" else ""
        for outcome in _whole(second.run(subject, field), field):
            yield replace(outcome, config={"then": second.name, **outcome.config}, step=None, covers=False)
        for config, parts in changed_models(first, subject, field):
            found: dict[str, list[Outcome]] = {}
            for work, asked in parts:
                direct = Outcome({}, ask(work, sheets_of(work, asked)))
                then = [
                    replace(o, config={"then": second.name, **o.config})
                    for o in _whole(second.run(work, asked), asked)
                ]
                for outcome in (direct, *then):
                    found.setdefault(json.dumps(dict(outcome.config), sort_keys=True), []).append(outcome)
            for outcomes in found.values():
                whole = _merged(outcomes, {"first": first.name, **config})
                yield replace(whole, aside=injected or whole.aside)


def changed_models(
    attack: Attack, subject: Subject, field: Field
) -> Iterator[tuple[Mapping[str, Any], Iterable[tuple[Subject, Field]]]]:
    """For each configuration of a weight attack its changed models, each with the records to ask it about.

    Raises ConfigError for an attack that changes no weights.
    """
    if isinstance(attack, Perturbation):
        for config, work, _ in attack.changed(subject, field):
            yield config, [(work, field)]
    elif isinstance(attack, FinetuningAttack):
        for config, trained in attack.trained(subject, field):
            yield config, ((work, _asking(field, trial.scored)) for work, trial in trained)
    else:
        what, fix = f"{attack.name} changes no weights", "Begin with rtt, benign, quantize, prune or noise"
        raise ConfigError(Problem("attack 'chain'", what, fix))


def _asking(field: Field, scored: Mapping[str, Sequence[Any]]) -> Field:
    """The field with only these records to score."""
    request = field.request
    splits = {s: records for s, records in request.splits.items() if s not in ("forget", "holdout")}
    splits |= {split: tuple(records) for split, records in scored.items() if records}
    return replace(field, request=replace(request, splits=splits))


def _whole(outcomes: Iterable[Outcome], field: Field) -> Iterator[Outcome]:
    """The outcomes that score every record, and those with a score of their own."""
    wanted = {r.id for r in field.request.forget}
    for outcome in outcomes:
        rows = outcome.evidence.get("forget", ())
        if outcome.values or {outcome.sources.get(r.record_id, r.record_id) for r in rows} == wanted:
            yield outcome


def _merged(outcomes: Sequence[Outcome], before: Mapping[str, Any]) -> Outcome:
    """The outcomes of one configuration over parts of the records, as one."""
    last = outcomes[-1]
    splits = dict.fromkeys(s for o in outcomes for s in o.evidence)
    evidence = {
        s: Evidence(s, [row for o in outcomes if s in o.evidence for row in o.evidence[s]]) for s in splits
    }
    values: dict[str, dict[str, float]] = {}
    for outcome in outcomes:
        for split, found in outcome.values.items():
            values.setdefault(split, {}).update(found)
    return Outcome(
        {**before, **last.config},
        evidence,
        sources={row: source for o in outcomes for row, source in o.sources.items()},
        details=last.details,
        values=values,
        metric=last.metric,
        aside=last.aside,
    )
