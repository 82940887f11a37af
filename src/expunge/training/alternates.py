"""Alternate answers: the records' own, or made from the model by turning its answer once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from expunge.data.batching import collate
from expunge.data.encoding import Encoded
from expunge.data.near import normalized, words
from expunge.data.records import Record
from expunge.errors import DataError, Problem
from expunge.measure.generate import greedy_continue
from expunge.progress import say, track
from expunge.subjects.subject import Subject
from expunge.training.answers import usable_alternates

__all__ = ["each_alternate", "made_alternates"]

TURNS = 4
"""Turned answers tried per alternate that is asked for."""


def each_alternate(subject: Subject, records: Sequence[Record], count: int) -> tuple[tuple[Record, ...], int]:
    """(every record once per alternate, up to `count` of them; how many alternates the model made).

    Raises DataError where a record has no alternate and none can be made.
    """
    bare = [r for r in records if not r.alternates]
    made: dict[str, tuple[str, ...]] = {}
    if bare:
        say(f"{len(bare)} of {len(records)} records have no alternates: the model makes them")
        with track("alternates", len(bare)) as advance:
            for record in bare:
                made[record.id] = made_alternates(subject, record, count)
                advance(1)
    rows = []
    for record in records:
        found = made.get(record.id) or usable_alternates(record)
        if not found:
            what = "has no alternate answer that is neither gold nor a distractor of the evaluation"
            raise DataError(Problem(f"record {record.id}", what, "Add `alternates` to it"))
        rows += [replace(record, alternates=(text,)) for text in found[:count]]
    return tuple(rows), sum(map(len, made.values()))


def made_alternates(subject: Subject, record: Record, count: int) -> tuple[str, ...]:
    """At most `count` answers to the record's question that are not its own, the most plausible first.

    Gold is followed up to some token, a rival the model finds most probable there takes the token's place,
    and greedy decoding goes on. Texts that keep more than half of the words gold adds to the question are
    left out: they would say the same in other words. Empty for a document.
    """
    if record.is_document:
        return ()
    row = subject.encoder.encode(record)
    begun = _turned(subject, row, count * TURNS)
    stop, length = subject.encoder.stop_ids, row.num_targets + 8
    prompt = row.ids[: row.num_prompt]
    greedy_continue(subject, [prompt] * len(begun), begun, stop, length, subject.encoder.pad_id)
    ended = [ids[:-1] for ids in begun if ids and ids[-1] in stop]
    texts: dict[str, str] = {}
    for text in map(subject.encoder.decode, ended):
        texts.setdefault(normalized(text), text)
    found = usable_alternates(record, tuple(t for t in texts.values() if t))
    return tuple(t for t in found if _kept(t, record) <= 0.5)[:count]


def _turned(subject: Subject, row: Encoded, limit: int) -> list[list[int]]:
    """Beginnings of the answer with the last token turned to a rival, by the rival's probability."""
    batch = collate([row], subject.encoder.pad_id).to(subject.device)
    logp = subject.logits(batch).float().log_softmax(-1)
    logp = logp.scatter(1, batch.targets[:, None], -torch.inf)
    if row.has_end:
        logp = logp[:-1]  # gold with something behind it is still gold
    logp[:, list(subject.encoder.stop_ids)] = -torch.inf
    values, places = logp.flatten().topk(min(limit, logp.numel()))
    answer, width = row.answer_ids, logp.shape[1]
    return [
        [*answer[: place // width], place % width]
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
        if value > -torch.inf
    ]


def _kept(text: str, record: Record) -> float:
    """Share of the words gold adds to the question that a text has too."""
    asked = set(words(record.prompt))
    added = {w for w in words(record.answer) if w not in asked} or set(words(record.answer))
    return len(added & set(words(text))) / max(1, len(added))
