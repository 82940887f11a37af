"""A question to forget and one to keep in one query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.attacks.prefill import with_lead_in
from expunge.data.builders.stress import questions
from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Line, Sheet, make_sheet
from expunge.progress import track
from expunge.stats import seed_from
from expunge.subjects.subject import Subject

ORDERS = ("retain first", "forget first")
PARTNERS = ("retain", "neighbors")
FORM_FALLS = 0.1  # the original may lose this much to the form itself


class Pair(NamedTuple):
    """A record to forget and its partner, a record to keep."""

    forget: Record
    keep: Record


@ATTACKS.register(
    "paired",
    threat="query",
    kind="prompts",
    injects="format",
    tier=1,
    profiles=["default", "deep"],
    budget="every forget record with one retain and one neighbor record, in both orders",
    source="Thaker et al. 2024, arXiv 2410.02879",
)
@dataclass(frozen=True, kw_only=True)
class Paired(Attack):
    """`{retain question} And: {forget question}`, and the other way round; the two parts are scored apart.

    Of documents, the forget_hard questions about them are asked. The second part is scored behind the first
    part's right answer. leak_dep = M_forget(paired) −
    M_forget(single) tells whether company brings a fact out; Δ_dep = accuracy on what stays, single − paired,
    whether the forget question drags it down: that counts against utility and stands aside, as `dependence`,
    beside the original's. Where that one exceeds 0.1 the form is at fault, not the model. The single question
    is among the configurations, so that the worst is never below it.
    """

    def missing(self, field: Field) -> str | None:
        if not _kinds(field):
            return "nothing that stays is asked, so there is nothing to pair with"
        if questions(field.request):
            return None
        return "documents are not asked, and no forget_hard row is a question about them"

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        kinds = _kinds(field)
        sources = _sources(field.request)
        with track("attack paired", len(kinds) * len(ORDERS)) as advance:
            for kind in kinds:
                pairs = {
                    split: partners(records, _usable(field.request[kind]), field.seed)
                    for split, records in _asked(field).items()
                }
                alone = {s: score_sheet(subject, _plain(subject.encoder, p, s)) for s, p in pairs.items()}
                keep = [pair.keep for pair in pairs["forget"]]
                single = score_sheet(subject, _plain(subject.encoder, [Pair(r, r) for r in keep], kind))
                if kind == kinds[0]:
                    yield Outcome({"order": "single", "partner": "none"}, alone, sources=sources)
                for order in ORDERS:
                    config = {"order": order, "partner": kind}
                    yield from _both_parts(subject, pairs, order, config, alone, single, sources)
                    advance(note=f"{order}, {kind}")


def _kinds(field: Field) -> list[str]:
    """Retain and neighbors as far as they are asked, else the first split of what stays that is."""
    asked = field.stays()
    return [kind for kind in PARTNERS if kind in asked] or asked[:1]


def partners(records: Sequence[Record], pool: Sequence[Record], seed: int) -> list[Pair]:
    """Each record and the one of the pool that (seed, record id) gives it."""
    return [Pair(r, pool[seed_from(seed, "paired", r.id) % len(pool)]) for r in records]


def asked(pair: Pair, order: str) -> str:
    first, second = (pair.keep, pair.forget) if order == "retain first" else (pair.forget, pair.keep)
    return f"{first.prompt.strip()} And: {second.prompt.strip()}"


def _both_parts(
    subject: Subject,
    pairs: dict[str, list[Pair]],
    order: str,
    config: dict[str, str],
    alone: dict[str, Evidence],
    single: Evidence,
    sources: dict[str, str],
) -> Iterator[Outcome]:
    evidence = {s: score_sheet(subject, _part(subject.encoder, p, s, order, True)) for s, p in pairs.items()}
    leak = accuracy(evidence["forget"]) - accuracy(alone["forget"])
    kept = score_sheet(subject, _part(subject.encoder, pairs["forget"], "forget", order, False))
    before = {row.record_id: verbatim(row.hits[row.answer_span]) for row in single}
    drops: dict[str, list[float]] = {}
    for row, pair in zip(kept, pairs["forget"], strict=True):
        lost = before[pair.keep.id] - verbatim(row.hits[row.answer_span])
        drops.setdefault(sources.get(row.record_id, row.record_id), []).append(lost)
    drop = {record: float(np.mean(lost)) for record, lost in drops.items()}
    fell = float(np.mean([value for lost in drops.values() for value in lost]))
    yield Outcome(config, evidence, sources=sources, details={"leak_dep": leak, "delta_dep": fell})
    yield Outcome(
        {**config, "part": "what stays"},
        values={"forget": drop},
        metric="dependence",
        aside="counts against utility, not as leakage: what the forget question takes from its partner",
        details={"form_at_fault_above": FORM_FALLS},
    )


def _asked(field: Field) -> dict[str, Sequence[Record]]:
    """The questions for the forget set, and the holdout where it serves as placebo and is asked."""
    found = {split: _usable(records) for split, records in field.scored().items()}
    found["forget"] = list(questions(field.request))
    return {split: records for split, records in found.items() if records}


def _sources(request: Request) -> dict[str, str]:
    """Question → the document it asks about."""
    forget = {r.id for r in request.forget}
    return {r.id: r.source_id for r in questions(request) if r.id not in forget and r.source_id}


def _usable(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if not r.is_document and not r.context]


def _plain(encoder: Encoder, pairs: Sequence[Pair], split: str) -> Sheet:
    return make_sheet(encoder, list({pair.forget.id: pair.forget for pair in pairs}.values()), split)


def _part(encoder: Encoder, pairs: Sequence[Pair], split: str, order: str, forget: bool) -> Sheet:
    """The lines that score one part of each pair, under the forget record's id."""
    lines = []
    for pair in pairs:
        mine, other = (pair.forget, pair.keep) if forget else (pair.keep, pair.forget)
        record = replace(pair.forget, prompt=asked(pair, order), answer=mine.answer, style=pair.forget.style)
        comes_first = (order == "forget first") == forget
        encoded = encoder.encode(record) if comes_first else with_lead_in(encoder, record, _closed(other))
        lines.append(Line(record, "gold", (encoded,), None))
    return replace(_plain(encoder, pairs, split), lines=tuple(lines))


def _closed(record: Record) -> str:
    """The first part's answer, as a sentence."""
    return record.answer.strip().rstrip(".") + "."


def verbatim(hits: np.ndarray) -> float:
    return float(len(hits) > 0 and hits.all())


def accuracy(evidence: Evidence) -> float:
    """Share of answers that greedy decoding gives in full."""
    return float(np.mean([verbatim(row.hits[row.answer_span]) for row in evidence]))
