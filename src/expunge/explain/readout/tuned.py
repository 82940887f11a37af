"""The tuned lens: per layer an affine map into the last block's states, in closed form."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.data.records import Record
from expunge.explain.states import EMBEDDINGS, all_layers, check_layers, row_states
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows

__all__ = ["TunedMap", "tuned_maps"]

MAX_ROWS = 2000
"""Rows the maps are fitted on at most, evenly over the records."""


class TunedMap(NamedTuple):
    """h ↦ h + (h − center) @ weight + shift"""

    center: Tensor  # [D]
    weight: Tensor  # [D, D]
    shift: Tensor  # [D]

    def __call__(self, states: Tensor) -> Tensor:
        return states + (states - self.center) @ self.weight + self.shift


def tuned_maps(
    subject: Subject,
    records: Sequence[Record],
    layers: Collection[int] | None = None,
    *,
    ridge: float = 1e-2,
) -> dict[int, TunedMap]:
    """{layer: h^ℓ → h^(L−1)}, fitted where the records' answers are predicted; for `lens_evidence`.

    X: the centered states of layer ℓ [N, D]; R = h^(L−1) − h^ℓ, centered; W = (XᵀX + δI)^{-1} XᵀR with δ =
    ridge · tr(XᵀX)/D. Ridge pulls at the plain logit lens, as the map's start does in Belrose et al. 2023
    (arXiv 2303.08112), who train it by divergence. The last block needs no map and has none. Give it records
    that say nothing about the forget set.
    """
    last = all_layers(subject)[-1]
    chosen = check_layers(subject, layers if layers is not None else range(EMBEDDINGS, last))
    rows = answer_rows(subject, records)
    rows = rows[:: -(-len(rows) // MAX_ROWS)]
    states = row_states(subject, rows, [*chosen, last], "answer")
    target = torch.cat([row[last] for row in states]).double()
    found = {}
    for layer in chosen:
        if layer != last:
            found[layer] = _fitted(torch.cat([row[layer] for row in states]).double(), target, ridge)
    return found


def _fitted(states: Tensor, target: Tensor, ridge: float) -> TunedMap:
    center, shift = states.mean(0), (target - states).mean(0)
    x, residual = states - center, target - states - shift
    gram = x.T @ x
    damping = (ridge * gram.diagonal().mean()).clamp(min=1e-12)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + damping * eye, x.T @ residual)
    return TunedMap(center.float(), weight.float(), shift.float())
