"""Greedy generation with the gold answer as its draft.

The teacher-forced pass says how far greedy decoding follows the gold answer: up to the first miss, where it
takes the token the pass already knows. Decoding proper starts there; a memorized answer costs nothing.
Exact: while every token equals gold, the context stays the gold context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from expunge import ranks
from expunge.evidence import Evidence, Row, variant_kind
from expunge.measure.sheet import Line, Sheet
from expunge.subjects.subject import Subject, quiet

__all__ = ["GENERATED_KINDS", "add_generations", "followed", "greedy_continue", "greedy_text"]

GENERATED_KINDS = ("gold", "paraphrased_prompt")


@dataclass
class _Draft:
    """A generation under way: `ids` so far after the prompt, `done` once it ended."""

    prompt: tuple[int, ...]
    ids: list[int]
    done: bool


def add_generations(
    subject: Subject,
    sheet: Sheet,
    evidence: Evidence,
    *,
    max_new_tokens: int = 200,
    advance: Callable[[int], Any] | None = None,
) -> Evidence:
    """The evidence with `generated` and `finish_reason` for gold and paraphrased prompts of questions."""
    subject.need("generate", "logprobs", what="generation")
    stop = sheet.encoder.stop_ids
    rows = list(evidence.rows)
    todo: list[tuple[int, _Draft]] = []
    for i, (line, row) in enumerate(zip(sheet.lines, rows, strict=True)):
        if (
            variant_kind(line.variant) in GENERATED_KINDS
            and not line.record.is_document
            and not row.truncated
        ):
            room = min(max_new_tokens, sheet.encoder.max_length - row.num_prompt_tokens)
            prompt = line.windows[0].ids[: line.windows[0].num_prompt]
            todo.append(
                (i, _draft(line, row, stop, room) if subject.drafts else _Draft(prompt, [], room <= 0))
            )
    open_ = [d for _, d in todo if not d.done]
    greedy_continue(
        subject, [d.prompt for d in open_], [d.ids for d in open_], stop, max_new_tokens, sheet.encoder.pad_id
    )
    for i, draft in todo:
        ended = bool(draft.ids) and draft.ids[-1] in stop
        text = sheet.encoder.decode(draft.ids[:-1] if ended else draft.ids)
        rows[i] = replace(rows[i], generated=text, finish_reason="end" if ended else "length")
    if advance:
        advance(len(todo))
    return Evidence(evidence.split, rows, evidence.meta)


def _draft(line: Line, row: Row, stop: Sequence[int], limit: int) -> _Draft:
    encoded = line.windows[0]
    prompt = encoded.ids[: encoded.num_prompt]
    misses = (~row.hits).nonzero()[0]
    ids = [int(t) for t in encoded.answer_ids[: misses[0]]] if len(misses) else list(encoded.answer_ids)
    if len(misses):
        ids.append(int(row.greedy_ids[misses[0]]))
    ends = [k for k, t in enumerate(ids) if t in stop]
    if ends:
        ids = ids[: ends[0] + 1]
    return _Draft(prompt, ids[:limit], bool(ends and ends[0] < limit) or len(ids) >= limit)


def followed(gold: Sequence[int], row: Row, given: int) -> tuple[int, ...]:
    """What greedy decoding writes after the first `given` of the answer's ids `gold`, the given ids in front.

    Up to the first miss and with it, as the teacher-forced `row` tells; from there it has to be decoded.
    """
    misses = (~row.hits[given : len(gold)]).nonzero()[0]
    if not len(misses):
        return tuple(gold)
    at = given + int(misses[0])
    return (*gold[:at], int(row.greedy_ids[at]))


def greedy_continue(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    answers: list[list[int]],
    stop: Sequence[int],
    max_new_tokens: int,
    pad_id: int,
    *,
    batch_rows: int = 64,
) -> None:
    """Extend each of `answers` in place, greedily, until a stop id, `max_new_tokens` or the context's end.

    Answers are divided over the ranks by length, so that all are done at about the same time.
    """
    context = subject.encoder.max_length
    if subject.decoder:
        batch_rows = max(1, len(prompts))  # an engine batches by itself

    def room(i: int) -> int:
        """Tokens that may still follow; 0: this text has ended."""
        if answers[i] and answers[i][-1] in stop:
            return 0
        return min(max_new_tokens - len(answers[i]), context - len(prompts[i]) - len(answers[i]))

    todo = ranks.shard(sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i])))
    with quiet():
        for start in range(0, len(todo), batch_rows):
            part = todo[start : start + batch_rows]
            while part := [i for i in part if room(i) > 0]:
                asked, begun = [prompts[i] for i in part], [answers[i] for i in part]
                longest = max(len(p) + len(a) for p, a in zip(asked, begun, strict=True))
                # no row may run past the context; where that cuts short the others, they go on without it
                length = min(max(map(room, part)), context - longest)
                found = subject.greedy(asked, begun, length, stop=stop, pad_id=pad_id)
                for i, new in zip(part, found, strict=True):
                    new = new[: room(i)]
                    ends = [k for k, token in enumerate(new) if token in stop]
                    answers[i] += new[: ends[0] + 1] if ends else new
    for share in ranks.gather({i: answers[i] for i in todo}):
        for i, answer in share.items():
            answers[i][:] = answer


def greedy_text(
    subject: Subject, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 200
) -> list[str]:
    """Plain greedy decoding of each prompt's ids, for attacks on prompts that have no gold answer."""
    stop = subject.encoder.stop_ids
    answers: list[list[int]] = [[] for _ in prompts]
    greedy_continue(subject, prompts, answers, stop, max_new_tokens, subject.encoder.pad_id)
    return [subject.encoder.decode(a[:-1] if a and a[-1] in stop else a) for a in answers]
