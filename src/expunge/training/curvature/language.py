"""The curvature problem of a causal LM: mean NLL of each row's answer, summed over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn
from transformers.pytorch_utils import Conv1D

from expunge.data.batching import collate
from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.stats import seed_from
from expunge.subjects.architecture import linear_targets
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.curvature.problem import CurvatureProblem, Output
from expunge.training.gradients import answer_rows

__all__ = ["language_problem", "linear_weights"]


def language_problem(
    subject: Subject,
    records: Sequence[Record],
    parameters: Mapping[str, nn.Parameter],
    *,
    max_rows: int | None = None,
    seed: int = 0,
) -> CurvatureProblem:
    """R(θ) = Σ_i m_i over the rows of `records`; `parameters` from `gradients.differentiable`.

    With more than `max_rows` rows, that many are drawn by the seed and scaled up to the whole sum.
    """
    rows = answer_rows(subject, records)
    kept = rows
    if max_rows is not None and len(rows) > max_rows:
        chosen = np.random.default_rng(seed_from(seed, "curvature rows")).permutation(len(rows))[:max_rows]
        kept = [rows[i] for i in sorted(chosen)]

    def evaluate(items: Sequence[Encoded]) -> Output:
        batch = collate(items, subject.encoder.pad_id).to(subject.device)
        logits = forward(subject.model, batch).logits
        assert logits is not None
        return Output(logits.float(), batch.targets, 1.0 / batch.num_tokens[batch.row], batch.row)

    kept = sorted(kept, key=lambda row: -len(row.ids))  # little padding
    return CurvatureProblem(subject.model, parameters, kept, evaluate, scale=len(rows) / len(kept), seed=seed)


def linear_weights(model: nn.Module) -> list[str]:
    """Names of the weights K-FAC is for: linear maps of the blocks, without routers, fused experts, head."""
    maps = set(linear_targets(model))
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name.rpartition(".")[2] in maps
    ]
