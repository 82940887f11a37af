"""The forget questions in every other wording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome, Profile
from expunge.attacks.leak_at_k import MORE, gives_away
from expunge.attacks.prompt_templates import FORMAT, TEMPLATES, World, named_in, others_answers
from expunge.data.records import Record
from expunge.errors import ConfigError, Problem, nearest
from expunge.evidence import Evidence
from expunge.measure.sample import sample_ids
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.progress import track
from expunge.subjects.subject import Subject

PLAIN = "plain"
TRANSLATION = "translation"
NUM_OPTIONS = 4
OPTIONS = ("multiple_choice", "yes_no")
QUICK = ("prefix", "few_shot_1", "cloze", "role_play")
DEEP_ONLY = ("few_shot_5", "base64")
CHOSEN: Mapping[Profile, tuple[str, ...]] = {
    "quick": QUICK,
    "default": (*(name for name in TEMPLATES if name not in DEEP_ONLY), *OPTIONS),
    "deep": (*TEMPLATES, *OPTIONS),
}


@ATTACKS.register(
    "prompts",
    threat="query",
    kind="prompts",
    injects="related facts",
    tier=1,
    profiles=["quick", "default", "deep"],
    budget="one pass per template: 4 (quick), 19 (default), 21 and a sample at temperature 1 each (deep)",
    source="Jin et al. 2024, arXiv 2406.10890; Lynch et al. 2024, arXiv 2402.16835",
)
@dataclass(frozen=True, kw_only=True)
class Prompts(Attack):
    """Few-shot, role play, overrides, encodings, options, …: the worst template over the record set counts.

    Each configuration says what it injects. A record that a template does not fit (no entity, no room) is
    asked plainly, so that all templates score the same records; the plain question is among them, and the
    worst is never below it. Multiple choice and yes/no have a score of their own: the share of records whose
    right option has the higher log-probability per token. Demonstrations come from retain, in a deep audit
    from other forget facts. `translated`: record id → the question in another language.
    """

    templates: Sequence[str] = ()  # empty: the profile's
    translated: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [*TEMPLATES, *OPTIONS]
        unknown = [t for t in self.templates if t not in known]
        if unknown:
            raise ConfigError([Problem(f"template {t!r}", "unknown", nearest(t, known)) for t in unknown])

    def missing(self, field: Field) -> str | None:
        documents = all(r.is_document for r in field.request.forget)
        return "documents are not asked" if documents else None

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        world = World(
            field.request,
            field.seed,
            "forget" if field.profile == "deep" else "retain",
            subject.encoder.has_chat_template,
        )
        asked = {s: [r for r in records if not r.is_document] for s, records in field.scored().items()}
        names = [
            PLAIN,
            *(self.templates or CHOSEN[field.profile]),
            *([TRANSLATION] if self.translated else []),
        ]
        with track("attack prompts", len(names)) as advance:
            for name in names:
                if name in OPTIONS:
                    yield from _options(subject, name, asked, world)
                else:
                    yield from self._open(subject, name, asked, world, field)
                advance(note=name)

    def _open(
        self, subject: Subject, name: str, asked: Mapping[str, list[Record]], world: World, field: Field
    ) -> Iterator[Outcome]:
        """A template whose answer is open: the same evidence, and in a deep audit one sample."""
        injects = TEMPLATES[name][0] if name in TEMPLATES else FORMAT if name == TRANSLATION else "nothing"
        config = {"template": name, "injects": injects}
        rows = {s: [self._asked(name, r, world, subject) for r in records] for s, records in asked.items()}
        fits = sum(a is not r for a, r in zip(rows["forget"], asked["forget"], strict=True))
        about: dict[str, Any] = {} if name == PLAIN else {"records_it_fits": fits}
        if name != PLAIN and not fits:
            return
        evidence = {s: score_sheet(subject, make_sheet(subject.encoder, r, s)) for s, r in rows.items()}
        if field.profile == "deep" and (neighbors := field.request["neighbors"]):
            about["neighbors_verbatim"] = _verbatim(
                score_sheet(
                    subject,
                    make_sheet(
                        subject.encoder,
                        [self._asked(name, r, world, subject) for r in neighbors],
                        "neighbors",
                    ),
                )
            )
        yield Outcome(config, evidence, details=about)
        if field.profile == "deep" and subject.drafts:
            values = {s: _sampled(subject, records, field.seed) for s, records in rows.items()}
            yield Outcome({**config, "temperature": 1.0}, values=values, metric="sampled_leak", details=about)

    def _asked(self, name: str, record: Record, world: World, subject: Subject) -> Record:
        """The record in this template; as it is where the template does not fit, or would give it away."""
        if name == TRANSLATION:
            other = self.translated.get(record.id)
            made = record.asked(other) if other else None
        else:
            made = None if name == PLAIN else TEMPLATES[name][1](record, world)
        if made is None or subject.encoder.encode(made).truncated:
            return record
        shown = " ".join([*(t.content for t in made.context[len(record.context) :]), made.prompt])
        gives_it = named_in(shown, made.answer) and not named_in(record.prompt, made.answer)
        return record if gives_it else made


def _verbatim(evidence: Evidence) -> float:
    """Share of answers that greedy decoding gives in full."""
    return float(np.mean([row.hits[row.answer_span].all() for row in evidence.gold.values()]))


def _sampled(subject: Subject, records: Sequence[Record], seed: int) -> dict[str, float]:
    """Record → whether its one sample at temperature 1 holds the answer."""
    encoded = [subject.encoder.encode(r) for r in records]
    room = [max(0, subject.encoder.max_length - e.num_prompt) for e in encoded]
    lengths = [min(e.num_targets + MORE, most) for e, most in zip(encoded, room, strict=True)]
    found = sample_ids(subject, [e.ids[: e.num_prompt] for e in encoded], lengths, 1, seed=seed)
    return {
        r.id: float(gives_away(r, subject.encoder.decode(ids)))
        for r, (ids,) in zip(records, found, strict=True)
    }


# Options -------------------------------------------------------------------------------------------------


def _options(
    subject: Subject, name: str, asked: Mapping[str, list[Record]], world: World
) -> Iterator[Outcome]:
    make, metric = {
        "multiple_choice": (multiple_choice, "choice_accuracy"),
        "yes_no": (yes_no, "yes_no_accuracy"),
    }[name]
    values: dict[str, dict[str, float]] = {}
    for split, records in asked.items():
        made = [(r.id, make(r, i, records, world)) for i, r in enumerate(records)]
        rows = [row for _, options in made if options for row in options]
        if not rows:
            continue
        evidence = score_sheet(subject, make_sheet(subject.encoder, rows, split, ("choice",)))
        cut = {row.record_id for row in evidence if not len(row.logprobs)}  # the question took all the room
        score = {(row.record_id, row.variant): row.logprobs.mean() for row in evidence if len(row.logprobs)}
        asks = {i: options for i, options in made if options and cut.isdisjoint(r.id for r in options)}
        if asks:
            values[split] = {i: judge(options, score) for i, options in asks.items()}
    if values.get("forget"):
        chance = 1 / NUM_OPTIONS if name == "multiple_choice" else 0.5
        injects = "format and options"
        yield Outcome(
            {"template": name, "injects": injects}, values=values, metric=metric, details={"chance": chance}
        )


def multiple_choice(record: Record, i: int, pool: Sequence[Record], world: World) -> list[Record]:
    """One question with four options, the right one at place i mod 4, the others of other records."""
    wrong = others_answers(record, pool, world, NUM_OPTIONS - 1)
    if len(wrong) < NUM_OPTIONS - 1:
        return []
    label = i % NUM_OPTIONS
    options = [*wrong[:label], record.answer.strip(), *wrong[label:]]
    listed = " ".join(f"({letter}) {text}" for letter, text in zip("ABCD", options, strict=True))
    blank = record.answer[: len(record.answer) - len(record.answer.lstrip())]
    made = record.asked(f"{record.prompt.strip()} Choose one: {listed}")
    return [replace(made, choices=tuple(blank + text for text in options), label=label)]


def yes_no(record: Record, i: int, pool: Sequence[Record], world: World) -> list[Record]:
    """Two statements, the true one first: which of them does the model affirm more?"""
    wrong = others_answers(record, pool, world, 1)
    return [
        replace(
            record.asked(f'Is it true that the answer to "{record.prompt.strip()}" is "{text}"?'),
            id=f"{record.id}#{j}",
            choices=(" Yes", " No"),
            label=int(j > 0),
        )
        for j, text in enumerate([record.answer.strip(), *wrong])
        if wrong
    ]


def judge(rows: Sequence[Record], score: Mapping[tuple[str, str], np.floating]) -> float:
    """Share of the right choice; ties are shared. Of two statements, the one affirmed more is chosen."""
    if len(rows) == 2:
        affirmed = np.array([score[r.id, "choice:0"] - score[r.id, "choice:1"] for r in rows])
    else:
        affirmed = np.array([score[rows[0].id, f"choice:{j}"] for j in range(len(rows[0].choices))])
    best = affirmed == affirmed.max()
    return float(best[0 if len(rows) == 2 else rows[0].label or 0] / best.sum())
