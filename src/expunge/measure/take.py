"""Taking evidence: a sheet per split, one pass, generation where text metrics ask for it, kept by key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from expunge import ranks
from expunge.data.records import Record
from expunge.evidence import Evidence, Row, read_evidence, write_evidence
from expunge.measure.annotators import Asked, annotate, described, peers_of
from expunge.measure.generate import add_generations
from expunge.measure.score import score_sheet
from expunge.measure.sheet import VARIANTS, Sheet, make_sheet
from expunge.progress import track
from expunge.subjects.subject import Subject

__all__ = ["CODE_VERSION", "EvidencePlan", "take_evidence"]

CODE_VERSION = 2
"""Rises when the same weights and records would give other evidence."""


@dataclass(frozen=True)
class EvidencePlan:
    """What is asked of each split: kinds of variant, and whether text is generated (and how much at most).

    `more`: kinds that only some splits are asked in, {split: kinds}; false answers multiply the rows.
    `settings`: those of the annotators, by name.
    """

    variants: Sequence[str] = VARIANTS
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)
    generate: bool = True
    max_new_tokens: int = 200
    skip_generation: Sequence[str] = field(default=("holdout", "calibration"))
    annotators: Sequence[str] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def kinds(self, split: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.variants, *self.more.get(split, ()))))

    def generates(self, split: str) -> bool:
        return self.generate and split not in self.skip_generation


def take_evidence(
    subject: Subject,
    splits: Mapping[str, Sequence[Record]],
    folder: Path | None = None,
    *,
    plan: EvidencePlan = EvidencePlan(),
    reference: Subject | None = None,
    peers: Mapping[str, Callable[[], Subject]] | None = None,
    name: str = "evidence",
) -> dict[str, Evidence]:
    """Evidence of `subject` on every split; with `folder`, kept there by key and read back when it exists.

    The key holds weights, tokenizer, template, records, settings, dtype, device kind, attention kernel and
    code version, so evidence of another model can never come back.
    """
    base = {
        "weights": subject.fingerprint(),
        "encoder": subject.encoder.fingerprint(),
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
        "device": subject.device.type,
        "attention": str(getattr(subject.config, "_attn_implementation", "")),
        "reference": reference.fingerprint() if reference is not None else None,
        "code": CODE_VERSION,
    }
    wanted = peers_of(plan.annotators)
    beside = {peer: cache(load) for peer, load in (peers or {}).items() if peer in wanted}  # loaded once
    marks = {peer: load().fingerprint() for peer, load in beside.items()}
    result: dict[str, Evidence] = {}
    jobs = []
    for split, records in splits.items():
        if not records:
            continue
        sheet = make_sheet(subject.encoder, records, split, plan.kinds(split))
        settings = {
            "variants": list(plan.kinds(split)),
            "max_new_tokens": plan.max_new_tokens if plan.generates(split) else 0,
        }
        if plan.annotators:
            settings["annotators"] = described(plan.annotators, plan.settings)
            settings["peers"] = marks
        meta: dict[str, Any] = {**base, "records": sheet.records_fingerprint, "settings": settings}
        key = hashlib.sha256(json.dumps([split, meta], sort_keys=True).encode()).hexdigest()[:20]
        path = Path(folder) / f"{split}-{key}.parquet" if folder else None
        if ranks.broadcast(path is not None and path.is_file()) and path:
            result[split] = read_evidence(path)
        else:
            jobs.append((split, sheet, meta, path))
    total = sum(len(line.windows) for _, sheet, _, _ in jobs for line in sheet.lines)
    with track(f"measuring {name}", total) as advance:
        for split, sheet, meta, path in jobs:
            noted = partial(advance, note=split)
            evidence = _score(subject, sheet, reference, noted)
            if plan.generates(split) and "generate" in subject.can:
                evidence = add_generations(subject, sheet, evidence, max_new_tokens=plan.max_new_tokens)
            if plan.annotators:
                evidence = annotate(Asked(subject, sheet, evidence, beside), plan.annotators, plan.settings)
            evidence.meta.update(meta)
            result[split] = evidence
            if path and ranks.is_first():
                write_evidence(evidence, path)
    return {split: result[split] for split in splits if split in result}


def _score(
    subject: Subject, sheet: Sheet, reference: Subject | None, advance: Callable[[int], Any]
) -> Evidence:
    """Divergence to the reference is read on gold answers only: the other variants need no second model."""
    if reference is None:
        return score_sheet(subject, sheet, advance=advance)
    rows: dict[int, Row] = {}
    for gold in (True, False):
        chosen = [i for i, line in enumerate(sheet.lines) if (line.variant == "gold") is gold]
        part = replace(sheet, lines=tuple(sheet.lines[i] for i in chosen))
        evidence = score_sheet(subject, part, reference=reference if gold else None, advance=advance)
        rows.update(zip(chosen, evidence.rows, strict=True))
    return Evidence(sheet.split, [rows[i] for i in range(len(rows))])
