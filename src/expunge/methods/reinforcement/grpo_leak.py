"""Reinforce answers that do not leak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from expunge.data.request import Request
from expunge.methods.base import METHODS, LoopMethod, Weight
from expunge.registry import Search
from expunge.subjects.subject import Subject
from expunge.training.hooks import TrainingControl
from expunge.training.rewards import advantages, clipped_gain, k3
from expunge.training.sampling import LeaveOutEmptySteps, Sampled, at_positions
from expunge.training.settings import TrainSettings
from expunge.training.views import View
from expunge.training.workspace import Workspace


@METHODS.register(
    "grpo_leak",
    family="reinforcement",
    erases="output",
    targets=["records", "entity", "topic"],
    access="weights",
    needs=["retain", "reference", "keywords (else the content words of the answers)"],
    cost="10 to 100 times 2F+2B, by the length of the answers",
    scale="ddp",
    source="Zaradoukas et al. 2026, arXiv 2601.20568; Zhang et al. 2025, arXiv 2506.07171",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class GRPOLeak(Sampled, LoopMethod):
    """Sample answers and make those likelier that leak less than the others to the same question.

    Per prompt G = `answers` samples with rewards r in [0, 1]: silence (`training.rewards`) times fluency.
    A = (r − mean)/(std + 1e-4) within the group, population std. ℓ_f = −mean_g mean_t [min(ρ A,
    clip(ρ, 1−ε, 1+ε) A) − β·KL], ρ against the model that drew the answer, KL to θ_o by the estimator k3. ρ
    is 1 and nothing is clipped unless `reuse` takes several optimizer steps per drawing. On retain prompts
    the same, weighted with λ·`boundary`, for ROUGE-L correctness: else silence everywhere would win.
    `warm_start`: the share of the steps that first learn refusals.

    Zaradoukas et al. 2026 (arXiv 2601.20568), G 4, τ 1 and 40 epochs in their code, which has no boundary; it
    and the warm start are RULE's (Zhang et al. 2025, arXiv 2506.07171). ε and β: Shao et al. 2024
    (arXiv 2402.03300). 64 tokens and the weight of the boundary are ours.
    """

    transformable: ClassVar[bool] = True
    beta: Weight = 0.04
    clip: Annotated[float, Ge(0), Search()] = 0.2  # ε
    reuse: Annotated[int, Ge(1), Search()] = 1
    boundary: Weight = 1.0
    warm_start: Annotated[float, Ge(0), Lt(1)] = 0.0

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        kl = ("reference.token_logprobs",) if self.beta else ()
        return (*self.reading("token_logprobs", *kl), *(("refusal.mean_nll",) if self.warm_start else ()))

    @property
    def retain_reads(self) -> tuple[str, ...]:
        return tuple(r for r in self.reads if r.startswith("sample")) if self.boundary else ()

    def setup(self, subject: Subject, request: Request, seed: int) -> dict[str, Tensor]:
        return self.empty_table("forget", request.forget) | self.empty_table("retain", request.retain)

    def loss(self, forget: View, **state: Tensor) -> Mapping[str, Tensor]:
        if self._warming(forget.progress):
            return {"refusal": forget.refusal.mean_nll}
        return self._terms(forget, "forget", state)

    def retain_terms(self, retain: View, **state: Tensor) -> dict[str, Tensor]:
        if not self.boundary or self._warming(retain.progress):
            return {}
        terms = self._terms(retain, "retain", state)
        return {"boundary": self.boundary * torch.stack([*terms.values()]).sum(0)}

    def _terms(self, view: View, side: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows = list(view.index)
        better = advantages(state[f"{side}.rewards"][rows]).nan_to_num(0.0).float()
        gains, kls = [], []
        for g, name in enumerate(self.samples):
            sample: View = getattr(view, name)
            logp = sample.tempered(self.temperature).token_logprobs
            old = at_positions(state[f"{side}.old"][rows, g], sample)
            gain = clipped_gain(logp, old, better[:, g].to(logp.device)[sample.row], self.clip)
            gains.append(sample.mean_rows(gain))
            if self.beta:
                kls.append(sample.mean_rows(k3(sample.token_logprobs, sample.reference.token_logprobs)))
        terms = {"policy": -torch.stack(gains).mean(0)}
        return terms | ({"kl": self.beta * torch.stack(kls).mean(0)} if kls else {})

    def step(self, loop: Any, number: int) -> dict[str, float]:
        turn, again = divmod(number, self.reuse)
        values, rows = {}, {} if self._warming(turn / loop.task.num_steps) else loop.task.rows
        for side, what in (("forget", "reward"), ("retain", "correctness")):
            if f"{side}.{self.samples[0]}" in rows:
                if not again:
                    values[what] = self.draw(loop, turn, side)
                self.place(loop, turn, side)
        return values | loop.gradients(turn)

    def _warming(self, progress: float) -> bool:
        return progress * self.reuse < self.warm_start

    def settings_for(self, settings: TrainSettings, request: Request) -> TrainSettings:
        """An epoch draws once for each prompt."""
        return settings.model_copy(update={"epochs": settings.epochs * self.reuse})

    def hooks(self, request: Request) -> Sequence[TrainingControl]:
        return [LeaveOutEmptySteps()]

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        workspace.facts |= self.facts(request, ("forget", "retain") if self.boundary else ("forget",))
        return workspace.train(self, subject, request)
