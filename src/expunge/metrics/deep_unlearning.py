"""Deep unlearning: a fact is gone when it cannot be deduced either (Wu et al. 2024, arXiv 2410.15153).

A summary: what is still known, and the minimal sets without which the target does not follow → score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

__all__ = ["DeepUnlearning", "deep_unlearning"]


@dataclass(frozen=True)
class DeepUnlearning:
    """`superficial`: the target itself is unknown. `recall`: the largest share of a minimal set that is
    unknown, max_U* |U ∩ U*| / |U*|; 1: the target cannot be deduced. `accuracy`: share still known of what is
    outside that set (None: nothing is); of equal recalls, the set that leaves the highest accuracy counts.
    """

    superficial: bool
    recall: float
    accuracy: float | None


def deep_unlearning(
    target: int, known: Collection[int], facts: Iterable[int], minimal_sets: Iterable[Collection[int]]
) -> DeepUnlearning:
    """`known`: those of the `facts` that the model still answers rightly.

    Of five facts 2 to 4 are known; one minimal set is forgotten whole, and what else there is is known:

    >>> deep_unlearning(0, {2, 3, 4}, range(5), [{0, 1}, {0, 2, 3}])
    DeepUnlearning(superficial=True, recall=1.0, accuracy=1.0)
    """
    known, facts = set(known), set(facts)

    def reached(minimal: Collection[int]) -> tuple[float, float]:
        kept = facts - set(minimal)
        accuracy = len(kept & known) / len(kept) if kept else -1.0
        return len(set(minimal) - known) / len(minimal), accuracy

    recall, accuracy = max(map(reached, minimal_sets))
    return DeepUnlearning(target not in known, recall, accuracy if accuracy >= 0 else None)
