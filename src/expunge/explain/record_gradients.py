"""Gradients record by record, and what belongs to which block."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.records import Record
from expunge.errors import ConfigError, Problem
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows, differentiable, row_losses

__all__ = ["Gradients", "block_parameters", "gradient_source", "matching"]


def block_parameters(model: nn.Module) -> dict[int, list[str]]:
    """{block: the names of its parameters}; embeddings, final norm and head belong to none."""
    stack = blocks(model)
    path = next(name for name, module in model.named_modules() if module is stack)
    names = [name for name, p in model.named_parameters() if p.is_floating_point()]
    return {i: [name for name in names if name.startswith(f"{path}.{i}.")] for i in range(len(stack))}


def matching(subject: Subject, match: str) -> list[str]:
    """The parameters whose name has `match` in it (a regular expression; empty: all)."""
    try:
        found = [
            n for n, p in subject.model.named_parameters() if p.is_floating_point() and re.search(match, n)
        ]
    except re.error as error:
        raise ConfigError(Problem("match", f"{match!r}: {error}")) from error
    if not found:
        some = ", ".join(name for name, _ in list(subject.model.named_parameters())[:3])
        raise ConfigError(Problem("match", f"{match!r} matches no parameter", f"Names look like {some}"))
    return found


class Gradients(NamedTuple):
    """∇ of a record's mean answer NLL, by parameter name; documents: the mean over their windows."""

    subject: Subject
    chosen: dict[str, nn.Parameter]

    def of(self, record: Record) -> dict[str, Tensor]:
        rows = answer_rows(self.subject, [record])
        loss = sum((row_losses(self.subject, [row]).sum() for row in rows), torch.tensor(0.0)) / len(rows)
        found = torch.autograd.grad(loss, list(self.chosen.values()), materialize_grads=True)
        return {name: g.float() for name, g in zip(self.chosen, found, strict=True)}

    def flat(self, record: Record) -> Tensor:
        """[P] in the order of the names"""
        return torch.cat([g.reshape(-1) for g in self.of(record).values()])

    def each(self, records: Sequence[Record]) -> Iterator[dict[str, Tensor]]:
        return (self.of(record) for record in records)


@contextmanager
def gradient_source(subject: Subject, names: Collection[str] | None = None) -> Iterator[Gradients]:
    """Gradients by these parameters (None: all); eval mode, everything left as found."""
    with differentiable(subject, names) as chosen:
        yield Gradients(subject, chosen)
