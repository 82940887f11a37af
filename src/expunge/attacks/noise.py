"""Random noise on the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from expunge.attacks.base import ATTACKS, Field, Profile
from expunge.attacks.perturbing import Changed, Perturbation, plain_copy
from expunge.interventions.matrices import matrices
from expunge.stats import seed_from
from expunge.subjects.subject import Subject

DRAWS: Mapping[Profile, int] = {"quick": 1, "default": 5, "deep": 5}


@ATTACKS.register(
    "noise",
    threat="white-box",
    kind="weights",
    injects="nothing",
    tier=1,
    profiles=["default", "deep"],
    budget="3 sizes of noise, 5 draws each; one scoring pass a draw",
    source="Che et al. 2025, arXiv 2502.05209",
)
@dataclass(frozen=True, kw_only=True)
class Noise(Perturbation):
    """Add σ·std(W)·N(0, 1) to every matrix of the blocks: forgetting with a thin margin does not survive it.

    A draw is a direction that every model gets alike; the worst of the draws counts.
    """

    sigmas: tuple[float, ...] = (0.01, 0.03, 0.1)
    draws: int = 0  # 0: the profile's

    def configs(self, field: Field) -> Sequence[Mapping[str, Any]]:
        draws = range(self.draws or DRAWS[field.profile])
        return [{"sigma": sigma, "draw": draw} for sigma in self.sigmas for draw in draws]

    def changed(self, subject: Subject, field: Field) -> Iterator[Changed]:
        base, work = plain_copy(subject), plain_copy(subject)
        pairs = list(zip(matrices(base.model), matrices(work.model), strict=True))
        for config in self.configs(field):
            with torch.no_grad():
                for (name, weight), (_, noisy) in pairs:
                    size = config["sigma"] * weight.float().std()
                    noisy.copy_(weight + size * _normal(weight, field, config["draw"], name))
            yield Changed(config, work, {})


def _normal(weight: torch.Tensor, field: Field, draw: int, name: str) -> torch.Tensor:
    """N(0, 1) in the shape of a weight, from its name and the seed: the same for every model and size."""
    chance = torch.Generator().manual_seed(seed_from(field.seed, "noise", draw, name) % 2**63)
    return torch.randn(weight.shape, generator=chance).to(weight.device, weight.dtype)
