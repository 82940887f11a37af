"""Gradients over records: what masks, influence steps and Fisher-weighted starts are computed from.

All are of m_i, the mean NLL of row i's answer (end token included): rows are windows of records that fit the
context, or given as rows. Taken in eval mode at the weights as they are; mode, `requires_grad` and `.grad`
are left as found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from expunge.data.batching import collate
from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.errors import ConfigError, DataError, Problem, nearest
from expunge.progress import track
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.views import sum_rows

__all__ = ["answer_rows", "differentiable", "fisher_diagonal", "mean_gradient", "row_losses", "sum_gradient"]

Records = Sequence[Record] | Sequence[Encoded]


def mean_gradient(
    subject: Subject, records: Records, *, names: Collection[str] | None = None, batch: int = 16
) -> dict[str, Tensor]:
    """(1/N) Σ_i ∇m_i over the N rows, fp32, by parameter name (None: all; ties once). DataError without rows.

    `batch` rows at a time, which changes memory and not the result.
    """
    total = sum_gradient(subject, records, names=names, batch=batch)
    count = len(answer_rows(subject, records))
    return {name: gradient / count for name, gradient in total.items()}


def sum_gradient(
    subject: Subject, records: Records, *, names: Collection[str] | None = None, batch: int = 16
) -> dict[str, Tensor]:
    """Σ_i ∇m_i over all rows, fp32, by parameter name."""
    rows = sorted(answer_rows(subject, records), key=lambda row: -len(row.ids))
    groups = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return _accumulated(subject, groups, names, power=1)


def fisher_diagonal(
    subject: Subject, records: Records, *, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """(1/N) Σ_i (∇m_i)², fp32: the diagonal of the *empirical* Fisher (gold labels, not sampled ones).

    Exact per row: one backward pass each, rows are never squared together.
    """
    rows = answer_rows(subject, records)
    total = _accumulated(subject, [[row] for row in rows], names, power=2)
    return {name: squares / len(rows) for name, squares in total.items()}


def answer_rows(subject: Subject, records: Records) -> list[Encoded]:
    """The rows that have an answer token. Raises DataError where there is none."""
    windows = subject.encoder.windows
    found = [[record] if isinstance(record, Encoded) else windows(record) for record in records]
    rows = [row for rows in found for row in rows if row.num_targets]
    if not rows:
        raise DataError(Problem("records", "none has an answer to take a gradient of", "Bring records"))
    return rows


def row_losses(subject: Subject, rows: Sequence[Encoded]) -> Tensor:
    """m_i [B], fp32, with its graph."""
    batch = collate(rows, subject.encoder.pad_id).to(subject.device)
    logits = forward(subject.model, batch).logits
    assert logits is not None
    logits = logits.float()
    losses = logits.logsumexp(-1) - logits.gather(1, batch.targets[:, None])[:, 0]
    return sum_rows(losses, batch.row, len(batch)) / batch.num_tokens


@contextmanager
def differentiable(
    subject: Subject, names: Collection[str] | None = None
) -> Iterator[dict[str, nn.Parameter]]:
    """These parameters (None: all of floating point) require gradients, no others do; eval mode, no dropout.

    Raises ConfigError on a name the model does not have.
    """
    subject.need("weights", what="a gradient")
    model = subject.model
    known = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    if unknown := [name for name in names or () if name not in known]:
        hint = nearest(unknown[0], get_close_matches(unknown[0], known, n=4))
        raise ConfigError(Problem(f"parameter {unknown[0]!r}", "the model has no weight of this name", hint))
    chosen = {name: p for name, p in known.items() if names is None or name in set(names)}
    before = [(p, p.requires_grad) for p in model.parameters()]
    training = model.training
    model.eval()
    try:
        for name, parameter in known.items():
            parameter.requires_grad_(name in chosen)
        with torch.enable_grad():
            yield chosen
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
        model.train(training)


def _accumulated(
    subject: Subject, groups: Sequence[Sequence[Encoded]], names: Collection[str] | None, power: int
) -> dict[str, Tensor]:
    """Σ over groups of (∇ Σ_{i in group} m_i) to this power."""
    with differentiable(subject, names) as chosen, track("gradients", len(groups)) as advance:
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in chosen.items()}
        for group in groups:
            loss = row_losses(subject, group).sum()
            # not .backward(): `.grad` is the caller's. Experts without a token get zeros
            gradients = torch.autograd.grad(loss, list(chosen.values()), materialize_grads=True)
            for sums, gradient in zip(total.values(), gradients, strict=True):
                sums.add_(gradient.float() ** power)
            advance()
    return total
