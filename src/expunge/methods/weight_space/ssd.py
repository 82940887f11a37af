"""Selective synaptic dampening: shrink the weights that matter to the forget set above all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.methods.base import METHODS, OneShot, Positive
from expunge.subjects.subject import Subject
from expunge.training.gradients import fisher_diagonal
from expunge.training.task_vectors import ignore_controls, note_moved
from expunge.training.workspace import Workspace


@METHODS.register(
    "ssd",
    family="weight_space",
    erases="influence",
    targets=["records", "entity", "document", "capability"],
    access="weights",
    needs=["retain"],
    cost="1F+1B per row, once",
    limits="its threshold has to be found anew for each model",
    scale="single",
    source="Foster, Schoepf and Brintrup 2023, arXiv 2308.07707",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class SSD(OneShot):
    """Shrink the weights that matter to forget far more than to the rest; no training.

    θ_j ← θ_j · min(λ I_j / I_f,j, 1) wherever I_f,j > α I_j. I_f and I are diagonals of the empirical Fisher
    (gold labels, exact per row) on forget and on `importance`: the `retain` set, or `all` data. Every
    parameter counts, ties once. The paper takes `all`, which bounds I_f/I by N/N_f: with a tenth of the rows
    to forget its α = 10 selects nothing. Its code squares gradients of batches, which makes importance depend
    on their size.

    α (`selection`) = 10 and λ (`dampening`) = 1 are the paper's for ResNet-18; α has to be found anew for
    each model. `ssd_selected` in the facts is the share dampened; 0: nothing is forgotten.
    Foster, Schoepf and Brintrup 2023 (arXiv 2308.07707).
    """

    selection: Positive = 10.0  # α
    dampening: Positive = 1.0  # λ
    importance: Literal["retain", "all"] = "retain"

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        ignore_controls(self.name, workspace)
        if not request.retain:
            what = "ssd needs retain records to compare the forget set with"
            raise DataError(Problem("retain", what, "Bring a retain set"))
        rest = request.retain if self.importance == "retain" else (*request.forget, *request.retain)
        forget, whole = fisher_diagonal(subject, request.forget), fisher_diagonal(subject, rest)
        result, selected = subject.clone(), 0
        with torch.no_grad():
            for name, parameter in result.model.named_parameters():
                if name in forget:
                    chosen = forget[name] > self.selection * whole[name]
                    factor = (self.dampening * whole[name] / forget[name]).clamp(max=1.0)
                    parameter.copy_(torch.where(chosen, parameter * factor, parameter))
                    selected += int(chosen.sum())
        workspace.facts["ssd_selected"] = selected / subject.num_parameters()
        note_moved(workspace, result.model, subject.model)
        return result
