"""What is measured of every model of a composition, and the numbers made of it."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.interventions.base import Target, edited
from expunge.interventions.inventory import flops_per_token, inventory
from expunge.measure import EvidencePlan, take_evidence
from expunge.measure.latency import latency_per_token
from expunge.metrics import compute, make_metric
from expunge.metrics.base import ModelEvidence, Score
from expunge.metrics.compression import average_bits, sparsity, stored_bytes
from expunge.metrics.order import order_free_error, order_sensitivity
from expunge.runs.folder import write_json
from expunge.subjects import Subject

__all__ = [
    "Measure",
    "as_row",
    "asked_splits",
    "measure_model",
    "measures",
    "order_rows",
    "plan_of",
    "scores_of",
    "sizes",
]

TOKEN = {"mode": "token"}

NEEDS_EDIT = ("edit_efficacy", "edit_generalization")

EDIT_KINDS = ("paraphrased_prompt", "refusal", "paraphrased_refusal")


@dataclass(frozen=True)
class Measure:
    """One number of every model: a metric on a split."""

    key: str
    short: str
    title: str
    metric: str
    split: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def better(self) -> str:
        return make_metric(self.metric, **self.settings).better(self.split)

    def score(self, model: ModelEvidence, original: ModelEvidence, seed: int) -> Score:
        return compute(self.metric, model, self.split, original=original, seed=seed, **self.settings)


def measures(splits: Sequence[str]) -> list[Measure]:
    """Those that the splits at hand allow; what must stay is read on report records, or on calibration."""
    kept = next((s for s in ("report", "calibration", "retain") if s in splits), "")
    near = "neighbors" if "neighbors" in splits else kept
    es, edit = "extraction_strength", "edit_efficacy"
    found = [
        Measure("forget", "ES forget", "extraction strength on forget", es, "forget"),
        Measure("kept", f"ES {kept}", f"extraction strength on {kept}", es, kept),
        Measure("neighbors", "ES neighbors", "extraction strength on neighbors", es, "neighbors"),
        Measure("perplexity", "perplexity", f"perplexity on {kept}", "perplexity", kept),
        Measure("efficacy", "efficacy", "edit efficacy: new answer over old", edit, "forget"),
        Measure("efficacy_token", "new tokens", "edit efficacy: new tokens", edit, "forget", TOKEN),
        Measure("generalization", "generalization", "edit generalization: on paraphrases",
                "edit_generalization", "forget"),
        Measure("locality", "locality", f"edit locality on {near}", "edit_locality", near),
    ]  # fmt: skip
    return [m for m in found if m.split in splits]


def asked_splits(request: Request, target: Target, seed: int, *, edits: bool) -> dict[str, Sequence[Record]]:
    """The records every model is asked, forget questions with the answer an edit would write.

    Raises DataError where something is to be edited and only documents are to be forgotten.
    """
    names = ("forget", "report", "calibration", "neighbors", "utility")
    splits: dict[str, Sequence[Record]] = {name: request[name] for name in names if name in request}
    if not any(name in splits for name in ("report", "calibration")) and "retain" in request:
        splits["retain"] = request.retain
    if edits or any(not r.is_document for r in request.forget):
        new = {r.id: r for r in edited(request, target, seed, "compose")}
        splits["forget"] = tuple(new.get(r.id, r) for r in request.forget)
    return splits


def plan_of(bar_metric: str) -> EvidencePlan:
    """Teacher-forced likelihoods only; on calibration what the bar reads as well."""
    more: dict[str, tuple[str, ...]] = {"forget": EDIT_KINDS}
    if bar_metric != "auto":
        more["calibration"] = tuple(make_metric(bar_metric).reads)
    return EvidencePlan(("gold",), more, generate=False)


def measure_model(
    folder: Path, subject: Subject, splits: Mapping[str, Sequence[Record]], plan: EvidencePlan,
    bits: Mapping[str, float], *, compressed: bool, tokens: int, name: str,
) -> None:  # fmt: skip
    """Fill `folder` with the evidence of one model and with what it takes (`sizes.json`)."""
    take_evidence(subject, splits, folder, plan=plan, name=name)
    write_json(folder / "sizes.json", sizes(subject, splits, bits, compressed=compressed, tokens=tokens))


def sizes(
    subject: Subject, splits: Mapping[str, Sequence[Record]], bits: Mapping[str, float], *, compressed: bool,
    tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """Bits, zeros, bytes, operations and time per token. Timed are prompts that must stay, not forget's."""
    held = inventory(subject.model, bits, compressed=compressed)
    stored, zeros, flops = average_bits(held), sparsity(held), flops_per_token(subject.model)
    prompts = next((splits[s] for s in ("report", "calibration", "retain") if s in splits), ())
    asked = [r for r in prompts if len(subject.encoder.prompt_ids(r)) < subject.encoder.max_length]
    timed = latency_per_token(subject, asked, tokens=tokens) if tokens and asked else None
    return {
        "average_bits": stored._asdict(),
        "sparsity": zeros._asdict(),
        "bytes": stored_bytes(held),
        "weights": sum(t.weights for t in held),
        "flops_per_token": flops._asdict(),
        "latency": timed._asdict() if timed else None,
        "cores": os.cpu_count(),
    }


def scores_of(
    found: Sequence[Measure], model: ModelEvidence, original: ModelEvidence, seed: int
) -> dict[str, Score]:
    """Measure → score of one model."""
    return {m.key: m.score(model, original, seed) for m in found}


def order_rows(
    found: Sequence[Measure],
    pairs: Sequence[tuple[str, str]],
    scores: Mapping[tuple[str, str], Mapping[str, Score]],
    edits: Collection[str],
) -> list[dict[str, Any]]:
    """Order-free error and order sensitivity of every pair of interventions and measure that is a share.

    What asks for a new answer says nothing of pairs of which none writes one.
    """
    rows = []
    for i, j in pairs:
        for m in found:
            if math.isinf(make_metric(m.metric, **m.settings).range[1]):
                continue
            if m.metric in NEEDS_EDIT and not {i, j} & set(edits):
                continue
            both = {pair: s[m.key] for pair, s in scores.items() if set(pair) == {i, j}}
            error, change = order_free_error(i, j, both), order_sensitivity(i, j, both)
            rows.append(
                {
                    "first": i, "second": j, "measure": m.key, "order_free_error": error.value,
                    "order_sensitivity": change.value, "signed": change.signed, "n": change.n,
                    "reason": error.reason,
                }
            )  # fmt: skip
    return rows


def as_row(score: Score) -> dict[str, Any]:
    """A score as it stands in the file: no record's name."""
    names = ("value", "low", "high", "n", "reason")
    return {name: getattr(score, name) for name in names} | {"flags": list(score.flags)}
