"""Mass editing: many answers rewritten at once, spread over several layers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge

from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.methods.base import METHODS, OneShot, Positive, Weight
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject
from expunge.training.linear_memory import (
    Fit,
    add_edit,
    edit,
    fit_shifts,
    layer_at,
    mean_keys,
    mlp_output,
    outputs_at,
    second_moment,
)
from expunge.training.rewriting import Target, finish_edit, fitted_tokens, generic_rows, memories
from expunge.training.task_vectors import ignore_controls
from expunge.training.workspace import Workspace


@METHODS.register(
    "memit",
    family="weight_space",
    erases="output",
    targets=["records", "entity"],
    access="weights",
    needs=["retain"],
    cost="steps·(1+prefixes)·(1F+1B) on forget",
    scale="single",
    source="Meng et al. 2022, arXiv 2210.07229; as an unlearner Li et al. 2025, arXiv 2505.19855",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class MEMIT(OneShot):
    """Rewrite all answers at once, spread over the MLPs of several layers.

    ΔW = R Kᵀ(λ₀C + KKᵀ)⁻¹, layer by layer. Targets z = h + δ are found at the output of block `last` as in
    `rome`; each layer ℓ of `first`..`last` writes R = (z − h)/(last − ℓ + 1) with h as the layers before left
    it. λ₀ weighs what retain's C must keep: 15,000 suits models of 6 to 7 B parameters, small ones want far
    less.

    Meng et al. 2022 (arXiv 2210.07229): layers 3 to 8 of 28 (GPT-J); blocks 4 to 8 of 32, kept as a
    proportion here, are the choice for Llama-7B; 25 steps, lr 0.5 in units of h's root mean square,
    ‖δ‖ ≤ 0.75‖h‖ (official code). What `rome` leaves out is left out here.
    """

    first: int | None = None
    last: int | None = None
    prior: Positive = 15_000.0  # λ₀
    target: Target = "refusal"
    prefixes: Annotated[int, Ge(0)] = 5
    steps: Annotated[int, Ge(1)] = 25
    lr: Positive = 0.5
    decay: Weight = 1.5e-3
    clamp: Positive = 0.75

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        ignore_controls(self.name, workspace)
        began, settings = time.monotonic(), workspace.settings
        layers = self._layers(subject)
        made = memories(
            subject, request, name=self.name, target=self.target, prefixes=self.prefixes, seed=settings.seed
        )
        generic = generic_rows(subject, request, self.name)
        fit = Fit(self.steps, self.lr, self.decay, self.clamp)
        work, top = subject.clone(), layers[-1]
        block, size = blocks(work.model)[top], max(1, settings.batch // (1 + self.prefixes))
        parts = [made[i : i + size] for i in range(0, len(made), size)]
        shifts = torch.cat([fit_shifts(work, part, block, fit) for part in parts], dim=1)
        bare = [m.rows[0] for m in made], [m.positions[0] for m in made]
        goal = outputs_at(work, top, *bare) + shifts
        for layer in layers:
            residuals = (goal - outputs_at(work, top, *bare)) / (top - layer + 1)
            moment = second_moment(subject, layer, generic)
            change = edit(mean_keys(work, layer, made), residuals, moment, prior=self.prior)
            add_edit(mlp_output(work.model, layer), change)
        return finish_edit(work, subject, workspace, fitted_tokens(made, fit), time.monotonic() - began)

    def _layers(self, subject: Subject) -> range:
        deepest = len(blocks(subject.model)) - 2  # what the last block writes is read at its own token only
        last = layer_at(subject, self.last, 8 / 32, where="last", last=deepest)
        first = layer_at(subject, self.first, 4 / 32, where="first", last=deepest)
        if first > last:
            raise ConfigError(Problem("method.first", f"{first} lies behind last = {last}", "Swap them"))
        return range(first, last + 1)
