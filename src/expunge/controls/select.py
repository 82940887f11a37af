"""Push only the tokens that are still remembered best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from expunge.controls.base import CONTROLS, Control, Scene
from expunge.controls.binding import likelihood_tokens
from expunge.errors import ConfigError, Problem
from expunge.registry import Search
from expunge.training.hooks import TrainingControl
from expunge.training.views import View

__all__ = ["Select", "smallest"]


def smallest(nll: Tensor, row: Tensor, num_rows: int, q: float) -> Tensor:
    """The max(1, ⌈q·n − 1e-6⌉) smallest values of each row, [A] bool; of equal ones the first.

    >>> nll = torch.tensor([0.1, 2.0, 0.5, 3.0, 1.0])
    >>> smallest(nll, torch.zeros(5, dtype=torch.long), 1, 0.6).tolist()
    [True, False, True, False, True]
    """
    by_value = nll.argsort(stable=True)
    order = by_value[row[by_value].argsort(stable=True)]  # by row, then value, then position
    counts = torch.bincount(row, minlength=num_rows)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[row[order]]
    kept = torch.ceil(q * counts.double() - 1e-6).long().clamp(min=1)
    return rank < kept[row]


@CONTROLS.register(
    "select",
    when="during",
    bounds="number of tokens pushed",
    guarantee="no gradient outside the chosen fraction",
    source="Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True)
class Select(Control):
    """Each row is pushed at its m = max(1, ⌈q·n⌉) tokens with the smallest NLL, and n becomes m.

    Chosen anew every step, without gradient. q = 1 changes nothing. For likelihood losses that need no
    reference sum. Wang et al. 2025 (arXiv 2406.09179); q 0.8 is the published code's.
    """

    reads_bar = False

    q: Annotated[float, Search(0.3, 1.0)] = 0.8

    def attach(self, scene: Scene) -> TrainingControl:
        if not 0 < self.q <= 1:
            raise ConfigError(Problem("control.select.q", f"{self.q} is outside (0, 1]"))
        return _SelectHooks(self.q)


class _SelectHooks(TrainingControl):
    def __init__(self, q: float):
        self.q = q

    def check(self, method: Any, accumulate: int) -> None:
        likelihood_tokens("select", method)

    def forget_view(self, view: View) -> View:
        mask = smallest(view.token_nll().detach(), view.row, len(view), self.q)
        self.active = float((~mask).float().mean())
        return view.only(mask)
