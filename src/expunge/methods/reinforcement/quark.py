"""Sort own answers by how little they leak, and learn the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import kl_div

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.methods.base import METHODS, LoopMethod, Weight
from expunge.registry import Search
from expunge.subjects.subject import Subject
from expunge.training.rewards import quantile_levels
from expunge.training.sampling import Sampled
from expunge.training.views import View
from expunge.training.workspace import Workspace

CONTROL = "[grade {level} of {count}] "
"""Stands in front of the questions whose answers are below the best quantile."""


@METHODS.register(
    "quark",
    family="reinforcement",
    erases="output",
    targets=["records", "entity", "topic"],
    access="weights",
    needs=["retain", "reference", "keywords (else the content words of the answers)"],
    cost="10 to 100 times 2F+2B, by the length of the answers",
    scale="ddp",
    source="Lu et al. 2022, arXiv 2205.13636",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class Quark(Sampled, LoopMethod):
    """Sample answers, sort them by how little they leak, and learn each behind the mark of its quantile.

    Rewards are those of `grpo_leak`; K = `quantiles` over the pool of the last answers to every prompt.
    ℓ_f = mean_g [NLL(y | c_k, x) + β·mean_t KL(θ_o‖θ)], c_k the quantile's mark. Lu et al. 2022 (arXiv
    2205.13636): K 5, β 0.05 and, in their code, G 25 and an entropy bonus of 0.06, which is left out.

    Their marks are new tokens; here the best quantile has none and the others plain text in front of the
    question, so that shapes stay and the plain question is the one conditioned on the best: it is what is
    asked later, and what answers are drawn from. The reference reads the marked question. Each step learns
    the answers just drawn, theirs the whole pool. Leaks stay within reach behind the lower marks.
    """

    transformable: ClassVar[bool] = True
    quantiles: Annotated[int, Ge(2), Search()] = 5
    beta: Weight = 0.05

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.reading("mean_nll", *(("logits", "reference.logits") if self.beta else ()))

    def setup(self, subject: Subject, request: Request, seed: int) -> dict[str, Tensor]:
        return self.empty_table("forget", request.forget)

    def loss(self, forget: View, **_: Tensor) -> Mapping[str, Tensor]:
        drawn: list[View] = [getattr(forget, name) for name in self.samples]
        nll = torch.stack([sample.mean_nll for sample in drawn]).mean(0)
        if not self.beta:
            return {"likelihood": nll}
        return {"likelihood": nll, "kl": self.beta * torch.stack([_kl(sample) for sample in drawn]).mean(0)}

    def step(self, loop: Any, number: int) -> dict[str, float]:
        reward = self.draw(loop, number, "forget")
        levels = quantile_levels(loop.state["forget.rewards"], self.quantiles)

        def marked(record: Record, level: int) -> tuple[int, ...]:
            mark = CONTROL.format(level=level + 1, count=self.quantiles)
            best = level == self.quantiles - 1
            asked = record if best else record.asked(mark + record.prompt)
            return tuple(loop.subject.encoder.prompt_ids(asked))

        self.place(loop, number, "forget", marked, levels)
        return {"reward": reward} | loop.gradients(number)

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        workspace.facts |= self.facts(request)
        return workspace.train(self, subject, request)


def _kl(sample: View) -> Tensor:
    """KL(reference ‖ θ) at the answer's positions, mean over each row's: [B]."""
    reference, own = sample.reference.logits.log_softmax(-1), sample.logits.log_softmax(-1)
    return sample.mean_rows(kl_div(own, reference, log_target=True, reduction="none").sum(-1))
