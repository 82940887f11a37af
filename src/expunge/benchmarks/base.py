"""The contract of a benchmark: splits, an original model, an oracle if it has one, its paper's metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from expunge.data.request import Request
from expunge.registry import Card, Registry

__all__ = ["BENCHMARKS", "Benchmark", "Prepared"]

BENCHMARKS: Registry[Benchmark] = Registry("benchmark", "expunge.benchmarks", "BENCHMARKS")


@dataclass(frozen=True)
class Prepared:
    """What a benchmark stands for in a recipe.

    `metrics`: (metric name, split) pairs of the benchmark's paper, measured beside expunge's own. `train`:
    settings that suit its models, under the user's own. `attack_lrs`: learning rates for the weight attacks.
    `cost`: what making original and oracle took, {model: {wall, tokens, steps}}; the oracle's is the cost of
    retraining. `facts`: extraction strength and probability reached, epochs, …
    """

    request: Request
    original: Path
    oracle: Path | None
    metrics: Sequence[tuple[str, str]] = ()
    train: Mapping[str, Any] = field(default_factory=dict)
    attack_lrs: Sequence[float] = ()
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(ABC):
    """A frozen dataclass of its options; `part` is what stands behind the slash in `benchmark: name/part`."""

    name: ClassVar[str]
    card: ClassVar[Card]

    @classmethod
    @abstractmethod
    def from_part(cls, part: str | None, **options: Any) -> Benchmark:
        """Build from the recipe; ConfigError with the known parts on an unknown one."""

    @abstractmethod
    def request(self) -> Request:
        """The splits, without touching a model."""

    @abstractmethod
    def prepare(self, cache: Path) -> Prepared:
        """Splits and models; what is missing is trained and kept under `cache` by its fingerprint."""
