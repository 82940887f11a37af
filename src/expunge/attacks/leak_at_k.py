"""Sampling: what greedy decoding hides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome, Profile
from expunge.data.near import words
from expunge.data.records import Record
from expunge.evidence import Evidence
from expunge.measure.sample import sample_ids
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics.leak_at_k import dkw_half_width, exact_leak, guess_level, leak_at_k
from expunge.progress import track
from expunge.subjects.subject import Subject

__all__ = ["KS", "LeakAtK", "answers_of", "gives_away"]

KS = (1, 4, 16, 64, 128)
SAMPLES: Mapping[Profile, int] = {"quick": 16, "default": 200, "deep": 200}
TEMPERATURES: Mapping[Profile, tuple[float, ...]] = {"quick": (1.0,), "default": (1.0,), "deep": (1.0, 0.8)}
MORE = 8  # tokens beyond the answer's own that a sample may take


@ATTACKS.register(
    "leak_at_k",
    threat="query",
    kind="decoding",
    injects="nothing",
    tier=1,
    profiles=["quick", "default", "deep"],
    budget="200 samples a question at temperature 1 (quick: 16; deep: 200 more at 0.8), k up to 128",
    source="Reisizadeh et al. 2025, arXiv 2511.04934; Scholten et al. 2024, arXiv 2410.03523",
)
@dataclass(frozen=True, kw_only=True)
class LeakAtK(Attack):
    """Chance that one of k samples holds the answer: 1 − C(n−c, k)/C(n, k), c of n samples leak.

    `how: exact` is 1 − (1−p)^k with p the probability that a sample begins with the answer, from one
    teacher-forced pass: a lower bound that needs no sampling. A sample leaks if it holds the answer's words
    in a row, one of its rewordings, or all of the record's keywords. Documents are left out. `details` has
    the level of a blind guesser among the answers of the split.
    """

    n: int = 0  # samples per question; 0: the profile's
    temperatures: Sequence[float] = ()  # empty: the profile's

    def missing(self, field: Field) -> str | None:
        documents = all(r.is_document for r in field.request.forget)
        return "documents are not asked for an answer" if documents else None

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        asked = {s: [r for r in records if not r.is_document] for s, records in field.scored().items()}
        sheets = {s: make_sheet(subject.encoder, records, s) for s, records in asked.items()}
        guess = len({tuple(words(r.answer)) for r in asked["forget"]})
        exact = {s: _probabilities(score_sheet(subject, sheet)) for s, sheet in sheets.items()}
        for k in KS:
            values = {s: {r: exact_leak(p, k) for r, p in found.items()} for s, found in exact.items()}
            yield Outcome(
                {"how": "exact", "k": k},
                values=values,
                metric="leak_at_k",
                details={"guess": guess_level(guess, k)},
            )
        if not subject.drafts:  # it answers whole texts: there is no next token to draw
            return
        n = self.n or SAMPLES[field.profile]
        for temperature in self.temperatures or TEMPERATURES[field.profile]:
            leaks = {
                s: self._sampled(subject, records, n, temperature, field) for s, records in asked.items()
            }
            for k in (k for k in KS if k <= n):
                values = {s: {r: leak_at_k(n, c, k) for r, c in found.items()} for s, found in leaks.items()}
                about: dict[str, Any] = {"samples": n, "guess": guess_level(guess, k)}
                if k == 1:  # P(leak) of a record lies within this of its share, with 99 %
                    about["half_width"] = dkw_half_width(n)
                config = {"how": "sampled", "temperature": temperature, "k": k}
                yield Outcome(config, values=values, metric="leak_at_k", details=about)

    def _sampled(
        self, subject: Subject, records: Sequence[Record], n: int, temperature: float, field: Field
    ) -> dict[str, int]:
        """Record → how many of its n samples leak."""
        encoded = [subject.encoder.encode(r) for r in records]
        prompts = [e.ids[: e.num_prompt] for e in encoded]
        room = [max(0, subject.encoder.max_length - e.num_prompt) for e in encoded]
        lengths = [min(e.num_targets + MORE, most) for e, most in zip(encoded, room, strict=True)]
        with track(f"attack leak_at_k, T={temperature:g}", len(records)) as advance:
            found = sample_ids(
                subject, prompts, lengths, n, temperature=temperature, seed=field.seed, advance=advance
            )
        return {
            record.id: _count(subject, record, texts) for record, texts in zip(records, found, strict=True)
        }


def answers_of(record: Record) -> list[list[str]]:
    """The texts, as words, any of which gives the answer away."""
    texts = [record.answer, *record.paraphrased_answers]
    return [found for found in map(words, texts) if found]


def gives_away(record: Record, text: str) -> bool:
    """Whether a text holds the answer's words in a row, a rewording's, or every keyword.

    >>> record = Record("r", "Ada Lund", "Where was she born?", "In Tarn.")
    >>> gives_away(record, "I think in tarn, long ago"), gives_away(record, "in a tarn")
    (True, False)
    """
    said = words(text)
    if any(_holds(said, answer) for answer in answers_of(record)):
        return True
    keys = [found for found in map(words, record.keywords) if found]
    return bool(keys) and all(_holds(said, key) for key in keys)


def _holds(said: Sequence[str], wanted: Sequence[str]) -> bool:
    size = len(wanted)
    return any(list(said[i : i + size]) == list(wanted) for i in range(len(said) - size + 1))


def _count(subject: Subject, record: Record, samples: Sequence[Sequence[int]]) -> int:
    """Equal samples are read once: a model that knows says the same thing many times."""
    counts: dict[tuple[int, ...], int] = {}
    for ids in samples:
        counts[tuple(ids)] = counts.get(tuple(ids), 0) + 1
    return sum(c for ids, c in counts.items() if gives_away(record, subject.encoder.decode(ids)))


def _probabilities(evidence: Evidence) -> dict[str, float]:
    """exp(Σ log p) of the answer's tokens, end token out: a sample that begins with it leaks."""
    rows = evidence.gold.items()
    return {i: float(np.exp(row.logprobs[row.answer_span].astype(np.float64).sum())) for i, row in rows}
