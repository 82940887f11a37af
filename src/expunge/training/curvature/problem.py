"""The objective whose curvature is inverted, for any differentiable model: what every solver works from.

R(θ) = scale · Σ_i Σ_{a∈i} w_a ℓ(z_a, y_a) + ½·ridge·‖θ‖²: items i (rows of text, data points) with positions
a, outputs z [N, K] and weights w [N]. P parameters in all, those of the subset and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from expunge.errors import NotComputable
from expunge.stats import seed_from

__all__ = [
    "CATEGORICAL",
    "GAUSSIAN",
    "CurvatureProblem",
    "Labels",
    "Likelihood",
    "Output",
    "Product",
    "Solver",
]

Labels = Literal["sampled", "gold"]
"""`sampled`: drawn from the model, the true Fisher. `gold`: the data's own labels, the *empirical* Fisher."""

Product = Literal["ggn", "hessian"]


class Solver(Protocol):
    """Curvature fitted once; `solve` applies its damped inverse to as many gradients as there are."""

    def solve(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(H + δI)^{-1} g by parameter name; linear in g, so no gradient gives no step."""
        ...


@dataclass(frozen=True)
class Output:
    """What the model says at N positions of the items it was given."""

    values: Tensor  # [N, K]
    targets: Tensor  # [N] ids (categorical) or [N, K] (gaussian)
    weights: Tensor  # [N]
    row: Tensor  # [N] which of the given items a position belongs to


@dataclass(frozen=True)
class Likelihood:
    """ℓ(z, y) [N], a draw ŷ ~ p(·|z), and ∇²_z ℓ times a vector; ℓ is −log p up to a constant."""

    loss: Callable[[Tensor, Tensor], Tensor]
    sample: Callable[[Tensor, torch.Generator], Tensor]
    hessian: Callable[[Tensor, Tensor], Tensor]


def _draw_ids(values: Tensor, generator: torch.Generator) -> Tensor:
    """Inverse of the distribution function at uniform numbers from the CPU: one draw for every device."""
    uniform = torch.rand(len(values), 1, generator=generator, dtype=torch.float64).to(values.device)
    ids = torch.searchsorted(values.double().softmax(-1).cumsum(-1), uniform)[:, 0]
    return ids.clamp(max=values.shape[1] - 1)


def _softmax_hessian(values: Tensor, vector: Tensor) -> Tensor:
    p = values.softmax(-1)
    return p * vector - p * (p * vector).sum(-1, keepdim=True)


def _draw_normal(values: Tensor, generator: torch.Generator) -> Tensor:
    return values + torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values)


CATEGORICAL = Likelihood(lambda z, y: cross_entropy(z, y, reduction="none"), _draw_ids, _softmax_hessian)
"""Softmax cross-entropy on ids."""

GAUSSIAN = Likelihood(lambda z, y: 0.5 * (z - y).square().sum(-1), _draw_normal, lambda z, v: v)
"""½‖z − y‖²."""


@dataclass(frozen=True)
class CurvatureProblem:
    """Items, the model's outputs on them, and the parameters whose curvature is asked for.

    `scale` makes up for items left out by subsampling. Curvature is that of the *sum* over items.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    items: Sequence[Any]
    evaluate: Callable[[Sequence[Any]], Output]
    likelihood: Likelihood = CATEGORICAL
    scale: float = 1.0
    ridge: float = 0.0
    batch: int = 16
    seed: int = 0

    @property
    def size(self) -> int:
        """P"""
        return sum(p.numel() for p in self.parameters.values())

    def batches(self) -> list[Sequence[Any]]:
        return [self.items[i : i + self.batch] for i in range(0, len(self.items), self.batch)]

    # Vectors: by name outside, flat inside -------------------------------------------------------------

    def flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """[P], at least fp32"""
        pieces = [named[name].reshape(-1) for name in self.parameters]
        return torch.cat(pieces).to(torch.promote_types(pieces[0].dtype, torch.float32))

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        pieces = flat.split([p.numel() for p in self.parameters.values()])
        return {n: v.view(p.shape) for (n, p), v in zip(self.parameters.items(), pieces, strict=True)}

    # Derivatives ---------------------------------------------------------------------------------------

    def gradient(self) -> dict[str, Tensor]:
        """∇R(θ)"""
        total = self.ridge * self.flat(self.parameters).detach()
        for items in self.batches():
            total += self.scale * self._flat_gradient(self._loss(items))
        return self.named(total)

    def product(self, vector: Tensor, kind: Product, items: Sequence[Any] | None = None) -> Tensor:
        """H v [P]; `items`: those alone, without ridge, scaled up to the whole sum.

        `ggn`: Σ w Jᵀ(∇²_z ℓ)J, positive semi-definite, equal to the true Fisher for these likelihoods.
        `hessian`: exact second derivatives, indefinite away from an optimum.
        """
        if items is not None:
            return self._product(vector, kind, items) * (self.scale * len(self.items) / len(items))
        total = self.ridge * vector
        for some in self.batches():
            total = total + self.scale * self._product(vector, kind, some)
        return total

    def row_gradients(self, labels: Labels) -> Iterator[dict[str, Tensor]]:
        """Per item the g_i with Σ_i g_i g_iᵀ the Fisher of the sum (`scale` and `ridge` left out).

        Sampled labels: Σ_a √w_a ∇ℓ(z_a, ŷ_a): across positions the draws are independent and of mean zero,
        so that its square has the GGN as its mean. Gold labels: ∇ Σ_a w_a ℓ(z_a, y_a).
        """
        for index in range(len(self.items)):
            yield self.named(self._flat_gradient(self.row_loss(index, labels)))

    def row_loss(self, index: int, labels: Labels) -> Tensor:
        """The scalar whose gradient is g_i. Labels are a function of (seed, item) alone."""
        out = self.evaluate([self.items[index]])
        if labels == "gold":
            return (out.weights * self.likelihood.loss(out.values, out.targets)).sum()
        generator = torch.Generator().manual_seed(seed_from(self.seed, "fisher labels", index))
        drawn = self.likelihood.sample(out.values.detach(), generator)
        return (out.weights.sqrt() * self.likelihood.loss(out.values, drawn)).sum()

    def mean_eigenvalue(self, labels: Labels = "sampled") -> float:
        """tr(H)/P of the Fisher with these labels. Raises NotComputable where the curvature is zero."""
        trace = sum(float(self.flat(row).square().sum()) for row in self.row_gradients(labels))
        mean = self.scale * trace / self.size + self.ridge
        if not mean > 0:
            raise NotComputable("the curvature of the retained objective is zero or not finite here")
        return mean

    def _loss(self, items: Sequence[Any]) -> Tensor:
        out = self.evaluate(items)
        return (out.weights * self.likelihood.loss(out.values, out.targets)).sum()

    def _flat_gradient(self, scalar: Tensor, create_graph: bool = False) -> Tensor:
        chosen = list(self.parameters.values())
        found = torch.autograd.grad(scalar, chosen, create_graph=create_graph, materialize_grads=True)
        return self.flat(dict(zip(self.parameters, found, strict=True)))

    def _product(self, vector: Tensor, kind: Product, items: Sequence[Any]) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            if kind == "hessian":
                slope = self._flat_gradient(self._loss(items), create_graph=True)
                return self._flat_gradient((slope * vector).sum())
            out = self.evaluate(items)
            # Jᵀu is linear in u, so its derivative by u along v is Jv
            probe = torch.zeros_like(out.values, requires_grad=True)
            back = self._flat_gradient((out.values * probe).sum(), create_graph=True)
            forward = torch.autograd.grad((back * vector).sum(), probe, retain_graph=True)[0]
            curved = self.likelihood.hessian(out.values.detach(), forward) * out.weights[:, None]
            return self._flat_gradient((out.values * curved).sum())
