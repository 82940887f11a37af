"""A hinge on each forget sequence: beyond δ nats nothing pushes any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from expunge import ranks
from expunge.controls.base import CONTROLS, Control, Scene
from expunge.errors import ConfigError, Problem
from expunge.training.hooks import TrainingControl
from expunge.training.views import View

__all__ = ["HingeCap", "HingeHooks", "hinge_rows"]


def hinge_rows(nll: Tensor, delta: float, divide_by: Literal["active", "batch"] = "active") -> Tensor:
    """(δ − s_i)·[s_i < δ] per row, scaled so that the mean over rows is F; [s_i < δ] is not differentiated.

    >>> hinge_rows(torch.tensor([1.0, 5.0, 3.0]), 4.0).mean().item()
    2.0
    """
    active = (nll < delta).detach()
    rows = torch.where(active, delta - nll, torch.zeros_like(nll))
    if divide_by == "active":
        rows = rows * (len(nll) / active.sum().clamp(min=1))
    return rows


@CONTROLS.register(
    "hinge_cap",
    when="during",
    bounds="NLL of each forget sequence",
    guarantee="no gradient beyond δ; overshoot at most one step",
    source="Wang et al. 2024, arXiv 2406.09179v1",
)
@dataclass(frozen=True)
class HingeCap(Control):
    """Replace ascent by F = (1/|V|) Σ_{i∈V} (δ − s_i), V = {i : s_i < δ}.

    s is the mean NLL of a row ("token", the default) or the sum. With V empty and no retain term the step is
    skipped: warm Adam moments would go on moving the weights. For ascent methods (`ga`, `graddiff`, `ga_kl`).
    Wang et al. 2024 (arXiv 2406.09179v1).
    """

    reads_bar = False

    delta: float = 6.0
    normalize: Literal["sum", "token"] = "token"
    divide_by: Literal["active", "batch"] = "active"
    on_empty: Literal["auto", "skip_step", "retain_only"] = "auto"

    def attach(self, scene: Scene) -> TrainingControl:
        if self.delta <= 0:
            raise ConfigError(Problem("control.hinge_cap.delta", f"{self.delta} must be above 0"))
        return HingeHooks(self)


class HingeHooks(TrainingControl):
    name = "hinge_cap"

    def __init__(self, settings: HingeCap):
        self.settings = settings
        self._active = self._rows = 0

    def check(self, method: Any, accumulate: int) -> None:
        from expunge.methods.likelihood.ascent import Ascent

        if not isinstance(method, Ascent):
            fix = "Use `cap` or `early_stop`"
            raise ConfigError(
                Problem(f"control.{self.name}", f"binds ascent methods, and {method.name} is none", fix)
            )
        if accumulate > 1 and self.settings.divide_by == "active":
            fix = "Set divide_by: batch"
            raise ConfigError(
                Problem(f"control.{self.name}", "|V| of a step is unknown where it is computed in parts", fix)
            )

    def forget_rows(self, rows: Tensor, view: View) -> Tensor:
        nll = view.row_nll()
        if self.settings.normalize == "token":
            nll = nll / view.num_tokens
        self._active += int((nll.detach() < self.settings.delta).sum())
        self._rows += len(nll)
        return hinge_rows(nll, self.settings.delta, self.settings.divide_by)

    def skip_step(self, has_retain: bool) -> bool:
        step = ranks.total({"active": self._active, "rows": self._rows})
        empty = step["active"] == 0
        self.active = 1 - step["active"] / max(1, step["rows"])
        self._active = self._rows = 0
        if not empty or self.settings.on_empty == "retain_only":
            return False
        return self.settings.on_empty == "skip_step" or not has_retain
