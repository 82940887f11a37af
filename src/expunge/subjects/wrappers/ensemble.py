"""Several models that speak with one voice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.subjects.subject import Subject
from expunge.subjects.wrapped import WRAPPERS, Blended

__all__ = ["Ensemble", "EnsembleRule", "together"]

Rule = Literal["logprob", "mixture", "vote"]


@dataclass(frozen=True)
class EnsembleRule:
    """`logprob`: geometric mean; `mixture`: arithmetic mean; `vote`: one each, one more for the mixture."""

    rule: Rule = "logprob"


@WRAPPERS.register("ensemble")
class Ensemble(Blended):
    """Models that never saw each other's data, averaged at every token; none of them stands for the whole.

    log p ∝ (1/S) Σ_s log p_s · p = (1/S) Σ_s p_s · p_v = (#{s: argmax p_s = v} + (1/S) Σ_s p_s,v) / (S + 1).
    """

    Rule = EnsembleRule
    knob = False

    def unwrapped(self) -> Subject:
        """Itself: no member stands for the whole, so attacks on the weights of one would say little."""
        return self

    def blend(self, z: Mapping[str, Tensor]) -> Tensor:
        logprobs = torch.stack([z[name].log_softmax(-1) for name in sorted(z)])  # [S, N, V]
        if self.rule.rule == "logprob":
            return logprobs.mean(0)
        mixture = logprobs.exp().mean(0)
        if self.rule.rule == "mixture":
            return mixture.log()
        votes = torch.zeros_like(logprobs).scatter_(-1, logprobs.argmax(-1, keepdim=True), 1.0).sum(0)
        return ((votes + mixture) / (len(logprobs) + 1)).log()


def together(members: Iterable[Subject], rule: Rule) -> Subject:
    """All members as one subject; a single one as it is."""
    first, *others = members
    parts = {f"member-{i:04}": other for i, other in enumerate(others, start=1)}
    return Ensemble(first, EnsembleRule(rule), parts) if parts else first
