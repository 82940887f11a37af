"""Gradient conflict: whether what forgets a record would also unlearn what must stay, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.records import Record
from expunge.explain.record_gradients import block_parameters
from expunge.subjects.subject import Subject
from expunge.training.gradients import mean_gradient
from expunge.training.hooks import TrainingControl

__all__ = ["Conflict", "ConflictLog", "conflict_along", "gradient_conflict"]


@dataclass(frozen=True)
class Conflict:
    """cos(g_f, g_r) of the mean answer NLL: near 1, whatever raises the one loss raises the other too.

    Unlearning climbs g_f: what is positive here is a conflict, 0 is none, and negative means that forgetting
    would even help. None where a gradient is zero. `layers`: by block; `whole`: over all parameters.
    """

    at: float  # α, or the optimizer step
    whole: float | None
    layers: dict[int, float | None]
    forget_norm: float
    retain_norm: float


def gradient_conflict(
    subject: Subject, forget: Sequence[Record], retain: Sequence[Record], *, at: float = 0.0
) -> Conflict:
    """The conflict at these weights. Yu et al. 2020 (arXiv 2001.06782) call cos < 0 of two *descents* one.

    As both losses here are NLLs and forgetting ascends the first, the sign is the other way round.
    """
    ours, theirs = mean_gradient(subject, forget), mean_gradient(subject, retain)
    return _compared(subject.model, ours, theirs, at)


def conflict_along(
    path: Callable[[float], Subject],
    alphas: Sequence[float],
    forget: Sequence[Record],
    retain: Sequence[Record],
) -> list[Conflict]:
    """The conflict at each θ(α) of a path (`controls.paths`: 0 the original, 1 the unlearned model)."""
    return [gradient_conflict(path(alpha), forget, retain, at=alpha) for alpha in alphas]


class ConflictLog(TrainingControl):
    """Measures the conflict before the first and after every `every`-th optimizer step; changes nothing.

    Give it to a Workspace as one of its controls; `found` grows as the training runs.
    """

    def __init__(self, forget: Sequence[Record], retain: Sequence[Record], every: int = 1):
        self.forget, self.retain, self.every = list(forget), list(retain), every
        self.found: list[Conflict] = []

    def begin(self, subject: Subject) -> None:
        if not self.found:
            self.found.append(gradient_conflict(subject, self.forget, self.retain, at=0))

    def after_step(self, step: int, subject: Subject) -> bool:
        if step % self.every == 0:
            self.found.append(gradient_conflict(subject, self.forget, self.retain, at=step))
        return False


def _compared(
    model: nn.Module, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], at: float
) -> Conflict:
    groups = block_parameters(model)
    layers = {layer: _cosine(ours, theirs, names) for layer, names in groups.items()}
    sizes = (
        float(torch.stack([g.double().square().sum() for g in some.values()]).sum()) ** 0.5
        for some in (ours, theirs)
    )
    return Conflict(at, _cosine(ours, theirs, list(ours)), layers, *sizes)


def _cosine(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: Sequence[str]) -> float | None:
    dot = sum(float((ours[n].double() * theirs[n].double()).sum()) for n in names)
    size = 1.0
    for some in (ours, theirs):
        size *= sum(float(some[n].double().square().sum()) for n in names) ** 0.5
    return dot / size if size > 0 else None
