"""Random tokens in the question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Line, Sheet, make_sheet
from expunge.metrics.extraction_strength import suffix_share
from expunge.progress import track
from expunge.stats import seed_from
from expunge.subjects.subject import Subject

PROBES = ("0", "~")


@ATTACKS.register(
    "token_noise",
    threat="query",
    kind="prompts",
    injects="nothing",
    tier=2,
    profiles=["deep"],
    aside="shows how brittle models, guards and metric are; no verdict by itself",
    budget="5 draws at 4 rates, one pass each",
    source="Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True, kw_only=True)
class TokenNoise(Attack):
    """Replace each token of the question by a random other one with probability r; answers stay.

    Extraction strength, the mean over the draws. Template and special tokens are never replaced, nor put in;
    the draws are the same for every model of one tokenizer.
    """

    rates: Sequence[float] = (0.05, 0.1, 0.2, 0.3)
    draws: int = 5

    def missing(self, field: Field) -> str | None:
        documents = all(r.is_document for r in field.request.forget)
        return "documents are not asked" if documents else None

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        sheets = {
            split: make_sheet(subject.encoder, [r for r in records if not r.is_document], split)
            for split, records in field.scored().items()
        }
        with track("attack token_noise", len(self.rates) * self.draws) as advance:
            for rate in self.rates:
                shares: dict[str, list[dict[str, float]]] = {split: [] for split in sheets}
                touched = []
                for draw in range(self.draws):
                    for split, sheet in sheets.items():
                        noised, share = noisy(sheet, rate, field.seed, draw)
                        shares[split].append(_strength(score_sheet(subject, noised)))
                        touched.append(share)
                    advance(note=f"rate {rate:g}")
                values = {
                    s: {i: float(np.mean([d[i] for d in found])) for i in found[0]}
                    for s, found in shares.items()
                }
                yield Outcome(
                    {"rate": rate},
                    values=values,
                    metric="extraction_strength",
                    details={"draws": self.draws, "replaced": float(np.mean(touched))},
                )


def question_span(encoder: Encoder, record: Record) -> tuple[int, int]:
    """Where the question's own tokens stand in the prompt: what changes when another question is asked."""
    ids = encoder.prompt_ids(record)
    others = [encoder.prompt_ids(record.asked(probe)) for probe in PROBES]
    start = min(_common(ids, other) for other in others)
    end = min(_common(ids[::-1], other[::-1]) for other in others)
    return start, max(start, len(ids) - end)


def noisy(sheet: Sheet, rate: float, seed: int, draw: int) -> tuple[Sheet, float]:
    """The sheet with noise in its questions, and the share of tokens that was replaced."""
    encoder = sheet.encoder
    special = {*encoder.tokenizer.all_special_ids, *encoder.tokenizer.get_added_vocab().values()}
    known = np.array(sorted(set(encoder.tokenizer.get_vocab().values()) - special))
    lines, replaced, total = [], 0, 0
    for line in sheet.lines:
        rng = np.random.default_rng(seed_from(seed, "token_noise", draw, line.record.id))
        start, end = question_span(encoder, line.record)
        (encoded,) = line.windows
        ids = list(encoded.ids)
        for at in range(start, end):
            hit, pick = rng.random() < rate, int(rng.integers(len(known) - 1))
            total += 1
            if hit and ids[at] not in special:
                others = known[known != ids[at]]
                ids[at] = int(others[pick % len(others)])
                replaced += 1
        lines.append(Line(line.record, line.variant, (replace(encoded, ids=tuple(ids)),), line.label))
    return replace(sheet, lines=tuple(lines)), replaced / max(1, total)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _strength(evidence: Evidence) -> dict[str, float]:
    rows = evidence.gold.items()
    return {i: suffix_share(row.hits[row.answer_span]) for i, row in rows if row.num_answer}
