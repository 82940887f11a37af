"""Chains of interventions and unlearning: which ones are made, and what holds of the model at their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Literal

from torch import nn

from expunge.errors import Problem, nearest
from expunge.interventions import Intervention
from expunge.runs.recipe import Named

__all__ = [
    "UNLEARN", "Chain", "Made", "chains", "check_chains", "completed", "compressed", "labeled", "stored_bits",
]  # fmt: skip

UNLEARN = "unlearn"
"""The step that is the recipe's method under its control."""

Chain = tuple[str, ...]
"""Labels of what was done to the original, first to last."""

Made = Mapping[str, Intervention]


def labeled(named: Sequence[Named]) -> dict[str, Named]:
    """Each intervention under its name; a second one of a name is `name-2`."""
    found: dict[str, Named] = {}
    for one in named:
        count = sum(other.name == one.name for other in found.values())
        found[one.name if not count else f"{one.name}-{count + 1}"] = one
    return found


def chains(
    labels: Sequence[str], pairs: Literal["unlearn", "all"], longer: Sequence[Chain] = ()
) -> list[Chain]:
    """Unlearning and each intervention alone, the ordered pairs (with unlearning, or all), then longer ones.

    Longer ones stand there forwards and backwards.
    """
    alone: list[Chain] = [(UNLEARN,), *((label,) for label in labels)]
    both = [pair for pair in permutations((UNLEARN, *labels), 2) if pairs == "all" or UNLEARN in pair]
    return list(dict.fromkeys([*alone, *both, *(way for c in longer for way in (c, c[::-1]))]))


def check_chains(longer: Sequence[Chain], labels: Sequence[str]) -> list[Problem]:
    """What is wrong with the chains a recipe asks for."""
    known, problems = [UNLEARN, *labels], []
    for number, chain in enumerate(longer):
        where = f"compose.chains.{number}"
        if not chain:
            problems.append(Problem(where, "is empty", "Name its steps, first to last"))
        for label in chain:
            if label not in known:
                problems.append(
                    Problem(where, f"{label!r} is no step of this composition", nearest(label, known))
                )
    return problems


def completed(chain: Chain, made: Made) -> Chain:
    """The chain with every compression that a later step undid applied again at its end.

    So the models of both orders are compressed alike. Pruning comes before rounding there: every quantizer
    keeps zeros, not every pruning keeps the grid.
    """
    again = [
        label
        for place, label in enumerate(chain)
        if label in made and not all(_holds(made[label], made.get(later)) for later in chain[place + 1 :])
    ]
    undone = [label for label in again if made[label].compresses]
    return chain + tuple(sorted(undone, key=lambda label: made[label].family == "quantize"))


def _holds(first: Intervention, later: Intervention | None) -> bool:
    """Whether what the first did to the weights is still true after the later step (None: unlearning)."""
    if later is None or not first.compresses:
        return False
    return later.keeps_codes if first.family == "quantize" else later.keeps_zeros


def compressed(chain: Chain, made: Made) -> bool:
    """Whether any step of the chain compresses."""
    return any(label in made and made[label].compresses for label in chain)


def stored_bits(chain: Chain, made: Made, model: nn.Module) -> dict[str, float]:
    """Bits of each matrix as stored after the chain: those of the last quantizer nothing undid."""
    bits: dict[str, float] = {}
    for label in chain:
        step = made.get(label)
        if step is None or not (step.keeps_codes or step.family == "quantize"):
            bits = {}
        bits |= step.stored_bits(model) if step else {}
    return bits
