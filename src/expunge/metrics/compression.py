"""What a compressed model takes: bits per weight as stored, and the share of weights that are zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Stored", "Twice", "average_bits", "sparsity", "stored_bytes"]


@dataclass(frozen=True)
class Stored:
    """One tensor as it would be stored, tied ones once: `bits` holds codes, scales and zero points."""

    name: str
    weights: int
    bits: float
    zeros: int = 0
    compressed: bool = False


class Twice(NamedTuple):
    """Over the compressed matrices (None where there is none), and over the whole model."""

    compressed: float | None
    whole: float


def average_bits(inventory: Iterable[Stored]) -> Twice:
    """Stored bits / weights; lower is better.

    >>> matrix = Stored("w", 1280, 4 * 1280 + 10 * (16 + 16), compressed=True)  # groups of 128
    >>> average_bits([matrix])
    Twice(compressed=4.25, whole=4.25)
    """
    return _twice(list(inventory), lambda t: t.bits)


def sparsity(inventory: Iterable[Stored]) -> Twice:
    """Weights that are exactly 0 / weights; higher is better."""
    return _twice(list(inventory), lambda t: t.zeros)


def stored_bytes(inventory: Iterable[Stored]) -> float:
    """What all of it takes on disk, headers apart."""
    return sum(t.bits for t in inventory) / 8


def _twice(tensors: list[Stored], count: Callable[[Stored], float]) -> Twice:
    def ratio(chosen: list[Stored]) -> float | None:
        weights = sum(t.weights for t in chosen)
        return sum(map(count, chosen)) / weights if weights else None

    whole = ratio(tensors)
    if whole is None:
        raise ValueError("an inventory without a weight")
    return Twice(ratio([t for t in tensors if t.compressed]), whole)
