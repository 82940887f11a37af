"""Retain losses R, one value per retain row; the method's forget loss is combined with any of them.

Value and gradient are zero at θ = θ_o, except for `ce`, which keeps training on retain, and `ap`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.data.batching import token_batches
from expunge.measure.score import batch_tokens
from expunge.registry import Registry
from expunge.subjects.adapters import lora_modules
from expunge.subjects.subject import Subject
from expunge.training.checkpoint import trainable
from expunge.training.views import View

__all__ = [
    "RETAIN_LOSSES", "AnswerPreservation", "CrossEntropy", "CrossEntropyAndKL", "HiddenMSE", "HiddenNorm",
    "JensenShannon", "KLToReference", "NoRetain", "WeightDistance", "retain_values",
]  # fmt: skip

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


@RETAIN_LOSSES.register("ce_kl")
@dataclass(frozen=True)
class CrossEntropyAndKL:
    """Cross-entropy on the retain answers plus KL(reference ‖ θ) at the same positions."""

    reads: ClassVar[tuple[str, ...]] = ("mean_nll", "logits", "reference.logits")

    def loss(self, retain: View) -> Tensor:
        return CrossEntropy().loss(retain) + KLToReference().loss(retain)


@RETAIN_LOSSES.register("jsd")
@dataclass(frozen=True)
class JensenShannon:
    """½KL(p‖M) + ½KL(p_ref‖M) with M = (p + p_ref)/2, at the answer positions: in [0, ln 2] nats."""

    reads: ClassVar[tuple[str, ...]] = ("logits", "reference.logits")

    def loss(self, retain: View) -> Tensor:
        logp = retain.logits.log_softmax(-1)
        ref = retain.reference.logits.log_softmax(-1)
        middle = torch.logaddexp(logp, ref) - math.log(2)
        divergence = logp.exp() * (logp - middle) + ref.exp() * (ref - middle)
        return retain.mean_rows(divergence.sum(-1) / 2)


@RETAIN_LOSSES.register("ap")
@dataclass(frozen=True)
class AnswerPreservation:
    """−(1/β) log σ(β (S(refusal) − S(answer))) on retain prompts: stops over-refusal.

    S sums over tokens; the gradient vanishes as the answer wins. β = 0.1; the factor is 1/β, not 2/β.
    """

    reads: ClassVar[tuple[str, ...]] = ("sum_nll", "refusal.sum_nll")
    beta: float = 0.1

    def loss(self, retain: View) -> Tensor:
        return -logsigmoid(self.beta * (retain.refusal.sum_nll - retain.sum_nll)) / self.beta


@RETAIN_LOSSES.register("hidden_mse")
@dataclass(frozen=True)
class HiddenMSE:
    """(1/D)‖h − h_ref‖² at the method's layers: mean over them, over a row's answer positions, over rows."""

    reads: ClassVar[tuple[str, ...]] = ("hidden", "reference.hidden")

    def loss(self, retain: View) -> Tensor:
        gaps = [retain.hidden(ell) - retain.reference.hidden(ell) for ell in retain.layers]
        return retain.mean_rows(torch.stack([gap.square().mean(-1) for gap in gaps]).mean(0))


@RETAIN_LOSSES.register("hidden_norm")
@dataclass(frozen=True)
class HiddenNorm:
    """‖h − h_ref‖₂, not squared, at the method's layers: mean over them, over answer positions, over rows."""

    reads: ClassVar[tuple[str, ...]] = ("hidden", "reference.hidden")

    def loss(self, retain: View) -> Tensor:
        gaps = [retain.hidden(ell) - retain.reference.hidden(ell) for ell in retain.layers]
        return retain.mean_rows(torch.stack([torch.linalg.vector_norm(gap, dim=-1) for gap in gaps]).mean(0))


@RETAIN_LOSSES.register("l2")
class WeightDistance:
    """‖θ − θ_o‖²/P over the P weights that are trained; of a LoRA, over those of the matrices it changes.

    Needs no retain rows, and a copy of the trained weights in memory.
    """

    reads: ClassVar[tuple[str, ...]] = ()

    def attach(self, subject: Subject) -> None:
        """Keep θ_o: the weights as they stand."""
        kept = lambda p: (p, p.detach().clone())  # noqa: E731
        plain = {n: p for n, p in trainable(subject.model).items() if ".lora_" not in n}
        self._plain = [kept(p) for p in plain.values()]
        self._adapters = [
            (layer.scaling[name], kept(layer.lora_A[name].weight), kept(layer.lora_B[name].weight))
            for _, layer in lora_modules(subject.model)
            for name in layer.lora_A
        ]
        sizes = [p.numel() for p, _ in self._plain]
        sizes += [up.shape[0] * down.shape[1] for _, (down, _), (up, _) in self._adapters]
        self._count = sum(sizes)

    def loss(self, retain: View | None) -> Tensor:
        """A scalar."""
        squares = [(p - origin).square().sum() for p, origin in self._plain]
        for scale, (down, down_0), (up, up_0) in self._adapters:
            left, right = torch.cat([up, -up_0], 1), torch.cat([down, down_0])  # B·A − B₀·A₀
            squares.append(scale**2 * ((left.T @ left) * (right @ right.T)).sum())
        return torch.stack(squares).sum() / self._count


@RETAIN_LOSSES.register("none")
@dataclass(frozen=True)
class NoRetain:
    """No retain term, and no retain forward."""

    reads: ClassVar[tuple[str, ...]] = ()

    def loss(self, retain: View) -> Tensor:
        raise AssertionError("a method without a retain term asks for no retain loss")


def retain_values(task: Any) -> Tensor:
    """R of every retain row of an UnlearnTask at the weights as they are: [N], eval mode, no gradient."""
    names = [name for name in task.rows if name.startswith("retain.")]
    lengths = [max(len(task.rows[n][i].ids) for n in names) for i in range(len(task.sources["retain"]))]
    values = torch.zeros(len(lengths))
    with task.subject.evaluating(), task.settings.autocast(task.subject.device):
        for indices in token_batches(lengths, batch_tokens(task.subject)):
            micro = task.micro(0, [], indices, 0, len(indices))
            values[indices] = task.retain_loss.loss(task.views(micro)["retain"]).float().cpu()
    return values
