"""Certified removal from a convex output head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, Problem
from expunge.methods.base import METHODS, OneShot, Positive
from expunge.progress import say
from expunge.stats import seed_from
from expunge.subjects.subject import Subject, load_subject
from expunge.training.convex_head import (
    ConvexHead,
    Rows,
    editable_head,
    head_rows,
    head_weight,
    set_head,
    stacked,
)
from expunge.training.gradients import answer_rows
from expunge.training.task_vectors import ignore_controls, note_moved
from expunge.training.workspace import Workspace

SCOPE = "the output head on frozen hidden states; the body and its knowledge are not covered"


@METHODS.register(
    "certified",
    family="exact",
    erases="influence",
    targets=["records", "entity", "document"],
    access="weights",
    needs=["retain"],
    cost="1F per row, then a convex problem of V·D weights",
    limits="covers the output head alone: the body has seen the records",
    scale="single",
    source="Guo, Goldstein, Hannun and van der Maaten 2019, arXiv 1911.03030",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class Certified(OneShot):
    """Remove the forget rows from the output head with an (ε, δ) certificate; the body is not covered.

    The head is the minimum of Σ_i m_i + ½·l2·N‖W − W₀‖² + ⟨B, W⟩ on frozen hidden states, B ~ N(0, σ²) per
    weight. It is trained on forget and retain (`trained`: the subject's head is such a one already), then a
    Newton step on the retained objective removes forget; its gradient residual is bounded
    (expunge.training.convex_head). While bound ≤ σε/c with c = √(2 ln(1.5/δ)), W is (ε, δ)-indistinguishable
    from a head trained on retain alone; above it the head is trained anew with new noise, and says so.

    `workspace.facts["certificate"]`: epsilon, delta, sigma, bound, budget, residual, retrained, scope. It
    says nothing of the body, which has seen the forget set; it holds for one release of these weights, before
    a control mixes the original back in, while the run's seed, from which B comes, is secret. W₀ is the head
    of `base`, a model from before exposure, or zero: the original's own would bring the forget set back.

    A tied or soft-capped head is refused: its problem is not convex. Guo et al. 2019 (arXiv 1911.03030) train
    one classifier per class on ‖x‖ ≤ 1 (ε = 1, δ = 1e-4 are theirs); softmax and a bound for any x are
    derived here. `steps` > 1 Newton steps leave far less, where theirs takes one. `noise` is σ/(l2·N): how
    far B moves a weight that no data holds; more affords more removals, at a cost. Neither is published.
    """

    epsilon: Positive = 1.0
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-4
    l2: Positive = 1e-2
    noise: Positive = 0.01
    steps: Annotated[int, Ge(1)] = 1
    base: str | None = None
    trained: bool = False

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        ignore_controls(self.name, workspace)
        if not request.retain:
            raise DataError(Problem("retain", "certified needs the retained data", "Bring a retain set"))
        head = editable_head(subject)
        forget, retain = (
            head_rows(subject, answer_rows(subject, some)) for some in (request.forget, request.retain)
        )
        prior, sigma = self._prior(head), self.noise * self.l2 * retain.num_rows
        budget = sigma * self.epsilon / math.sqrt(2 * math.log(1.5 / self.delta))
        perturbed = partial(self._problem, prior=prior, sigma=sigma, seed=workspace.settings.seed)
        whole, kept = perturbed(stacked(forget, retain)), perturbed(retain)
        weight = head_weight(head) if self.trained else whole.fit(prior, 1e-3 * budget)
        for _ in range(self.steps):
            weight, bound = kept.newton(weight)
        if retrained := max(bound, float(kept.gradient(weight).norm())) > budget:
            say(f"certified: bound {bound:.2g} above the budget {budget:.2g}, the head is trained anew")
            kept = perturbed(retain, what="trained anew")
            weight = kept.fit(prior, 1e-3 * budget)
        workspace.facts["certificate"] = {
            "epsilon": self.epsilon, "delta": self.delta, "sigma": sigma, "bound": bound, "budget": budget,
            "residual": float(kept.gradient(weight).norm()), "retrained": retrained, "scope": SCOPE,
        }  # fmt: skip
        result = subject.clone()
        set_head(editable_head(result), weight)
        note_moved(workspace, result.model, subject.model)
        return result

    def _problem(
        self, rows: Rows, *, prior: Tensor, sigma: float, seed: int, what: str = "trained"
    ) -> ConvexHead:
        """With noise that is a function of (seed, what): removal keeps the noise of the training."""
        generator = torch.Generator().manual_seed(seed_from(seed, "objective perturbation", what))
        noise = torch.randn(prior.shape, generator=generator, dtype=torch.float64)
        return ConvexHead(rows, self.l2, prior, sigma * noise.to(prior.device))

    def _prior(self, head: nn.Linear) -> Tensor:
        if self.base is None:
            return torch.zeros_like(head_weight(head))
        prior = head_weight(editable_head(load_subject(self.base, device=str(head.weight.device))))
        if prior.shape != head_weight(head).shape:
            raise ConfigError(Problem("method.base", "its output head has another shape", "Bring the same"))
        return prior
