"""The contract of a control: it keeps unlearning from going too far.

*during* training: a TrainingControl (caps, early stop). *after*: a calibration that brings the finished model
to the bar. Both are frozen dataclasses of their settings, one file each; `early_stop` and `uwc` guarantee a
utility bar, the others bound a proxy and their result still passes through `uwc`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from expunge.registry import Card, Registry

if TYPE_CHECKING:
    from expunge.controls.bar import Bar
    from expunge.data.records import Record
    from expunge.training.hooks import TrainingControl

__all__ = ["CONTROLS", "Control", "NoBar", "Scene"]

CONTROLS: Registry[Control] = Registry("control", "expunge.controls", "CONTROLS")


@dataclass(frozen=True)
class Scene:
    """What a control may see: the bar, the calibration records, the seed. Never the forget set."""

    bar: Bar
    calibration: Sequence[Record]
    seed: int = 0


class NoBar:
    """Stands in for the bar where a control has declared that it never looks at it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("a control that reads the bar must say reads_bar = True")


class Control(ABC):
    """Settings of one control. `when` is "during" or "after" (read from the card).

    `reads_bar`: False for one that trains alike under every bar, so that bars can share a training.
    """

    name: ClassVar[str]
    card: ClassVar[Card]
    reads_bar: ClassVar[bool] = True

    @property
    def when(self) -> Literal["during", "after"]:
        return self.card.fields["when"]

    @abstractmethod
    def attach(self, scene: Scene) -> TrainingControl | None:
        """The hooks for one training; None for a control after training."""
