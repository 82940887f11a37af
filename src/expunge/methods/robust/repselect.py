"""Ascent without the directions that forget shares with all text, taken after a simulated relearning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import Tensor

from expunge.data.request import Request
from expunge.methods.base import METHODS, LoopMethod, Positive
from expunge.registry import Search
from expunge.subjects.adapters import attach_lora, merge
from expunge.subjects.architecture import blocks, linear_weights
from expunge.subjects.subject import Subject
from expunge.training.budget import RetainBudget
from expunge.training.finetune import finetune
from expunge.training.hooks import TrainingControl
from expunge.training.settings import TrainSettings
from expunge.training.transforms.collapse import collapsed
from expunge.training.views import View


@METHODS.register(
    "repselect",
    family="robust",
    erases="capability",
    targets=["records", "entity", "topic", "capability", "document"],
    access="weights",
    needs=["retain, for the budget"],
    cost="per round: a LoRA epoch, 1F+1B over forget, one SVD per matrix",
    scale="ddp",
    source="Sondej et al. 2026, arXiv 2606.17168",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class RepSelect(LoopMethod):
    """Collapse the strongest directions of the forget gradient taken after a short relearning.

    A round is one optimizer step: (1) an epoch of LoRA descent on the forget NLL by SGD, on a copy; (2) there
    G = ∇_W(−NLL) over the forget set; (3) the top `q` singular directions of each MLP matrix collapse, σ_i →
    σ_q²/σ_i; (4) W ← W − η·G̃. Rounds end at `rounds`, or when the retain loss exceeds `budget` times its
    start (that round is taken back). Sondej et al. 2026 (arXiv 2606.17168), simple variant of the authors'
    code: q 512 at width 4096 (a proportion `None` keeps), LoRA lr 0.01, η 0.05, rank 32. `train.lr` and
    optimizer play no part.
    """

    reads: ClassVar[tuple[str, ...]] = ("mean_nll",)
    retain: str = "none"
    q: Annotated[int, Ge(1)] | None = None
    hard: bool = False
    eta: Positive = 0.05
    lora_lr: Positive = 0.01
    rank: int = 32
    lora_batch: int = 32
    rounds: int = 20
    budget: Annotated[Positive, Search(1.01, 1.5)] = 1.05

    def loss(self, forget: View) -> Tensor:
        return -forget.mean_nll

    def settings_for(self, settings: TrainSettings, request: Request) -> TrainSettings:
        """One step is one round over the whole forget set; the step is complete as it is."""
        count = max(1, len(request.forget))
        pieces = settings.accumulate * math.ceil(count / settings.batch)
        plain = {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "warmup": 0.0}
        more = {"schedule": "constant", "steps": self.rounds, "batch": 2**31, "accumulate": pieces}
        return settings.model_copy(update={**plain, **more})

    def hooks(self, request: Request) -> Sequence[TrainingControl]:
        return [RetainBudget(request.retain, self.budget)] if request.retain else []

    def selects(self, subject: Subject) -> set[str]:
        layers = range(len(blocks(subject.model)))
        return set(linear_weights(subject.model, layers, r"mlp|feed_forward|moe"))

    def step(self, loop: Any, number: int) -> dict[str, float]:
        values: dict[str, float] = {}
        here = [p.detach().clone() for p in loop.parameters]
        relearned = dict(self._relearned(loop).model.named_parameters())
        names = [name for name, p in loop.subject.model.named_parameters() if p.requires_grad]
        loop.stand([relearned[name].detach() for name in names])
        gradient = loop.side(number, "forget", values)
        loop.stand(here)
        for parameter, g in zip(loop.parameters, gradient, strict=True):
            q = self.q or max(1, min(parameter.shape) // 8)
            parameter.grad = self.eta * collapsed(g, q, hard=self.hard)
        return values

    def _relearned(self, loop: Any) -> Subject:
        """A copy after one epoch of LoRA descent on the forget answers."""
        task = loop.task
        targets = sorted(name.removesuffix(".weight") for name in self.selects(loop.subject))
        copy = attach_lora(loop.subject.clone(), rank=self.rank, seed=task.settings.seed, targets=targets)
        plain = {"lr": self.lora_lr, "steps": None, "epochs": 1.0, "batch": self.lora_batch, "accumulate": 1}
        finetune(copy, task.request.forget, task.settings.model_copy(update=plain), name="relearning")
        return merge(copy)
