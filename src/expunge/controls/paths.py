"""The path from the original to the unlearned model, α in [0, 1], that a control after training walks."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from expunge.controls.lora_scaling import LoraPath
from expunge.controls.model_mixing import MixingPath
from expunge.subjects import Subject, Wrapped

__all__ = ["ModelPath", "StrengthPath", "path_of"]


class ModelPath(Protocol):
    """`at(0)` is the original, `at(1)` the unlearned model, bit for bit; they may all share weights."""

    def at(self, alpha: float) -> Subject: ...

    def settled(self, alpha: float) -> Subject:
        """The model at α for good, as it will be saved; the path ends here."""
        ...


class StrengthPath:
    """A wrapper at α of its strength; its weights, and those of its parts, stay as they are.

    A wrapper without a knob is on or off: any α above 0 is the wrapper as it is, so that a bar it misses
    leads to α* = 0, the original.
    """

    def __init__(self, original: Subject, wrapped: Wrapped):
        self.original, self.wrapped = original, wrapped

    def at(self, alpha: float) -> Subject:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha {alpha} outside [0, 1]")
        if alpha == 0:
            return self.original
        return self.wrapped.at(alpha * self.wrapped.strength) if self.wrapped.knob else self.wrapped

    def settled(self, alpha: float) -> Subject:
        return self.at(alpha)


def path_of(original: Subject, unlearned: Subject, folder: Path, adapter: Path | None = None) -> ModelPath:
    """The path between these two: a wrapper's strength, an adapter's scale, else the mix of their weights.

    `original` may be changed by the path; `folder` holds what the path needs on disk; `adapter` is where the
    LoRA lies that leads from the original to the unlearned model, if one does.
    """
    if isinstance(unlearned, Wrapped):
        return StrengthPath(original, unlearned)
    if adapter is not None and adapter.is_dir():
        return LoraPath(original, adapter)
    return MixingPath(original, unlearned, folder)
