"""A softmax head on frozen features as a convex problem, and what removing rows from it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.batching import collate
from expunge.data.encoding import Encoded
from expunge.errors import ExpungeError, Problem, Unsupported
from expunge.subjects.architecture import output_head
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.curvature import conjugate_gradient

__all__ = [
    "CURVATURE_LIPSCHITZ",
    "ConvexHead",
    "Removal",
    "Rows",
    "editable_head",
    "head_rows",
    "head_weight",
    "set_head",
    "stacked",
]

CURVATURE_LIPSCHITZ = 1 / math.sqrt(2)
"""γ: ‖∇²ℓ(z) − ∇²ℓ(z')‖ ≤ γ‖z − z'‖ for softmax cross-entropy.

Its third derivative in u, u, v is the third central co-moment under p: at most Var(u)·max|v − v̄|, where
Var(u) ≤ range(u)²/4 ≤ ‖u‖²/2 and |v − v̄| ≤ range(v) ≤ √2‖v‖.
"""

_ELEMENTS = 2**24  # of the logits that are held at once


class Rows(NamedTuple):
    """Positions [A] with features [A, D] (float64), gold ids and weights 1/n_i, from `num_rows` rows."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    num_rows: int


class Removal(NamedTuple):
    """Weights after one Newton step and a bound on the gradient norm they leave."""

    weight: Tensor
    bound: float


@dataclass(frozen=True)
class ConvexHead:
    """L(W) = Σ_i (1/n_i) Σ_{a∈i} CE(W x_a, y_a) + ½·l2·N·‖W − W₀‖² + ⟨B, W⟩, W [V, D], N rows.

    `prior` is W₀, `noise` is B: the objective perturbation that makes the minimum random.
    """

    rows: Rows
    l2: float
    prior: Tensor
    noise: Tensor

    @property
    def strength(self) -> float:
        """l2·N, the strong convexity."""
        return self.l2 * self.rows.num_rows

    def value(self, weight: Tensor) -> float:
        def losses(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
            logits = x @ weight.T
            return (w * (logits.logsumexp(-1) - logits.gather(1, y[:, None])[:, 0])).sum()

        ridge = 0.5 * self.strength * (weight - self.prior).square().sum()
        return float(self._summed(losses) + ridge + (self.noise * weight).sum())

    def gradient(self, weight: Tensor) -> Tensor:
        def slope(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
            p = (x @ weight.T).softmax(-1)
            p[torch.arange(len(y)), y] -= 1.0
            return (p * w[:, None]).T @ x

        return self._summed(slope) + self.strength * (weight - self.prior) + self.noise

    def product(self, weight: Tensor, vector: Tensor) -> Tensor:
        """∇²L(W) V"""

        def curved(x: Tensor, _: Tensor, w: Tensor) -> Tensor:
            p, z = (x @ weight.T).softmax(-1), x @ vector.T
            return ((p * z - p * (p * z).sum(-1, keepdim=True)) * w[:, None]).T @ x

        return self._summed(curved) + self.strength * vector

    def newton(self, weight: Tensor, tolerance: float = 1e-6) -> Removal:
        """One Newton step from any W, and what it leaves of the gradient at most.

        Taylor: position a leaves ∇ℓ a remainder of norm ≤ (γ/2)‖U x_a‖², so
            ‖∇L(W + U)‖ ≤ (γ/2) Σ_a w_a ‖U x_a‖² ‖x_a‖ + ‖∇²L(W) U + ∇L(W)‖,
        the last term for the linear solve. With ‖x_a‖ ≤ 1 it is at most half of Guo et al.'s Corollary 1,
        γ‖X‖₂‖U‖‖XU‖.
        """
        slope = self.gradient(weight)
        solved = conjugate_gradient(
            lambda v: self.product(weight, v), -slope, iterations=1000, tolerance=tolerance
        )
        step = solved.solution

        def remainder(x: Tensor, _: Tensor, w: Tensor) -> Tensor:
            return (w * (x @ step.T).square().sum(-1) * x.norm(dim=-1)).sum()

        taylor = 0.5 * CURVATURE_LIPSCHITZ * float(self._summed(remainder))
        return Removal(weight + step, taylor + solved.residual * float(slope.norm()))

    def fit(self, start: Tensor, tolerance: float, limit: int = 200) -> Tensor:
        """The minimum, by damped Newton steps, to a gradient norm of `tolerance`. Raises ExpungeError."""
        weight, value = start, self.value(start)
        for _ in range(limit):
            slope = self.gradient(weight)
            if float(slope.norm()) <= tolerance:
                return weight
            step = self.newton(weight, 1e-2).weight - weight
            descent, size = float((slope * step).sum()), 1.0
            slack = 1e-12 * abs(value)  # near the minimum values differ by rounding alone
            while (new := self.value(weight + size * step)) > value + 1e-4 * size * descent + slack:
                size /= 2
            weight, value = weight + size * step, new
        raise ExpungeError(f"the head did not reach a gradient of {tolerance:.1e} in {limit} Newton steps")

    def _summed(self, part: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        size = max(1, _ELEMENTS // len(self.prior))
        chunks = zip(*(t.split(size) for t in self.rows[:3]), strict=True)
        total = [part(*chunk) for chunk in chunks]
        return torch.stack(total).sum(0) if len(total) > 1 else total[0]


def stacked(one: Rows, other: Rows) -> Rows:
    """Both together."""
    joined = [torch.cat(pair) for pair in zip(one[:3], other[:3], strict=True)]
    return Rows(joined[0], joined[1], joined[2], one.num_rows + other.num_rows)


def head_rows(subject: Subject, rows: Sequence[Encoded], batch: int = 16) -> Rows:
    """What the output head is given at the answer positions of these rows, a one appended for its bias."""
    inputs, targets, weights = [], [], []
    with subject.evaluating() as model:
        for start in range(0, len(rows), batch):
            some = collate(rows[start : start + batch], subject.encoder.pad_id).to(subject.device)
            last = forward(model, some, logits=False, last=True).last
            assert last is not None
            inputs.append(last.double())
            targets.append(some.targets)
            weights.append(1.0 / some.num_tokens[some.row].double())
    features = torch.cat(inputs)
    if output_head(subject.model).bias is not None:
        features = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    return Rows(features, torch.cat(targets), torch.cat(weights), len(rows))


def editable_head(subject: Subject) -> nn.Linear:
    """The output head, where replacing it alone is convex. Raises Unsupported where it is not."""
    head = output_head(subject.model)
    text = subject.config.get_text_config()
    tied = head.weight is subject.model.get_input_embeddings().weight  # type: ignore[operator]
    problems = []
    if tied:
        what = "the output head is tied to the embeddings: moving it would move the features it reads"
        problems.append(Problem("certified", what, "Untie it and save the model, or use retrain or sisa"))
    if getattr(text, "final_logit_softcapping", None):
        problems.append(Problem("certified", "soft-capped logits make the head's problem non-convex"))
    if not isinstance(head, nn.Linear):
        problems.append(Problem("certified", f"the output head is a {type(head).__name__}, not a linear map"))
    if problems:
        raise Unsupported(problems)
    assert isinstance(head, nn.Linear)
    return head


def head_weight(head: nn.Linear) -> Tensor:
    """W [V, D], float64, the bias as one more column."""
    columns = [head.weight] if head.bias is None else [head.weight, head.bias[:, None]]
    return torch.cat(columns, dim=1).detach().double()


@torch.no_grad()
def set_head(head: nn.Linear, weight: Tensor) -> None:
    """Put W into the head, in place."""
    head.weight.copy_(weight[:, : head.in_features])
    if head.bias is not None:
        head.bias.copy_(weight[:, -1])
