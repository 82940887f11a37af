"""The part of the forget set that leaks most."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Gt, Le

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.data.records import Record
from expunge.evidence import Row
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics.extraction_strength import suffix_share
from expunge.progress import track
from expunge.stats import seed_from
from expunge.subjects.subject import Subject


class Look(NamedTuple):
    """What one half of the evidence says about a unit: what it is chosen by, and what it is scored by."""

    likely: float  # mean over rows of exp(mean log-probability)
    strength: float  # mean extraction strength


@ATTACKS.register(
    "worst_subset",
    threat="logprob",
    kind="prompts",
    injects="nothing",
    tier=1,
    profiles=["quick", "default", "deep"],
    budget="two scoring passes; the tenth of entities and of records that leaks most, by a separate half",
    source="Singh et al. 2025, arXiv 2509.02820",
)
@dataclass(frozen=True, kw_only=True)
class WorstSubset(Attack):
    """Ask about the tenth of the forget set that leaks most: an average hides what was kept whole.

    Chosen by one half of what is known of a unit and scored by the other, then the other way around, so that
    luck in the half that chose is not counted again. Units are entities (halves: their records) and records
    (halves: the question as it is, and its first rewording). Every model is judged on its own worst units, as
    many for each: what the procedure finds in a model that never saw the facts is taken off. The value of
    rank k is the mean of the two k-th units; `details` names the records that were chosen.
    """

    share: Annotated[float, Gt(0), Le(1)] = 0.1

    def missing(self, field: Field) -> str | None:
        if any(len(units) > 1 for units in _divided(field.request.forget, field.seed).values()):
            return None
        return "no two entities with two records each, and no two records with another wording"

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("logprobs", what="the attack worst_subset")
        scored = field.scored()
        with track("attack worst_subset", len(scored)) as advance:
            rows: dict[str, dict[str, Row]] = {}
            for split, records in scored.items():
                sheet = make_sheet(subject.encoder, records, split, ("gold", "paraphrased_prompt"))
                evidence = score_sheet(subject, sheet)
                rows[split] = {f"{r.record_id}/{r.variant}": r for r in evidence if r.num_answer}
                advance(1)
        divided = {split: _divided(records, field.seed) for split, records in scored.items()}
        for kind in ("entity", "record"):
            if len(divided["forget"][kind]) < 2:
                continue
            found = {
                split: worst(looks(units[kind], rows[split]), self.share)
                for split, units in divided.items()
                if len(units[kind]) > 1
            }
            values, names = found["forget"]
            chosen = [_records(half, divided["forget"][kind]) for half in names]
            yield Outcome(
                {"by": kind, "share": self.share},
                values={split: ranked for split, (ranked, _) in found.items() if ranked},
                metric="extraction_strength",
                details={"units": len(divided["forget"][kind]), "chosen": len(values), "records": chosen},
            )


Halves = tuple[tuple[str, ...], tuple[str, ...]]
"""Rows of a unit, as record/variant: one half chooses, the other is scored."""


def _divided(records: Sequence[Record], seed: int) -> dict[str, dict[str, Halves]]:
    """{"entity": {name: halves}, "record": {id: halves}}; units that have only one half are left out."""
    of: dict[str, list[str]] = {}
    for record in records:
        if record.entity:
            of.setdefault(record.entity, []).append(record.id)
    entities: dict[str, Halves] = {}
    for name, ids in of.items():
        order = np.random.default_rng(seed_from(seed, "worst_subset", *sorted(ids))).permutation(sorted(ids))
        if len(order) > 1:
            rows = [f"{i}/gold" for i in order]
            entities[name] = (tuple(rows[0::2]), tuple(rows[1::2]))
    reworded: dict[str, Halves] = {
        r.id: ((f"{r.id}/gold",), (f"{r.id}/paraphrased_prompt:0",)) for r in records if r.paraphrased_prompts
    }
    return {"entity": entities, "record": reworded}


def _records(names: Sequence[str], units: Mapping[str, Halves]) -> list[str]:
    """The ids of the records of these units: names of entities have no business in a result."""
    return sorted({row.rpartition("/")[0] for name in names for half in units[name] for row in half})


def looks(units: Mapping[str, Halves], rows: Mapping[str, Row]) -> dict[str, tuple[Look, Look]]:
    """Both halves of every unit, as the model shows them; a unit without a scored row in a half is out."""
    found = {}
    for name, halves in units.items():
        both = [[rows[key] for key in half if key in rows] for half in halves]
        if all(both):
            found[name] = (_look(both[0]), _look(both[1]))
    return found


def _look(rows: Sequence[Row]) -> Look:
    spans = [(row.logprobs[row.answer_span], row.hits[row.answer_span]) for row in rows]
    likely = np.mean([np.exp(logprobs.mean()) for logprobs, _ in spans])
    return Look(float(likely), float(np.mean([suffix_share(hits) for _, hits in spans])))


def worst(units: Mapping[str, tuple[Look, Look]], share: float) -> tuple[dict[str, float], list[list[str]]]:
    """(rank → mean score of the two units of that rank, the units chosen by either half).

    ⌈share·n⌉ of n units, by their probability in one half; scored by their extraction strength in the other.

    >>> a, b = Look(0.9, 0.8), Look(0.1, 0.0)
    >>> worst({"kept": (a, a), "gone": (b, b)}, 0.5)
    ({'rank:0': 0.8}, [['kept'], ['kept']])
    """
    if not units:
        return {}, []
    count = math.ceil(share * len(units))
    chosen = [sorted(units, key=lambda name: (-units[name][half].likely, name))[:count] for half in (0, 1)]
    scores = [[units[name][1 - half].strength for name in chosen[half]] for half in (0, 1)]
    return {f"rank:{k}": float(np.mean(pair)) for k, pair in enumerate(zip(*scores, strict=True))}, chosen
