"""Which answers an editing method writes over the forget records', and where their keys sit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

from expunge.data.encoding import Encoded, Encoder
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.progress import say
from expunge.stats import seed_from
from expunge.subjects.subject import Subject
from expunge.training.answers import Ask, answer_for
from expunge.training.linear_memory import Fit, Memory
from expunge.training.loop import FitResult
from expunge.training.task_vectors import note_moved
from expunge.training.workspace import Workspace

__all__ = [
    "Target",
    "finish_edit",
    "fitted_tokens",
    "generic_rows",
    "memories",
    "prompt_row",
    "questions",
]

Target = Literal["refusal", "alternate", "empty"]
"""What is said instead, a variant of expunge.training.answers; empty: the end token at once."""


def questions(records: Sequence[Record], name: str) -> list[Record]:
    """The records that ask something: a document has no prompt whose answer could be edited."""
    found = [r for r in records if not r.is_document]
    if not found:
        fix = "Bring questions about the documents, or use a method that trains"
        raise DataError(Problem("forget", f"{name} needs records with a prompt", fix))
    if len(found) < len(records):
        say(f"{name}: {len(records) - len(found)} documents without a prompt are left out")
    return found


def prompt_row(encoder: Encoder, record: Record) -> Encoded:
    """The prompt alone, as the model is asked."""
    ids = encoder.prompt_ids(record)
    return Encoded(ids, len(ids), False)


def generic_rows(subject: Subject, request: Request, name: str) -> list[Encoded]:
    """Retain records, prompt and answer: whose keys an edit should leave alone."""
    if not request.retain:
        say(f"{name}: no retain set, so nothing but the size of the edit protects what must stay")
    return [row for record in request.retain for row in subject.encoder.windows(record)]


def memories(
    subject: Subject, request: Request, *, name: str, target: Target, prefixes: int, seed: int
) -> list[Memory]:
    """One memory per forget question: bare and behind random prefixes, with the new answer.

    The key is the last token of the entity's last mention in the prompt, or the prompt's last token where
    it is not mentioned. Raises DataError where the new answer is the old one or nothing fits the context.
    """
    made = []
    for record in questions(request.forget, name):
        answer = answer_for(target)(Ask(record, request, seed, epoch=0))
        if answer.strip() == record.answer.strip():
            what = f"its {target} is the answer that must go"
            raise DataError(Problem(f"record {record.id}", what, "Give it another one"))
        new = record.answered(answer)
        asked = [new] + [new.asked(f"{p}. {record.prompt}") for p in _prefixes(request, prefixes, seed)]
        rows = [subject.encoder.encode(r) for r in asked]
        if rows[0].truncated:
            what, fix = "prompt and new answer do not fit the context", "Raise max_length or shorten them"
            raise DataError(Problem(f"record {record.id}", what, fix))
        rows = [row for row in rows if not row.truncated]
        places = [_last_mention(subject.encoder, row, record.entity) for row in rows]
        keys = [row.num_prompt - 1 if p is None else p for row, p in zip(rows, places, strict=True)]
        made.append(Memory(tuple(rows), tuple(keys), None not in places))
    if missing := sum(not m.found for m in made):
        say(f"{name}: {missing} of {len(made)} prompts do not name their entity; the key is their last token")
    return made


def _last_mention(encoder: Encoder, row: Encoded, entity: str) -> int | None:
    """Index of the token with which the entity's last mention in the prompt is complete."""
    name = entity.strip().casefold()

    def mentions(length: int) -> int:
        return encoder.decode(row.ids[:length]).casefold().count(name)

    total = mentions(row.num_prompt) if name else 0
    return bisect_left(range(row.num_prompt + 1), total, key=mentions) - 1 if total else None


def _prefixes(request: Request, count: int, seed: int) -> list[str]:
    """Pieces of two to ten words from retain answers, a function of the seed."""
    texts = [words for r in request.retain if len(words := r.answer.split()) > 1]
    found = []
    for j in range(count if texts else 0):
        draw = lambda what, below, j=j: seed_from(seed, "prefix", what, j) % below  # noqa: E731
        words = texts[draw("record", len(texts))]
        start = draw("start", len(words) - 1)
        found.append(" ".join(words[start : start + 2 + draw("length", 9)]).rstrip(".,;:"))
    return found


def fitted_tokens(made: Sequence[Memory], fit: Fit) -> int:
    """Tokens that went through the model while the shifts were found, for the ledger."""
    return fit.steps * sum(len(row.ids) for m in made for row in m.rows)


def finish_edit(
    work: Subject, subject: Subject, workspace: Workspace, tokens: int, seconds: float
) -> Subject:
    """Note what an edit without training cost and how much it moved."""
    workspace.result = FitResult("finished", 0, tokens, seconds)
    workspace.facts["trained_parameters"] = 0
    note_moved(workspace, work.model, subject.model)
    return work
