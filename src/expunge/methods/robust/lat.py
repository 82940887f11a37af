"""Latent adversarial training around any likelihood loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.methods.base import METHODS, Objective, Positive, Weight
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject
from expunge.training.latent import Perturbation, strongest
from expunge.training.views import View
from expunge.training.workspace import Workspace


@METHODS.register(
    "lat",
    family="robust",
    erases="capability",
    targets=["records", "entity", "topic", "capability"],
    access="weights",
    needs=["retain", "refusals"],
    cost="5 to 17 times 2F+2B, by `steps`",
    scale="ddp",
    source="Sheshadri et al. 2024, arXiv 2407.15549",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class LAT(Objective):
    """Forget under the worst small perturbation of the prompt's hidden states.

    Inner: `steps` steps on δ [B, T, D], added to the residual stream after block `layer` at prompt tokens,
    minimize the NLL of the gold answers with ‖δ_t‖₂ ≤ ε. Outer: the loss under δ*, and ce on retain without
    it. The loss is "away" from gold, −log(1 − p_y), and `toward` a refusal, or that of any likelihood method
    named in `objective`. Sheshadri et al. 2024 (arXiv 2407.15549): 16 steps of AdamW at 5e-2, ε 1.5 to 6 by
    model, layer 12 of 32. `steps: 0` or `epsilon: 0` is the plain loss.
    """

    objective: str = "away"
    objective_settings: dict[str, Any] | None = None
    toward: Weight = 1.0
    steps: Annotated[int, Ge(0)] = 16
    step_size: Positive = 5e-2
    epsilon: Weight = 2.0
    layer: int | None = None

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        inner = self._inner()
        if inner is not None:
            return tuple(dict.fromkeys((*inner.reads, "mean_nll")))
        return ("mean_nll", "token_logprobs", *(("refusal.mean_nll",) if self.toward else ()))

    def _inner(self) -> Objective | None:
        if self.objective == "away":
            return None
        made = METHODS.make(self.objective, **(self.objective_settings or {}))
        if not isinstance(made, Objective) or hasattr(made, "layers_of") or made.kind != "objective":
            what = f"{self.objective} is no likelihood loss"
            raise ConfigError(Problem("method.objective", what, "Try away, npo, simnpo or wga"))
        return made

    def loss(self, forget: View, **state: Tensor) -> Tensor | Mapping[str, Tensor]:
        inner = self._inner()
        if inner is not None:
            return inner.loss(forget, **state)
        probability = forget.token_logprobs.exp().clamp(max=1 - 1e-6)
        terms = {"away": forget.mean_rows(-torch.log1p(-probability))}
        if self.toward:
            terms["toward"] = self.toward * forget.refusal.mean_nll
        return terms

    def setup(self, subject: Subject, request: Request, seed: int) -> dict[str, Tensor]:
        inner: Any = self._inner()
        return inner.setup(subject, request, seed) if hasattr(inner, "setup") else {}

    def teacher(self, subject: Subject, request: Request, workspace: Workspace) -> Subject | None:
        inner = self._inner()
        return inner.teacher(subject, request, workspace) if inner else None

    @contextmanager
    def within(self, task: Any, micro: Any) -> Iterator[None]:
        """δ* of the forget rows, while the outer loss is computed."""
        if not self.steps or not self.epsilon or not any(part.side == "forget" for part in micro.parts):
            yield
            return
        block = blocks(task.subject.model)[self._site(task.subject)]
        delta = strongest(task, micro, block, self.steps, self.step_size, self.epsilon)
        with Perturbation(block, micro, delta):
            yield

    def _site(self, subject: Subject) -> int:
        count = len(blocks(subject.model))
        layer = round(12 / 32 * count) if self.layer is None else self.layer
        if not 0 <= layer < count:
            raise ConfigError(Problem("method.layer", f"{layer}, but the model has blocks 0..{count - 1}"))
        return layer
