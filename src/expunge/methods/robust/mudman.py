"""Meta-unlearning with disruption masking and normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from expunge.data.request import Request
from expunge.errors import ModelError, Problem
from expunge.methods.base import METHODS, LoopMethod, Positive, Weight
from expunge.registry import Search
from expunge.subjects.architecture import blocks, linear_weights
from expunge.subjects.subject import Subject
from expunge.training.settings import TrainSettings
from expunge.training.transforms import Gradients, inner
from expunge.training.views import View

GATES = ("gate_proj", "w1", "c_fc", "fc1", "dense_h_to_4h", "up_proj")
"""The matrix through which an MLP reads the residual stream, family by family; of two, the one that gates."""


@METHODS.register(
    "mudman",
    family="robust",
    erases="capability",
    targets=["records", "entity", "topic", "capability", "document"],
    access="weights",
    needs=["retain"],
    cost="2F+3B, three times the selected weights",
    scale="ddp",
    source="Sondej et al. 2025, arXiv 2506.12484",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class MUDMAN(LoopMethod):
    """Unlearn where a relearning adversary stands, only in directions that retain agrees with.

    Each step: ḡ ← 0.9ḡ + 0.1∇CE_r(main); the adversary, a copy of main every `fork_every` steps, descends
    on CE_f; g = ∇(−entropy) at the adversary; main moves by −`retain_lr`·ḡ − `unlearning_rate`·mask(g)/‖g‖,
    where the mask keeps entries with the sign of ḡ. The norm is taken before masking, so the second part is
    at most `unlearning_rate` long. `train.lr` and the recipe's optimizer play no part. Sondej et al. 2025
    (arXiv 2506.12484): the numbers here, 100 steps, gate projections only. Their simple script reuses one
    forward for the adversary's step and the unlearning gradient; here each is taken where it belongs.
    """

    reads: ClassVar[tuple[str, ...]] = ("logits", "mean_nll")
    retain: str = "ce"
    fork_every: int = 32
    unlearning_rate: Positive = 0.1
    adversary_lr: Weight = 1e-3
    retain_lr: Weight = 1e-3
    decay: Annotated[float, Search(0.5, 0.99)] = 0.9

    def loss(self, forget: View, **_: Tensor) -> Tensor:
        """Negative entropy of the answer distributions, −H = Σ_v p log p, [B]."""
        logp = forget.logits.log_softmax(-1)
        return forget.mean_rows((logp.exp() * logp).sum(-1))

    def settings_for(self, settings: TrainSettings, request: Request) -> TrainSettings:
        """The step is complete as it is: plain subtraction."""
        plain = {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "max_grad_norm": 0.0}
        return settings.model_copy(update={**plain, "schedule": "constant", "warmup": 0.0})

    def selects(self, subject: Subject) -> set[str]:
        found = linear_weights(subject.model, range(len(blocks(subject.model))))
        for kind in GATES:
            if chosen := {name for name in found if name.endswith(f".{kind}.weight")}:
                return chosen
        raise ModelError(
            Problem(type(subject.model).__name__, "has no gate projection that is known by name")
        )

    def step(self, loop: Any, number: int) -> dict[str, float]:
        values: dict[str, float] = {}
        main = [p.detach().clone() for p in loop.parameters]
        average = self._average(loop, loop.side(number, "retain", values))
        adversary = self._kept(loop, "adversary")
        if number % self.fork_every == 0 or not adversary:
            adversary = [p.clone() for p in main]
        loop.stand(adversary)
        toward = loop.side(number, "forget", rows=lambda view: view.mean_nll)
        adversary = [a - self.adversary_lr * g for a, g in zip(adversary, toward, strict=True)]
        loop.stand(adversary)
        gradient = loop.side(number, "forget", values)
        loop.stand(main)
        length = inner(gradient, gradient).sqrt().clamp(min=1e-30)
        masked = loop.task.with_retain
        for parameter, g, a in zip(loop.parameters, gradient, average, strict=True):
            kept = torch.where(g.sign() == a.sign(), g, torch.zeros_like(g)) if masked else g
            parameter.grad = self.retain_lr * a + self.unlearning_rate * kept / length
        loop.state.update({f"adversary.{i}": a for i, a in enumerate(adversary)})
        return values

    def _average(self, loop: Any, gradient: Gradients) -> Gradients:
        """ḡ, kept from step to step; zero without a retain set, and then nothing is masked."""
        before = self._kept(loop, "average") or [torch.zeros_like(g) for g in gradient]
        after = [self.decay * b + (1 - self.decay) * g for b, g in zip(before, gradient, strict=True)]
        loop.state.update({f"average.{i}": a for i, a in enumerate(after)})
        return after

    def _kept(self, loop: Any, what: str) -> Gradients:
        count = sum(name.startswith(f"{what}.") for name in loop.state)
        return [loop.state[f"{what}.{i}"] for i in range(count)]
