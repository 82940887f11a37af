"""The influence step: what retraining without the forget set would change, to first order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, ExpungeError, Problem
from expunge.methods.base import METHODS, OneShot, Positive, Weight
from expunge.progress import say
from expunge.subjects.subject import Subject
from expunge.training.curvature import (
    Labels,
    Product,
    SolverName,
    language_problem,
    linear_weights,
    make_solver,
)
from expunge.training.gradients import differentiable, sum_gradient
from expunge.training.task_vectors import ignore_controls, note_moved
from expunge.training.workspace import Workspace

Count = Annotated[int, Ge(1)]


@METHODS.register(
    "newton",
    family="weight_space",
    erases="influence",
    targets=["records", "entity", "document"],
    access="weights",
    needs=["retain"],
    cost="2N_retain(F+B) to fit EK-FAC, then 1F+1B on forget per step",
    limits="overshoots where forgetting is no small change: let a control choose the strength",
    scale="single",
    source="Koh and Liang 2017, arXiv 1703.04730; Grosse et al. 2023, arXiv 2308.03296",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class Newton(OneShot):
    """Influence step: move the weights as retraining without the forget set would, to first order.

    θ_u = θ_o + η (H_r + δI)^{-1} Σ_{i∈forget} ∇m_i, H_r the curvature of Σ_{retain} m_i (m_i: mean NLL of an
    answer): sums over rows, so that η = 1 is the first-order change by retraining, exact for a quadratic
    objective. `steps` > 1 takes η/steps at a time, each with a new gradient, the curvature held fixed.

    `solver`: diagonal, kfac, ekfac on the Fisher (`labels` sampled from the model, or gold: the *empirical*
    Fisher); cg, lissa, dense on the `product` ggn or hessian (dense up to 4,096 weights). δ = `damping` ·
    tr(H)/P, the same for every solver (0.1 of the mean eigenvalue: Grosse et al. 2023, who take it per map).

    η = 1 overshoots far: mixing by s afterwards is η·s (one step). No value for unlearning is published.

    `parameters`: weights of the blocks' linear maps, or all (diagonal, cg, lissa, dense); `match` keeps names
    with this regular expression (`mlp`, as Grosse et al.). Embeddings, head, norms, biases, routers and fused
    experts are not in `linear` and stay bit-identical. `max_rows`: rows that the curvature is fitted on.
    Koh and Liang 2017 (arXiv 1703.04730); Grosse et al. 2023 (arXiv 2308.03296).
    """

    strength: Weight = 1.0  # η
    steps: Count = 1
    solver: SolverName = "ekfac"
    damping: Positive = 0.1
    labels: Labels = "sampled"
    product: Product = "ggn"
    parameters: Literal["linear", "all"] = "linear"
    match: str = ""
    max_rows: Count | None = None
    iterations: Count | None = None  # of cg and lissa; None: their own
    tolerance: Positive | None = None
    stochastic: bool = False  # lissa by batches

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        ignore_controls(self.name, workspace)
        if not request.retain:
            what = "newton needs retain records: their curvature says where the model may move"
            raise DataError(Problem("retain", what, "Bring a retain set"))
        names, seed = self.selects(subject), workspace.settings.seed
        work, result = subject.clone(), subject.clone()
        work.model.float()  # in bf16 a small step rounds away
        with differentiable(work, names) as chosen:
            problem = language_problem(work, request.retain, chosen, max_rows=self.max_rows, seed=seed)
            delta = self.damping * problem.mean_eigenvalue(self.labels)
            solver = make_solver(
                self.solver, problem, delta, labels=self.labels, product=self.product,
                iterations=self.iterations, tolerance=self.tolerance, stochastic=self.stochastic,
            )  # fmt: skip
            for _ in range(self.steps):
                self._move(chosen, solver.solve(sum_gradient(work, request.forget, names=names)))
        with torch.no_grad():
            for mine, exact in zip(result.model.parameters(), work.model.parameters(), strict=True):
                mine.copy_(exact)
        excluded = subject.num_parameters() - problem.size
        say(f"newton: {problem.size:,} weights may move; {excluded:,} are excluded, see method.parameters")
        workspace.facts["newton"] = {"damping": delta, "excluded_parameters": excluded}
        note_moved(workspace, result.model, subject.model)
        return result

    def selects(self, subject: Subject) -> set[str]:
        """Names of the parameters that may move."""
        every = [name for name, _ in subject.model.named_parameters()]
        known = linear_weights(subject.model) if self.parameters == "linear" else every
        if chosen := {name for name in known if re.search(self.match, name)}:
            return chosen
        fix = "It is a regular expression over parameter names, such as mlp"
        raise ConfigError(Problem("method.match", f"no parameter matches {self.match!r}", fix))

    @torch.no_grad()
    def _move(self, parameters: Mapping[str, nn.Parameter], step: Mapping[str, Tensor]) -> None:
        if not all(bool(s.isfinite().all()) for s in step.values()):
            raise ExpungeError("newton: the step is not finite. Raise damping, or lower strength")
        for name, parameter in parameters.items():
            parameter.add_(step[name], alpha=self.strength / self.steps)
