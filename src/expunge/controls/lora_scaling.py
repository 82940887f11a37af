"""The path of an adapter: the same adapter at another scale, no second model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from expunge.controls.base import CONTROLS, Control, Scene
from expunge.errors import ConfigError, ModelError, Problem
from expunge.subjects.adapters import lora_modules, merge, scale_lora
from expunge.subjects.subject import Subject, quiet

__all__ = ["LoraPath", "LoraScaling"]


@CONTROLS.register(
    "lora_scaling",
    when="after",
    bounds="scale of the adapter",
    guarantee="α = 0 is the original bit for bit",
    source="Hu et al. 2021, arXiv 2106.09685; Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True)
class LoraScaling(Control):
    """θ(α) = θ_o + α·c·BA at a fixed α, for what was trained through a LoRA; `uwc` searches the same path.

    One factor is scaled, never both: that would be α². The adapter must stand on θ_o itself.
    """

    alpha: float = 1.0

    def attach(self, scene: Scene) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(Problem("control.lora_scaling.alpha", f"{self.alpha} is outside [0, 1]"))


class LoraPath:
    """θ_o with the trained adapter attached; `at` turns its scale, `settled` folds it in for good."""

    def __init__(self, live: Subject, adapter: Path):
        """`live` holds θ_o and will be changed. Raises ModelError where the folder holds no LoRA."""
        import peft

        with quiet():
            model = peft.PeftModel.from_pretrained(live.model, str(adapter))
        model.eval()
        self.subject = replace(live, model=model)
        if not any(True for _ in lora_modules(model)):
            raise ModelError(Problem(str(adapter), "holds no LoRA", "Use model_mixing"))

    def at(self, alpha: float) -> Subject:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha {alpha} outside [0, 1]")
        scale_lora(self.subject.model, alpha)
        return self.subject

    def settled(self, alpha: float) -> Subject:
        """The model at α as plain weights; the path ends here. α = 0: the original's bits."""
        subject = self.at(alpha)
        if alpha == 0:
            with quiet():
                return replace(subject, model=subject.model.unload())  # type: ignore[operator]
        return merge(subject)
