"""Stress tests for any request: asked as a choice, openly, without the cue; held-out and unlisted records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from expunge.data.builders.base import Seen, row
from expunge.data.builders.choice import OPTIONS, distractors, open_question
from expunge.data.builders.cue import FORM as CUE_REMOVED
from expunge.data.builders.cue import cue_removed, name_in, opening, told_without_names
from expunge.data.builders.hard import PEERS
from expunge.data.builders.leaks import leak_free
from expunge.data.builders.partial import HELD_OUT, HIDDEN, hold_out, list_part
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.stats import seed_from

__all__ = ["STRESS_FORMS", "Stress", "choice_form", "cue_form", "open_form", "questions", "stressed"]

STRESS_FORMS = ("choice", "open", CUE_REMOVED)


@dataclass(frozen=True)
class Stress:
    """Which forms to add to forget_hard; shares of the forget records that are held out, and listed."""

    forms: tuple[str, ...] = ()
    held_out: float = 0.0
    listed: float = 1.0


def stressed(request: Request, stress: Stress, seed: int = 0) -> tuple[Request, list[str]]:
    """The request under stress, and what could not be built. Forms are of what is still listed."""
    warnings: list[str] = []
    if stress.held_out > 0:
        request = hold_out(request, stress.held_out, seed)
    if stress.listed < 1:
        request = list_part(request, stress.listed, seed)
    for split, wanted in ((HELD_OUT, stress.held_out > 0), (HIDDEN, stress.listed < 1)):
        if wanted and split not in request:
            warnings.append(f"stress: {split} is empty: there are too few forget records to spare one")
    rows: list[Record] = []
    for form in stress.forms:
        there = {r.source_id for r in request["forget_hard"] if r.form == form}
        new = [r for r in _BUILD[form](request, seed) if r.source_id not in there]
        raw = [r for r in new if r.style == "raw"]  # the options are new, the prompt need not be
        told = [r for r in new if r.style != "raw"]
        kept = [*leak_free(told, "forget_hard", {**request.splits, "built": rows}), *raw]
        rows += kept
        there |= {r.id for r in request.forget if r.choices} if form == "choice" else set()
        if not kept and not there:
            warnings.append(f"stress: no {form.replace('_', '-')} row could be built: {_WHY[form]}")
    if rows:
        counts = Counter(r.form for r in rows)
        added = ", ".join(f"{counts[form]} {form.replace('_', '-')}" for form in stress.forms if counts[form])
        before_built = request.built.get("forget_hard", "given") if request["forget_hard"] else ""
        built = {**request.built, "forget_hard": "; ".join(filter(None, (before_built, f"{added} built")))}
        splits = {**request.splits, "forget_hard": (*request["forget_hard"], *rows)}
        request = replace(request, splits=splits, built=built)
    return request, warnings


_WHY = {
    "choice": "no forget record is asked, or there are no false answers",
    "open": "no forget record is a choice question that can be asked without its options",
    CUE_REMOVED: "the forget questions share no opening, and no name that another forget fact tells",
}


def questions(request: Request, *, raw: bool = False) -> tuple[Record, ...]:
    """What asks for the forget set: its records; of documents, the forget_hard questions about them.

    `raw`: such questions also where they stand in a text to continue, behind other questions, say.
    """
    documents = {r.id for r in request.forget if r.is_document}
    asked = [r for r in request.forget if not r.is_document and not r.context]
    return (*asked, *(r for r in _plain(request, raw=raw) if r.source_id in documents))


def _plain(request: Request, *, raw: bool) -> list[Record]:
    """The forget_hard rows that are questions, without options or turns before them."""
    hard = [r for r in request["forget_hard"] if not (r.choices or r.context)]
    return [r for r in hard if r.style == "question" or (raw and r.form == "question")]


def choice_form(request: Request, seed: int = 0) -> tuple[Record, ...]:
    """Each open question with its answer among false ones: others' answers to the same, its own, any others'.

    Options are scored, not listed; the right one stands at every place about as often. Raw text is continued
    from the same prompt.
    """
    asked = [r for r in _asked(request) if not r.choices]
    seen = _seen(request, asked, seed)
    rows = []
    for number, record in enumerate(sorted(asked, key=lambda r: (seed_from(seed, "position", r.id), r.id))):
        wrong = distractors(record, list(islice(seen.peers(record), PEERS)), seed)
        known = {normalized(record.answer), *map(normalized, wrong)}
        for text in _answers(record, asked, seed):
            if len(wrong) < OPTIONS - 1 and normalized(text) not in known:
                wrong.append(text)
                known.add(normalized(text))
        if len(wrong) < 2:
            continue
        label = number % (len(wrong) + 1)
        options = (*wrong[:label], record.answer, *wrong[label:])
        prompt = record.prompt if record.style == "raw" else f"Choose the right answer: {record.prompt}"
        rows.append(_placed(row(record, "choice", prompt, choices=options, label=label), record, request))
    return tuple(rows)


def open_form(request: Request, seed: int = 0) -> tuple[Record, ...]:
    """Each choice question without its options, where it asks something without them."""
    return tuple(_placed(made, r, request) for r in _asked(request) for made in open_question(r))


def cue_form(request: Request, seed: int = 0) -> tuple[Record, ...]:
    """Each question without the opening that only forget questions have, and without the name it holds."""
    asked = _asked(request, raw=False)
    stays = [r for name in ("retain", "neighbors", "report") for r in request[name] if not r.is_document]
    facts = {r.id: r for r in (*asked, *questions(request)) if r.style == "question"}
    told = told_without_names((*facts.values(), *stays))
    named = {name: replace(r, entity=r.entity or name_in(r)) for name, r in facts.items()}
    shared = opening(asked, [r for r in stays if r.style == "question"])
    return tuple(
        _placed(replace(made, entity=record.entity), record, request)
        for record in asked
        for made in cue_removed(named[record.id], list(named.values()), told, shared)
    )


_BUILD = {"choice": choice_form, "open": open_form, CUE_REMOVED: cue_form}


def _asked(request: Request, *, raw: bool = True) -> list[Record]:
    """One question for each forget record that has any: its own, else the one with the shortest answer.

    `raw`: a text to continue counts as a question.
    """
    forget = {r.id for r in request.forget}
    known = {r.id: r for r in questions(request) if r.id in forget and (raw or r.style == "question")}
    about = sorted(_plain(request, raw=raw), key=lambda r: (len(r.answer), r.id))
    others = {r.id for r in request.forget if r.is_document or not raw} - known.keys()
    for record in about:
        if record.source_id in others:
            known.setdefault(str(record.source_id), record)
    return [known[r.id] for r in request.forget if r.id in known]


def _seen(request: Request, asked: Sequence[Record], seed: int) -> Seen:
    stays = [r for name in ("retain", "neighbors") for r in request[name]]
    return Seen([replace(r, entity=r.entity or name_in(r)) for r in asked], stays, seed)


def _answers(record: Record, asked: Sequence[Record], seed: int) -> Iterator[str]:
    """Other forget answers: as familiar to the original, as new to the oracle."""
    others = sorted(asked, key=lambda r: (seed_from(seed, "options", record.id, r.id), r.id))
    return (r.answer for r in others if r.id != record.id)


def _placed(made: Record, record: Record, request: Request) -> Record:
    """The built row under the forget record that it stands for."""
    forget = {r.id for r in request.forget}
    return made if record.id in forget else replace(made, source_id=record.source_id)
