"""Retain losses R, one value per retain row; the method's forget loss is combined with any of them.

Zero gradient at θ = θ_o for `kl` and `hidden_mse`; `ce` keeps training on retain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from expunge.registry import Registry
from expunge.training.views import View

__all__ = ["RETAIN_LOSSES", "CrossEntropy", "HiddenMSE", "KLToReference", "NoRetain"]

RETAIN_LOSSES: Registry[Any] = Registry("retain_loss", "expunge.training", "RETAIN_LOSSES")


@RETAIN_LOSSES.register("ce")
@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy on the retain answers, mean over each row's tokens."""

    reads: ClassVar[tuple[str, ...]] = ("mean_nll",)

    def loss(self, retain: View) -> Tensor:
        return retain.mean_nll


@RETAIN_LOSSES.register("kl")
@dataclass(frozen=True)
class KLToReference:
    """KL(reference ‖ θ) at the answer positions: Σ_v p_ref (log p_ref − log p)."""

    reads: ClassVar[tuple[str, ...]] = ("logits", "reference.logits")

    def loss(self, retain: View) -> Tensor:
        logp = retain.logits.log_softmax(-1)
        ref = retain.reference.logits.log_softmax(-1)
        return retain.mean_rows(
            torch.nn.functional.kl_div(logp, ref, log_target=True, reduction="none").sum(-1)
        )


@RETAIN_LOSSES.register("hidden_mse")
@dataclass(frozen=True)
class HiddenMSE:
    """(1/D)‖h − h_ref‖² at the method's layers: mean over them, over a row's answer positions, over rows."""

    reads: ClassVar[tuple[str, ...]] = ("hidden", "reference.hidden")

    def loss(self, retain: View) -> Tensor:
        gaps = [retain.hidden(ell) - retain.reference.hidden(ell) for ell in retain.layers]
        return retain.mean_rows(torch.stack([gap.square().mean(-1) for gap in gaps]).mean(0))


@RETAIN_LOSSES.register("none")
@dataclass(frozen=True)
class NoRetain:
    """No retain term, and no retain forward."""

    reads: ClassVar[tuple[str, ...]] = ()

    def loss(self, retain: View) -> Tensor:
        raise AssertionError("a method without a retain term asks for no retain loss")
