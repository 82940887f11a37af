"""Redirection of one layer into the region where the model refuses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.data.refusals import REFUSED_QUESTIONS
from expunge.data.request import Request
from expunge.methods.base import METHODS, OneShot, Weight
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject
from expunge.training.linear_memory import add_edit, key_sums, layer_at, mlp_output, outputs_at
from expunge.training.rewriting import finish_edit, generic_rows, prompt_row, questions
from expunge.training.task_vectors import ignore_controls
from expunge.training.workspace import Workspace


@METHODS.register(
    "lunar",
    family="representation",
    erases="output",
    targets=["records", "entity", "topic"],
    access="weights",
    needs=["retain", "a model that can refuse"],
    cost="1F to the layer, per record",
    scale="single",
    source="Shen et al. 2025, arXiv 2502.07218",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class LUNAR(OneShot):
    """Redirect forget prompts at one layer to where the model refuses; retain outputs stay.

    W k → W k + c·r on forget, r = mean h(last token of `refused` questions) − mean h(last token of forget
    prompts) behind the layer. Least squares over the tokens of forget prompts (f) and of retain records (r)
    has the rank-one solution ΔW = c·r (Σ_f k)ᵀ(Σ_f kkᵀ + Σ_r kkᵀ)⁻¹, the smallest one where tokens are fewer
    than k is wide.

    Shen et al. 2025 (arXiv 2502.07218) fit the same loss by AdamW for 20 epochs and keep retain prompts; here
    it is solved, and retain answers are kept as well. Defaults of their code: c 2, layer 22 of 32 (a
    proportion `None` keeps). Fluent refusals, shallow by construction; without refusals to find, mere drift.
    """

    strength: Weight = 2.0  # c
    layer: int | None = None
    refused: tuple[str, ...] = ()  # questions the model declines; empty: expunge's own

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        ignore_controls(self.name, workspace)
        began, deepest = time.monotonic(), len(blocks(subject.model)) - 1
        layer = layer_at(subject, self.layer, 22 / 32, where="layer", last=deepest)
        prompts = [prompt_row(subject.encoder, r) for r in questions(request.forget, self.name)]
        asked = [Record("", "", text, "") for text in self.refused or REFUSED_QUESTIONS]
        declined = [prompt_row(subject.encoder, record) for record in asked]
        kept = generic_rows(subject, request, self.name)
        toward = mean_state(subject, layer, declined) - mean_state(subject, layer, prompts)
        total, forget, _ = key_sums(subject, layer, prompts)
        _, retain, _ = key_sums(subject, layer, kept)
        work = subject.clone()
        add_edit(mlp_output(work.model, layer), redirection(total, forget + retain, self.strength * toward))
        tokens = sum(len(row.ids) for row in [*declined, *prompts, *prompts, *kept])
        return finish_edit(work, subject, workspace, tokens, time.monotonic() - began)


def redirection(total: Tensor, gram: Tensor, shift: Tensor) -> Tensor:
    """ΔW [D, F] of least norm among those that minimize Σ_f‖ΔW k − shift‖² + Σ_r‖ΔW k‖².

    `total` is Σ_f k [F], `gram` Σkkᵀ [F, F] over both, `shift` [D].
    """
    return torch.outer(shift, torch.linalg.pinv(gram, hermitian=True, rtol=1e-8) @ total)


def mean_state(subject: Subject, layer: int, rows: Sequence[Encoded]) -> Tensor:
    """Mean output of the block at the last token, [D]."""
    return outputs_at(subject, layer, rows, [len(row.ids) - 1 for row in rows]).mean(1)
