"""Evidence: what one model does on one split, per record and token, measured once and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["FORGET_SIDE", "Evidence", "Row", "is_forget_side", "variant_kind"]

FORGET_SIDE = ("forget", "forget_hard", "forget_past")
"""Splits where knowing less is better."""


def is_forget_side(split: str) -> bool:
    """Whether knowing less is better here; of a benchmark's own splits where their names say forget.

    >>> [is_forget_side(split) for split in ("forget_hard", "forget_verbatim", "retain")]
    [True, True, False]
    """
    return split in FORGET_SIDE or split.startswith("forget_")


def variant_kind(variant: str) -> str:
    """`paraphrased_prompt:2` → `paraphrased_prompt`."""
    return variant.partition(":")[0]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One record asked in one variant.

    Variants: `gold`, `paraphrased_prompt:j` (other question, same answer), `paraphrased_answer:j`,
    `perturbed:j` (false answer), `alternate:j`, `choice:j`, `refusal`, `paraphrased_refusal:j` (other
    question, the refusal). T answer tokens, the end token included iff `has_end` (it is then the last one);
    natural logarithms; fp32.
    """

    record_id: str
    split: str
    entity: str
    variant: str
    logprobs: np.ndarray  # float32[T] log p(y_t | x, y_<t)
    hits: np.ndarray  # bool[T] the arg max is y_t
    greedy_ids: np.ndarray  # int32[T] the arg max, lowest id on a tie
    vocab_mean: np.ndarray  # float32[T] μ_t = Σ_v p_v log p_v
    vocab_std: np.ndarray  # float32[T] σ_t, weighted by p
    has_end: bool
    truncated: bool
    num_prompt_tokens: int
    text_bytes: int  # UTF-8 length of the answer text
    zlib_bytes: int  # len(zlib.compress(answer text, 6))
    vocab_size: int
    answer: str = ""  # the answer text, for metrics on generated text
    generated: str | None = None  # greedy text, stripped
    finish_reason: str | None = None  # end | length
    kl: np.ndarray | None = None  # float32[T] KL(reference‖model), when a reference was attached
    label: bool | None = None  # for choice:j, whether this choice is the right one
    extra: Mapping[str, Any] = field(default_factory=dict)  # columns that annotators add

    @property
    def num_answer(self) -> int:
        """n: answer tokens without the end token."""
        return len(self.logprobs) - int(self.has_end)

    @property
    def answer_span(self) -> slice:
        """y₁…y_n, the end token out (`answer` span)."""
        return slice(0, self.num_answer)


class Evidence:
    """The rows of one model on one split, in the order of the split's records.

    `meta` holds the key's parts: weights, tokenizer, template, records, settings, versions.
    """

    def __init__(self, split: str, rows: Iterable[Row], meta: Mapping[str, Any] | None = None):
        self.split = split
        self.rows: tuple[Row, ...] = tuple(rows)
        self.meta: dict[str, Any] = dict(meta or {})
        self._by_kind: dict[str, dict[str, list[Row]]] = {}
        for row in self.rows:
            self._by_kind.setdefault(variant_kind(row.variant), {}).setdefault(row.record_id, []).append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def gold(self) -> dict[str, Row]:
        """record id → its gold row, in record order."""
        return {record: rows[0] for record, rows in self.of("gold").items()}

    def of(self, kind: str) -> dict[str, list[Row]]:
        """record id → its rows of one kind of variant (`perturbed`, `choice`, …), j ascending."""
        return self._by_kind.get(kind, {})

    def kinds(self) -> set[str]:
        return set(self._by_kind)

    def entities(self, records: Iterable[str]) -> list[str]:
        """The entity of each record; a record without one is its own cluster."""
        return [self.entity_of[record] for record in records]

    @cached_property
    def entity_of(self) -> dict[str, str]:
        """record id → its entity, or a name of its own where it has none."""
        return {row.record_id: row.entity or f"record:{row.record_id}" for row in self.rows}
