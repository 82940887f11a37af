"""The path a control after training walks: θ(α) from the original to what the method returned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from expunge import ranks
from expunge.controls.base import CONTROLS, Control, Scene
from expunge.errors import ConfigError, Problem
from expunge.subjects.subject import Subject
from expunge.subjects.weights import WeightFile, check_mixable, dump_weights, mix_into

__all__ = ["MixingPath", "ModelMixing"]


@CONTROLS.register(
    "model_mixing",
    when="after",
    bounds="distance along the segment θ_o → θ_u",
    guarantee="end points bit-exact",
    source="Wang et al. 2025, arXiv 2406.09179; Wortsman et al. 2021, arXiv 2109.01903",
)
@dataclass(frozen=True)
class ModelMixing(Control):
    """θ(α) = (1−α)·θ_o + α·θ_u at a fixed α; 0 is the original, 1 the unlearned model."""

    alpha: float = 1.0

    def attach(self, scene: Scene) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(Problem("control.model_mixing.alpha", f"{self.alpha} is outside [0, 1]"))


class MixingPath:
    """One live model that becomes θ(α) on demand; θ_o and θ_u are read from disk tensor by tensor."""

    def __init__(self, live: Subject, unlearned: Subject, folder: Path):
        """`live` holds θ_o and will be changed; `unlearned` may be dropped by the caller afterwards."""
        self.live = live
        self.original = _dumped(live, folder / "original.safetensors")
        self.unlearned = _dumped(unlearned, folder / "unlearned.safetensors")
        check_mixable(live.model, self.original, self.unlearned)

    def at(self, alpha: float) -> Subject:
        mix_into(self.live.model, self.original, self.unlearned, alpha)
        return self.live

    def settled(self, alpha: float) -> Subject:
        return self.at(alpha)


def _dumped(subject: Subject, path: Path) -> WeightFile:
    return ranks.on_first(lambda: dump_weights(subject.model, path))
