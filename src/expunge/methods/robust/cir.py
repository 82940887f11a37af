"""Collapse of irrelevant representations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from expunge.data.request import Request
from expunge.methods.base import METHODS, LoopMethod, Positive, Weight
from expunge.registry import Search
from expunge.subjects.architecture import blocks, linear_weights
from expunge.subjects.subject import Subject
from expunge.training.budget import RetainBudget
from expunge.training.channels import factors, projected_gradients, real_tokens, shared_directions
from expunge.training.hooks import TrainingControl
from expunge.training.settings import TrainSettings
from expunge.training.transforms import norm
from expunge.training.views import View

MLP = r"mlp|feed_forward|moe"


@METHODS.register(
    "cir",
    family="robust",
    erases="capability",
    targets=["records", "entity", "topic", "capability", "document"],
    access="weights",
    needs=["retain", "reference"],
    cost="<2F+2B, one pass over forget before",
    scale="ddp",
    source="Sondej and Yang 2025, arXiv 2509.11816",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class CIR(LoopMethod):
    """Break what the MLPs write on forget, outside the directions that all text shares.

    ℓ_f = mean over layers and answer positions of [⟨o, o_ref⟩ / (mean‖o_ref‖)²]_+, o what an MLP writes.
    Before ∇W = Σ_t g_t a_tᵀ is formed, the mean and the top principal directions are projected out of the
    inputs a (`acts` in all) and the output gradients g (`grads`), both measured on the forget set at θ_o;
    the first token is left out. The update has norm `size`; a step of `retain_lr` on `hidden_mse` goes with
    it. Ends when the retain loss exceeds `budget` times its start. Sondej and Yang 2025 (arXiv 2509.11816):
    the numbers here, layers 6 to 11 of 32. `train.lr` and optimizer play no part.
    """

    reads: ClassVar[tuple[str, ...]] = ("hidden", "reference.hidden")
    site: ClassVar[str] = "mlp"
    retain: str = "hidden_mse"
    acts: int = 24
    grads: int = 36
    size: Positive = 0.2
    retain_lr: Weight = 3e-4
    budget: Annotated[Positive, Search(1.01, 1.5)] = 1.05
    layers: tuple[int, ...] = ()

    def loss(self, forget: View, **_: Tensor) -> Tensor:
        rows = []
        for ell in forget.layers:
            own, ref = forget.hidden(ell), forget.reference.hidden(ell)
            scale = forget.mean_rows(ref.norm(dim=-1)).square()[forget.row]
            rows.append(forget.mean_rows(((own * ref).sum(-1) / scale).clamp(min=0)))
        return torch.stack(rows).mean(0)

    def settings_for(self, settings: TrainSettings, request: Request) -> TrainSettings:
        plain = {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "max_grad_norm": 0.0}
        return settings.model_copy(update={**plain, "schedule": "constant", "warmup": 0.0})

    def hooks(self, request: Request) -> Sequence[TrainingControl]:
        return [RetainBudget(request.retain, self.budget)] if request.retain else []

    def layers_of(self, subject: Subject) -> tuple[int, ...]:
        count = len(blocks(subject.model))
        return self.layers or tuple(range(round(6 / 32 * count), max(1, round(12 / 32 * count))))

    def selects(self, subject: Subject) -> set[str]:
        return set(linear_weights(subject.model, self.layers_of(subject), MLP))

    def setup(self, subject: Subject, request: Request, seed: int) -> dict[str, Tensor]:
        """Orthonormal bases of what is projected out, by matrix."""
        layers = self.layers_of(subject)
        modules = linear_weights(subject.model, layers, MLP)
        return shared_directions(subject, request.forget, modules, layers, self.acts, self.grads)

    @contextmanager
    def within(self, task: Any, micro: Any) -> Iterator[None]:
        """Backward leaves the projected gradient in the place of the plain one."""
        if not any(part.side == "forget" for part in micro.parts):
            yield
            return
        modules = linear_weights(task.subject.model, self.layers_of(task.subject), MLP)
        before = {n: None if (g := m.weight.grad) is None else g.clone() for n, m in modules.items()}  # type: ignore[operator]
        with factors(modules, real_tokens(micro.batch.attention_mask)) as found:
            yield
        bases = [{n: task.state[f"{what}.{n}"] for n in modules} for what in ("acts", "grads")]
        for name, gradient in projected_gradients(found, modules, *bases).items():
            earlier = before[name]
            modules[name].weight.grad = gradient if earlier is None else earlier + gradient

    def step(self, loop: Any, number: int) -> dict[str, float]:
        values: dict[str, float] = {}
        forget, retain = loop.side(number, "forget", values), loop.side(number, "retain", values)
        length = norm(forget).clamp(min=1e-30)
        for parameter, f, r in zip(loop.parameters, forget, retain, strict=True):
            parameter.grad = self.size * f / length + self.retain_lr * r
        return values
