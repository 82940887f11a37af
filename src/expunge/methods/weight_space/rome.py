"""Rank-one model editing, toward a refusal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from expunge.data.request import Request
from expunge.methods.base import METHODS, OneShot, Positive, Weight
from expunge.progress import track
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
    second_moment,
)
from expunge.training.rewriting import Target, finish_edit, fitted_tokens, generic_rows, memories
from expunge.training.task_vectors import ignore_controls
from expunge.training.workspace import Workspace


@METHODS.register(
    "rome",
    family="weight_space",
    erases="output",
    targets=["records", "entity"],
    access="weights",
    needs=["retain"],
    cost="steps·(1+prefixes)·(1F+1B) per record",
    limits="rephrased questions and hidden states still give the answer",
    scale="single",
    source="Meng et al. 2022, arXiv 2202.05262; as an unlearner Patil et al. 2023, arXiv 2309.17410",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class ROME(OneShot):
    """Rewrite each answer by a rank-one edit of one MLP, record after record.

    W' = W + (v* − Wk*)(C⁻¹k*)ᵀ/(k*ᵀC⁻¹k*). k* is the mean `down_proj` input at the entity's last token over
    the prompt and random prefixes of it; v* = Wk* + δ with δ by Adam so that the model says `target` (refusal
    | alternate | empty) instead; C = E[kkᵀ] over retain. Records are edited in turn, each on what the last
    one left. Precise on the prompt edited; leaks by rephrasing and from hidden states. Experts and norms
    behind the MLP: ModelError.

    Meng et al. 2022 (arXiv 2202.05262): layer 17 of 48, a proportion `None` keeps; 20 steps, lr 0.5 (here in
    units of v's root mean square), ‖δ‖ ≤ 4‖v‖. Theirs, left out here: the KL term that keeps what the entity
    is, since that may have to go too; prefixes sampled by the model and C from Wikipedia, here both retain's.
    """

    layer: int | None = None
    target: Target = "refusal"
    prefixes: Annotated[int, Ge(0)] = 5
    steps: Annotated[int, Ge(1)] = 20
    lr: Positive = 0.5
    decay: Weight = 1.5e-3
    clamp: Positive = 4.0

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        ignore_controls(self.name, workspace)
        began, seed = time.monotonic(), workspace.settings.seed
        # what the last block writes is read nowhere but at its own token
        deepest = len(blocks(subject.model)) - 2
        layer = layer_at(subject, self.layer, 17 / 48, where="layer", last=deepest)
        made = memories(
            subject, request, name=self.name, target=self.target, prefixes=self.prefixes, seed=seed
        )
        fit = Fit(self.steps, self.lr, self.decay, self.clamp)
        work = subject.clone()
        module = mlp_output(work.model, layer)
        moment = second_moment(subject, layer, generic_rows(subject, request, self.name))
        keys = mean_keys(subject, layer, made)  # they come before what is edited
        with track("rome: edits", len(made)) as advance:
            for j, memory in enumerate(made):
                shift = fit_shifts(work, [memory], module, fit)
                add_edit(module, edit(keys[:, j : j + 1], shift, moment))
                advance()
        return finish_edit(work, subject, workspace, fitted_tokens(made, fit), time.monotonic() - began)
