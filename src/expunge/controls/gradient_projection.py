"""The forget gradient without what would raise the retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from expunge.controls.base import CONTROLS, Control, Scene
from expunge.errors import ConfigError, Problem
from expunge.training.hooks import TrainingControl
from expunge.training.transforms import make_transform

__all__ = ["GradientProjection"]


@CONTROLS.register(
    "gradient_projection",
    when="during",
    bounds="first-order harm to the retain loss",
    guarantee="⟨g_f', g_r⟩ ≥ 0",
    source="Chaudhry et al. 2018, arXiv 1812.00420; Yu et al. 2020, arXiv 2001.06782",
)
@dataclass(frozen=True)
class GradientProjection(Control):
    """If ⟨g_f, g_r⟩ < 0, take its part along g_r out of g_f; the retain gradient is never altered.

    The transform `gru` with the retain gradient of the step itself. Exact for plain SGD: Adam's scaling can
    turn a harmless direction into a harmful one. Chaudhry et al. 2018 (arXiv 1812.00420), Yu et al. 2020
    (arXiv 2001.06782).
    """

    reads_bar = False

    scope: Literal["global", "tensor"] = "global"

    def attach(self, scene: Scene) -> TrainingControl:
        return _ProjectionHooks(self.scope)


class _ProjectionHooks(TrainingControl):
    def __init__(self, scope: str):
        self.transform = make_transform("gru", newest=1.0, scope=scope)

    def check(self, method: Any, accumulate: int) -> None:
        if method.retain == "none" or method.retain_weight == 0:
            what = f"{method.name} has no retain term, so there is no gradient to protect"
            fix = "Set method.retain: ce"
            raise ConfigError(Problem("control.gradient_projection", what, fix))
