"""Gradient ascent on the forget answers, alone or against a retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.methods.base import METHODS, Objective
from expunge.training.views import View


@dataclass(frozen=True, kw_only=True)
class Ascent(Objective):
    """ℓ_f = −m_i: the mean NLL of each forget answer, sign flipped. Unbounded: it needs a control."""

    reads: ClassVar[tuple[str, ...]] = ("mean_nll",)

    def loss(self, forget: View) -> Tensor:
        return -forget.mean_nll


@METHODS.register(
    "ga",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document"],
    access="weights",
    needs=[],
    cost="1F+1B",
    limits="nothing holds the rest, and the ascent has no bound: without a control the model dies",
    scale="fsdp",
    source="Jang et al. 2022, arXiv 2210.01504",
    verified=["forgetting"],
)
@dataclass(frozen=True, kw_only=True)
class GradientAscent(Ascent):
    """Gradient ascent on the forget answers; nothing holds it back.

    The NLL grows without bound and the model dies (Jang et al. 2022, arXiv 2210.01504): report it controlled.
    """

    retain: str = "none"


@METHODS.register(
    "graddiff",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain"],
    cost="2F+2B",
    limits="the ascent has no bound: without a control after it the model dies",
    scale="fsdp",
    source="Liu, Liu and Stone 2022; Maini et al. 2024, arXiv 2401.06121",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class GradientDifference(Ascent):
    """Gradient difference: ascent on forget, cross-entropy on retain.

    Liu, Liu and Stone 2022; λ = 1 as in Maini et al. 2024 (arXiv 2401.06121).
    """

    retain: str = "ce"


@METHODS.register(
    "ga_kl",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain", "reference"],
    cost="2F+2B",
    limits="the ascent has no bound: without a control after it the model dies",
    scale="ddp",
    source="Maini et al. 2024, arXiv 2401.06121",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class GradientAscentKL(Ascent):
    """Ascent on the forget answers, held back by a KL to the reference on retain answers.

    ℓ_f = −m_i, ℓ_r = KL(reference‖θ), λ = 1. Maini et al. 2024 (arXiv 2401.06121).
    """

    retain: str = "kl"
