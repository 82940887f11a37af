"""What the model writes after the first 0, 1, 2, … words of the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from expunge.data.encoding import Encoded, Encoder
from expunge.data.records import Record
from expunge.evidence import Row, variant_kind
from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.measure.generate import GENERATED_KINDS, followed, greedy_continue
from expunge.measure.sheet import Line

SLACK = 8
"""Tokens beyond the longest answer: enough to see that a text goes on."""


@ANNOTATORS.register("prefixes", columns=["continued"], splits=["forget", "forget_hard", "report"])
@dataclass(frozen=True)
class Prefixes(Annotator):
    """The first line that greedy decoding adds to the prompt and the first k words of the answer, each k.

    Answers of more than `max_words` words are asked up to there. Prefixes whose greedy texts run together
    (the teacher-forced pass tells) are decoded once.
    """

    max_words: Annotated[int, Ge(1)] = 64

    def missing(self, asked: Asked) -> str | None:
        return None if "generate" in asked.subject.can else "the model does not generate"

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        encoder, subject = asked.sheet.encoder, asked.subject
        starts: dict[int, list[tuple[int, ...]]] = {}  # row → per k, the answer's ids that are given
        begun: dict[int, list[tuple[int, ...]]] = {}  # row → per k, the same and what surely follows
        for i, (line, row) in enumerate(zip(asked.sheet.lines, asked.evidence, strict=True)):
            if (
                variant_kind(line.variant) in GENERATED_KINDS
                and not line.record.is_document
                and not row.truncated
            ):
                starts[i] = given_ids(encoder, _as_asked(line), self.max_words)
                begun[i] = [_sure(line, row, ids) if subject.drafts else ids for ids in starts[i]]
        prompts = {i: _prompt(asked.sheet.lines[i]) for i in starts}
        open_ = list(dict.fromkeys((prompts[i], ids) for i in begun for ids in begun[i]))
        texts = [list(ids) for _, ids in open_]
        limit = SLACK + max((len(asked.sheet.lines[i].windows[0].answer_ids) for i in starts), default=0)
        stop = encoder.stop_ids
        greedy_continue(subject, [prompt for prompt, _ in open_], texts, stop, limit, encoder.pad_id)
        ended = dict(zip(open_, texts, strict=True))
        found: list[dict[str, Any]] = [{} for _ in asked.evidence]
        for i in starts:
            whole = [ended[prompts[i], ids] for ids in begun[i]]
            parts = zip(whole, starts[i], strict=True)
            found[i]["continued"] = [_first_line(encoder, ids[len(start) :]) for ids, start in parts]
        return found


def given_ids(encoder: Encoder, record: Record, max_words: int) -> list[tuple[int, ...]]:
    """For k = 0…W−1 the ids of the answer's first k words as the encoder writes them behind the prompt."""
    ends = [0, *(word.end() for word in re.finditer(r"\S+", record.answer))][:-1]
    cut = [encoder.encode(record.answered(record.answer[:end])) for end in ends[:max_words]]
    return [_without_end(encoded) for encoded in cut]


def _without_end(encoded: Encoded) -> tuple[int, ...]:
    return encoded.answer_ids[: len(encoded.answer_ids) - encoded.has_end]


def _as_asked(line: Line) -> Record:
    """The record under the prompt of the line's variant."""
    j = line.variant.partition(":")[2]
    return line.record.asked(line.record.paraphrased_prompts[int(j)]) if j else line.record


def _sure(line: Line, row: Row, start: tuple[int, ...]) -> tuple[int, ...]:
    gold = line.windows[0].answer_ids
    seamless = gold[: len(start)] == start  # else the tokenizer merges across the seam
    return followed(gold, row, len(start)) if seamless else start


def _prompt(line: Line) -> tuple[int, ...]:
    encoded = line.windows[0]
    return encoded.ids[: encoded.num_prompt]


def _first_line(encoder: Encoder, ids: Sequence[int]) -> str:
    kept = ids[:-1] if ids and ids[-1] in encoder.stop_ids else ids
    lines = encoder.decode(kept).splitlines()
    return lines[0].strip() if lines else ""
