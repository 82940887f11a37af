"""Jensen-Shannon divergence to a refusal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.methods.base import METHODS, Objective
from expunge.training.views import View


@METHODS.register(
    "jensun",
    family="relabeling",
    erases="output",
    targets=["records", "entity", "topic"],
    access="weights",
    needs=["retain", "reference", "refusals"],
    cost="2F+2B",
    scale="ddp",
    source="Singh et al. 2025, arXiv 2509.02820",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class JensUn(Objective):
    """Move forget answers to a refusal by a bounded divergence, and hold retain by the same one.

    The divergence is Jensen-Shannon's, in [0, ln 2]; on retain it is that to the reference. ℓ_f = mean_t
    JSD(p_t, e_r) = ln 2 + ½[p_r ln p_r − (1 + p_r) ln(1 + p_r)] over the refusal's own tokens r and end
    token. Bounded on both sides, so it cannot collapse; where p_r ≈ 0 the gradient starves, and a few steps
    of `idk`, or a refusal the model finds plausible, warm it up. Singh et al. 2025 (arXiv 2509.02820);
    weights 1 and 1 as their code configures it (its 0.2 belongs to a uniform target).
    """

    reads: ClassVar[tuple[str, ...]] = ("refusal.token_logprobs",)
    retain: str = "jsd"

    def loss(self, forget: View) -> Tensor:
        logp = forget.refusal.token_logprobs
        p = logp.exp()
        return forget.refusal.mean_rows(math.log(2) + (p * logp - (1 + p) * torch.log1p(p)) / 2)
