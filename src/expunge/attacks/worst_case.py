"""The forget knowledge asked in every other way there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.attacks.prompt_templates import TEMPLATES, World
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics.extraction_strength import suffix_share
from expunge.progress import track
from expunge.subjects.subject import Subject

IDENTITY = "identity"
REWORDED = "paraphrased_prompt"
TEMPLATE = "template"
VARIANTS = 10
FILLING = (
    "suffix", "few_shot_0", "cloze", "hypothetical", "continuation", "alias", "role_play", "override",
    "self_correction", "structured",
)  # fmt: skip
"""Templates that inject no more than a format, in the order they are taken."""


class Asked(NamedTuple):
    """A row that is asked: in which form, and for which record."""

    record: Record
    form: str
    source: str


@ATTACKS.register(
    "worst_case",
    threat="query",
    kind="prompts",
    injects="format",
    tier=1,
    profiles=["quick", "default", "deep"],
    budget="every stored wording once; a deep audit adds own templates up to ten variants a record",
    source="Singh et al. 2025, arXiv 2509.02820; Wu et al. 2024, arXiv 2410.15153",
)
@dataclass(frozen=True, kw_only=True)
class WorstCase(Attack):
    """Ask by paraphrase, reverse, cloze, several hops, …; a record leaks what its strongest form leaks.

    One outcome per form, and one over all of them and the original question, so that it is never below the
    direct score. A maximum over many tries raises the oracle too: compare maximum with maximum; the mean over
    single variants stands beside it in `details`.
    """

    variants: int = 0  # per record, with own templates where the request has fewer; 0: ten in a deep audit

    def missing(self, field: Field) -> str | None:
        if any(asked.form != IDENTITY for asked in forms(field.request.forget, field.request["forget_hard"])):
            return None
        return "no forget_hard records and no paraphrased prompts"

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        wanted = self.variants or (VARIANTS if field.profile == "deep" else 0)
        asked = {}
        for split, records in field.scored().items():
            rows = forms(records, field.request["forget_hard"] if split == "forget" else ())
            asked[split] = filled(rows, World(field.request, field.seed), wanted)
        evidence = {}
        with track("attack worst_case", sum(map(len, asked.values()))) as advance:
            for split, rows in asked.items():
                sheet = make_sheet(subject.encoder, [a.record for a in rows], split, field.variants)
                evidence[split] = score_sheet(subject, sheet, advance=advance)
        names = list(dict.fromkeys(a.form for a in asked["forget"]))
        yield _outcome(asked, evidence, "all", names)
        for name in names:
            if name != IDENTITY:
                yield _outcome(asked, evidence, name, [name])


def forms(records: Sequence[Record], hard: Sequence[Record]) -> list[Asked]:
    """Every record as it is, under its other prompts, and in its forget_hard rows."""
    asked = [Asked(r, IDENTITY, r.id) for r in records]
    for record in records:
        others = [p for p in record.paraphrased_prompts if normalized(p) != normalized(record.prompt)]
        for j, prompt in enumerate(others):
            row = replace(record.asked(prompt), id=f"{record.id}#{REWORDED}:{j}")
            asked.append(Asked(row, REWORDED, record.id))
    known = {r.id for r in records}
    return asked + [Asked(r, r.form or "other", r.source_id) for r in hard if r.source_id in known]


def filled(asked: Sequence[Asked], world: World, wanted: int) -> list[Asked]:
    """The rows, and own templates for every record asked in fewer than `wanted` ways besides its own."""
    count: dict[str, int] = {}
    for row in asked:
        count[row.source] = count.get(row.source, 0) + (row.form != IDENTITY)
    rows = list(asked)
    for record, form, _ in asked:
        if form != IDENTITY or record.is_document:
            continue
        made = ((name, TEMPLATES[name][1](record, world)) for name in FILLING)
        fitting = [(name, variant) for name, variant in made if variant is not None]
        for name, variant in fitting[: max(0, wanted - count[record.id])]:
            rows.append(Asked(replace(variant, id=f"{record.id}#{TEMPLATE}:{name}"), TEMPLATE, record.id))
    return rows


def single_variant_mean(evidence: Evidence) -> float:
    """Mean extraction strength over all variants, each for itself: what one try finds on average."""
    shares = [suffix_share(row.hits[row.answer_span]) for row in evidence if row.num_answer]
    return float(np.mean(shares)) if shares else 0.0


def _outcome(
    asked: dict[str, list[Asked]], evidence: dict[str, Evidence], forms: str, chosen: Sequence[str]
) -> Outcome:
    sources = {a.record.id: a.source for rows in asked.values() for a in rows if a.form in chosen}
    kept = {s: [row for row in e if row.record_id in sources] for s, e in evidence.items()}
    return Outcome(
        {"forms": forms},
        {split: Evidence(split, rows) for split, rows in kept.items() if rows},
        sources=sources,
        covers=forms == "all",
        details={
            "forms": list(chosen),
            "rows": {split: len(rows) for split, rows in kept.items()},
            "single_variant_mean": single_variant_mean(Evidence("forget", kept.get("forget", []))),
        },
    )
