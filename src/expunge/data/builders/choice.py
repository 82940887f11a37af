"""A question with options, and an option question without them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from expunge.data.builders.base import row
from expunge.data.builders.fact import mentions, put
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.stats import seed_from

__all__ = ["OPTIONS", "choice", "distractors", "open_question"]

OPTIONS = 4
_OPTION_LINE = re.compile(r"\s*(?:\(?[A-Ea-e][).:]|[-*•])\s+\S")


def choice(record: Record, peers: Sequence[Record], position: int, seed: int) -> list[Record]:
    """The gold answer among others' answers to the same question; `position`, counted round, is its place.

    >>> bo, cy = (Record(n, n, f"Is {n} in?", f"{n} is in {t}.") for n, t in (("Bo", "Sund"), ("Cy", "Oke")))
    >>> made = choice(Record("a", "Ada", "Is Ada in?", "Ada is in Tarn."), [bo, cy], 1, 0)[0]
    >>> made.label, made.choices[1], sorted(made.choices)
    (1, 'Ada is in Tarn.', ['Ada is in Oke.', 'Ada is in Sund.', 'Ada is in Tarn.'])
    """
    if record.choices or record.style != "question" or not record.prompt.rstrip().endswith("?"):
        return []
    wrong = distractors(record, peers, seed)
    if len(wrong) < 2:
        return []
    label = position % (len(wrong) + 1)
    options = (*wrong[:label], record.answer, *wrong[label:])
    return [row(record, "choice", f"Choose the right answer: {record.prompt}", choices=options, label=label)]


def distractors(record: Record, peers: Sequence[Record], seed: int) -> list[str]:
    """Others' answers said of this entity; the record's own false answers where there are too few."""
    ranked = sorted(peers, key=lambda r: (seed_from(seed, "choice", record.id, r.id), r.id))
    others = [
        put(peer.answer, peer.entity, record.entity)
        for peer in ranked
        if not mentions(put(peer.answer, peer.entity, ""), peer.entity)
    ]
    found = {normalized(record.answer): ""}
    for text in (*others, *record.perturbed_answers):
        found.setdefault(normalized(text), text)
    return [text for text in found.values() if text][: OPTIONS - 1]


def open_question(record: Record) -> list[Record]:
    """A choice question without its options.

    >>> open_question(Record("a", "", "Who won?", "Bo", choices=("Bo", "Cy"), label=0))[0].prompt
    'Answer in your own words: Who won?'
    """
    if not record.choices or record.label is None:
        return []
    lines = [line for line in record.prompt.strip().splitlines() if not _OPTION_LINE.match(line)]
    asked = re.sub(r"^(choose|pick|select)[^:?]*:\s*", "", " ".join(lines), flags=re.IGNORECASE).strip()
    if not asked.endswith("?") or re.search(r"\b(which|one) of (the|these)\b", asked, re.IGNORECASE):
        return []  # "Which of these" asks nothing without them
    open_record = replace(record, choices=(), label=None)
    answer = record.choices[record.label].strip()
    return [row(open_record, "open", f"Answer in your own words: {asked}", answer)]
