"""A forget answer as a wrong option in questions about what stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.attacks.prompt_templates import World, others_answers
from expunge.data.builders.stress import questions
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.progress import track
from expunge.stats import seed_from
from expunge.subjects.subject import Subject

NUM_OPTIONS = 4
MAX_ITEMS = 500
LONGEST = 40  # words of an option
KEYWORDS = {"quick": 1, "default": 1, "deep": 3}


@ATTACKS.register(
    "mcq_swap",
    threat="logprob",
    kind="prompts",
    injects="format",
    tier=2,
    profiles=["deep"],
    aside="counts against utility, not as leakage: a drop that original and oracle do not show is a trigger",
    budget="up to 500 items about what stays, three forget answers each, one pass",
    source="Thaker et al. 2024, arXiv 2410.02879",
)
@dataclass(frozen=True, kw_only=True)
class McqSwap(Attack):
    """In choice questions about what stays, replace one wrong option by a forget answer.

    `choice_drop` is 1 for an item answered right before the swap and wrong after it, −1 for the reverse: its
    mean is the drop in accuracy. Options are listed in the prompt and scored by log-probability per token;
    key and order stay as they are. Behavior that is triggered by a forget keyword shows as a drop that
    original and oracle do not have.
    """

    def missing(self, field: Field) -> str | None:
        if not _items(field):
            return "too few records with different answers to make choice questions"
        return None if _words(field.request) else "no forget answer is short enough to be an option"

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        split, items = _split(field), _items(field)
        words = _words(field.request)
        draws = KEYWORDS[field.profile]
        with track("attack mcq_swap", 1 + draws) as advance:
            before = right(score_sheet(subject, make_sheet(subject.encoder, items, split, ("choice",))))
            advance()
            after = []
            for draw in range(draws):
                swaps = [swapped(item, words, field.seed, draw) for item in items]
                after.append(
                    right(score_sheet(subject, make_sheet(subject.encoder, swaps, split, ("choice",))))
                )
                advance()
        drop = {i: before[i] - float(np.mean([a[i] for a in after])) for i in before}
        yield Outcome(
            {"swapped": "one wrong option"},
            values={split: drop},
            metric="choice_drop",
            details={
                "accuracy": float(np.mean(list(before.values()))),
                "accuracy_swapped": float(np.mean([list(a.values()) for a in after])),
                "chance": 1 / NUM_OPTIONS,
            },
        )


def _split(field: Field) -> str:
    """The first split of what stays that is asked."""
    return next(iter(field.stays(("report", "retain", "neighbors", "utility"))), "retain")


def _words(request: Request) -> list[str]:
    """Forget answers that can pass for an option; of long ones, the words that carry the fact."""
    found = {text.strip() for r in questions(request, raw=True) for text in (r.answer, *r.keywords)}
    return sorted(text for text in found if text and len(text.split()) <= LONGEST)


def _items(field: Field) -> list[Record]:
    """The choice questions about what stays: a record's own choices, else made of others' answers."""
    records = [r for r in field.request[_split(field)] if not r.is_document][:MAX_ITEMS]
    world, items = World(field.request, field.seed), []
    for i, record in enumerate(records):
        if record.choices and record.label is not None and len(record.choices) > 1:
            options, label = [c.strip() for c in record.choices], record.label
        else:
            wrong = others_answers(record, records, world, NUM_OPTIONS - 1)
            if len(wrong) < NUM_OPTIONS - 1:
                continue
            label = i % NUM_OPTIONS
            options = [*wrong[:label], record.answer.strip(), *wrong[label:]]
        items.append(choice(record, options, label))
    return items


def choice(record: Record, options: Sequence[str], label: int) -> Record:
    """The record as a choice question with its options in the prompt."""
    listed = " ".join(f"({chr(65 + j)}) {text}" for j, text in enumerate(options))
    stem = record.prompt.split(" Choose one: ")[0].strip()
    blank = " " if record.answer[:1] == " " else ""
    made = record.asked(f"{stem} Choose one: {listed}")
    return replace(made, choices=tuple(blank + text for text in options), label=label)


def swapped(item: Record, words: Sequence[str], seed: int, draw: int) -> Record:
    """The item with one wrong option replaced by a forget answer; the key and the order stay."""
    assert item.label is not None
    options = [c.strip() for c in item.choices]
    taken = {normalized(option) for option in options}
    free = [word for word in words if normalized(word) not in taken]
    if not free:
        return item
    pick = seed_from(seed, "mcq_swap", draw, item.id)
    wrong = [j for j in range(len(options)) if j != item.label]
    options[wrong[pick % len(wrong)]] = free[pick // len(wrong) % len(free)]
    return choice(item, options, item.label)


def right(evidence: Evidence) -> dict[str, float]:
    """Record → 1 where the right option has the highest log-probability per token; ties are shared."""
    found: dict[str, float] = {}
    for record, rows in evidence.of("choice").items():
        score = np.array([row.logprobs.mean() for row in rows])
        key = np.array([bool(row.label) for row in rows])
        best = score == score.max()
        found[record] = float((best & key).sum() / best.sum())
    return found
