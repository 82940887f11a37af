"""Localization by comparison: which blocks treat a record otherwise than another model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn

from expunge.data.batching import collate
from expunge.data.records import Record
from expunge.errors import DataError, Problem, Unsupported
from expunge.explain.base import LOCALIZERS, Case, Localization, Localizer
from expunge.explain.localization.masks import block_mask
from expunge.explain.states import block_states
from expunge.subjects.architecture import blocks
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows

__all__ = ["RepresentationDistance"]


@LOCALIZERS.register(
    "representation_distance",
    unit="block",
    access="states",
    localizes=True,
    cost="2F per record, both models in memory",
    source="",
)
@dataclass(frozen=True, kw_only=True)
class RepresentationDistance(Localizer):
    """Blocks that do something else with a record than the other model's block, given the same input.

    ‖B'_ℓ(h) − B_ℓ(h)‖ / ‖B_ℓ(h) − h‖ over the tokens of the record, h the subject's own stream: a change is
    charged to the block that makes it, not to those after it. `details` hold the distance of the states
    themselves, ‖h'_ℓ − h_ℓ‖ / ‖h_ℓ‖, which adds up. Mask: the `keep` blocks with the largest mean. Needs the
    model after unlearning (or before) and equal architectures.
    """

    keep: Annotated[int, Ge(1)] = 1

    def localize(self, subject: Subject, case: Case) -> Localization:
        other = case.other
        if other is None:
            what, fix = "compares two models", "Give the model before unlearning and the one after it"
            raise DataError(Problem("localizer.representation_distance", what, fix))
        for model in (subject, other):
            model.need("hidden", "weights", what="a distance of representations")
        if len(blocks(subject.model)) != len(blocks(other.model)) or type(subject.model) is not type(
            other.model
        ):
            raise Unsupported(
                Problem("the two models", "differ in architecture", "Compare models of one kind")
            )
        layers = tuple(range(len(blocks(subject.model))))
        own = np.array([self._own(subject, other, record) for record in case.forget])
        summed = np.array([self._states(subject, other, record, layers) for record in case.forget])
        best = np.argsort(-own.mean(0), kind="stable")[: self.keep].tolist()
        return Localization(
            tuple(r.id for r in case.forget),
            layers,
            own,
            block_mask(subject.model, best, "block"),
            details={"states": summed.tolist()},
        )

    def _own(self, subject: Subject, other: Subject, record: Record) -> list[float]:
        found: list[list[float]] = []
        for row in answer_rows(subject, [record]):
            batch = collate([row], subject.encoder.pad_id).to(subject.device)
            distances: list[float] = []
            with subject.evaluating() as model, other.evaluating(), _beside(subject, other, distances):
                forward(model, batch)
            found.append(distances)
        return np.mean(found, axis=0).tolist()

    def _states(self, subject: Subject, other: Subject, record: Record, layers: Sequence[int]) -> list[float]:
        found = []
        for row in answer_rows(subject, [record]):
            batch = collate([row], subject.encoder.pad_id).to(subject.device)
            ours, theirs = (block_states(s, batch, layers) for s in (subject, other))
            found.append([_ratio(theirs[i] - ours[i], ours[i]) for i in layers])
        return np.mean(found, axis=0).tolist()


def _ratio(change: Tensor, size: Tensor) -> float:
    return float(change.float().norm() / size.float().norm().clamp(min=1e-30))


@contextmanager
def _beside(subject: Subject, other: Subject, distances: list[float]) -> Iterator[None]:
    """While the subject runs, each block of the other model is given what the subject's block is given."""
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731

    def compare(block: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            given = inputs[0] if inputs else named["hidden_states"]
            with torch.no_grad():
                distances.append(
                    _ratio(first(block(*inputs, **named)) - first(output), first(output) - given)
                )

        return hook

    pairs = zip(blocks(subject.model), blocks(other.model), strict=True)
    handles = [own.register_forward_hook(compare(block), with_kwargs=True) for own, block in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
