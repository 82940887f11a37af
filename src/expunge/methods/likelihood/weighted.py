"""Ascent with a weight per token: one loss, three weights (those of saturation and importance: satimp.py)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.methods.base import METHODS, Objective, Weight
from expunge.training.views import View


@dataclass(frozen=True, kw_only=True)
class Weighted(Objective):
    """ℓ_f = −mean_t sg(w_t)·ℓ_t per row, ℓ_t the NLL of a token; the weight carries no gradient."""

    reads: ClassVar[tuple[str, ...]] = ("token_logprobs",)

    def loss(self, forget: View) -> Tensor:
        return forget.mean_rows(self.weight(forget).detach() * forget.token_logprobs)

    @abstractmethod
    def weight(self, forget: View) -> Tensor:
        """w, [A]"""


@METHODS.register(
    "wga", family="likelihood", erases="influence", targets=["records", "entity", "document", "topic"],
    access="weights", needs=["retain"], cost="2F+2B", scale="fsdp",
    source="Wang, Zhou et al. 2025, arXiv 2502.19301", verified=["forgetting", "utility"],
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class WGA(Weighted):
    """Weighted gradient ascent: push the tokens that are still likely, leave forgotten ones alone.

    ℓ_f = −mean_t sg(p_t^β) ℓ_t. β = 0 is gradient ascent. Wang, Zhou et al. 2025 (arXiv 2502.19301); β = 5 is
    the value of their code.
    """

    beta: Weight = 5.0

    def weight(self, forget: View) -> Tensor:
        return (self.beta * forget.token_logprobs).exp()


@METHODS.register(
    "tnpo", family="likelihood", erases="influence", targets=["records", "entity", "document", "topic"],
    access="weights", needs=["reference", "retain"], cost="2F+2B", scale="fsdp",
    source="Wang, Zhou et al. 2025, arXiv 2502.19301", verified=["forgetting", "utility"],
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class TNPO(Weighted):
    """NPO token by token: ascent on the tokens that are still as likely as they were.

    Weight 2p_t^β / (p_t^β + p_ref,t^β). That is 2σ(−β(ℓ − ℓ_ref)), NPO's weight for each token by itself, and
    1 at the reference. Wang, Zhou et al. 2025 (arXiv 2502.19301); β = 4 is the value of their code.
    """

    reads: ClassVar[tuple[str, ...]] = ("token_logprobs", "reference.token_logprobs")
    beta: Weight = 4.0

    def weight(self, forget: View) -> Tensor:
        return 2 * (self.beta * (forget.token_logprobs - forget.reference.token_logprobs)).sigmoid()


@METHODS.register(
    "wtnpo", family="likelihood", erases="influence", targets=["records", "entity", "document", "topic"],
    access="weights", needs=["reference", "retain"], cost="2F+2B", scale="fsdp",
    source="Wang, Zhou et al. 2025, arXiv 2502.19301", verified=["forgetting", "utility"],
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class WTNPO(TNPO):
    """Weighted token-wise NPO: as `tnpo`, and unlikely tokens count less still.

    The weight of `tnpo` times p_t^α; β = 4 and α = 1.5 as in their code.
    """

    alpha: Weight = 1.5

    def weight(self, forget: View) -> Tensor:
        return super().weight(forget) * (self.alpha * forget.token_logprobs).exp()
