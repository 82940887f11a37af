"""Weights by lot: the baseline of every computed mask."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.request import Request
from expunge.stats import seed_from
from expunge.subjects.subject import Subject
from expunge.training.selections.base import SELECTIONS, Scored, Share

__all__ = ["Random"]


@SELECTIONS.register("random", unit="weight", cost="none", source="")
@dataclass(frozen=True, kw_only=True)
class Random(Scored):
    """A random share of the weights; take the share of the mask it is compared with."""

    share: Share

    def scores(
        self, subject: Subject, request: Request, names: Collection[str], seed: int
    ) -> dict[str, Tensor]:
        def draw(name: str, shape: torch.Size) -> Tensor:
            generator = torch.Generator().manual_seed(seed_from(seed, "random mask", name) % 2**63)
            return torch.rand(shape, generator=generator)

        return {n: draw(n, p.shape) for n, p in subject.model.named_parameters() if n in names}
