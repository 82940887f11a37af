"""The logit lens: what a model would answer, were its layers to end after block ℓ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from expunge.data.batching import Batch
from expunge.evidence import Evidence
from expunge.explain.states import block_states, check_layers, tail_logits
from expunge.measure.score import per_token, score_sheet, token_scores
from expunge.measure.sheet import Sheet
from expunge.subjects.subject import Subject

__all__ = ["lens_evidence"]

Transform = Mapping[int, Callable[[Tensor], Tensor]]
"""{layer: what is done to its states [N, D] before the final norm}; a missing layer is read as it is."""


def lens_evidence(
    subject: Subject, sheet: Sheet, layers: Collection[int], transform: Transform | None = None
) -> dict[int, Evidence]:
    """{layer: the sheet's evidence, as read there}: p^ℓ = softmax(head(norm(h^ℓ))), answer positions alone.

    ℓ ≥ 0 is the output of block ℓ, −1 the embeddings; at the last block the read-out is the model's own
    output. With `transform` (of `tuned_maps`) a tuned lens. Ordinary rows: every metric of log-probabilities,
    hits or greedy ids applies. Logit lens: nostalgebraist 2020; tuned lens: Belrose et al. 2023 (arXiv
    2303.08112); as an attack on deleted facts: Patil et al. 2023 (arXiv 2309.17410).
    """
    wanted, maps = check_layers(subject, layers), transform or {}

    def read(batch: Batch) -> list[np.ndarray]:
        states, columns = block_states(subject, batch, wanted), []
        for layer in wanted:
            given = _mapped(states[layer], batch, maps.get(layer))
            scores = token_scores(tail_logits(subject, batch, given), batch.targets)
            hits = scores.greedy == batch.targets
            columns += [scores.logprobs, hits, scores.greedy, scores.mean, scores.std]
        return [column.cpu().numpy() for column in columns]

    own = score_sheet(subject, sheet)
    found = per_token(subject, sheet, read)
    return {layer: _evidence(own, found, 5 * nth) for nth, layer in enumerate(wanted)}


def _mapped(states: Tensor, batch: Batch, change: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The states with `change` applied where answer tokens are predicted."""
    if change is None:
        return states
    changed = states.clone()
    with torch.no_grad():
        changed[batch.row, batch.col] = change(states[batch.row, batch.col].float()).to(states.dtype)
    return changed


def _evidence(own: Evidence, found: list[list[np.ndarray]], start: int) -> Evidence:
    rows = []
    for row, columns in zip(own.rows, found, strict=True):
        if columns:
            logprobs, hits, greedy, mean, std = columns[start : start + 5]
            row = replace(
                row,
                logprobs=logprobs.astype(np.float32),
                hits=hits.astype(bool),
                greedy_ids=greedy.astype(np.int32),
                vocab_mean=mean.astype(np.float32),
                vocab_std=std.astype(np.float32),
            )
        rows.append(row)
    return Evidence(own.split, rows)
