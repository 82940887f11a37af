"""Rounding the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from expunge.attacks.base import ATTACKS, Field, Profile
from expunge.attacks.perturbing import Changed, Perturbation, plain_copy
from expunge.interventions import make_intervention
from expunge.interventions.matrices import matrices
from expunge.interventions.rounding import GROUP, Scope, code_difference, codes, quantize_
from expunge.subjects.quantized import dequantized, quantized
from expunge.subjects.subject import Subject

__all__ = ["GRIDS", "GROUP", "Grid", "Quantize", "Scope", "code_difference", "codes", "quantize_"]


class Grid(NamedTuple):
    """A rounding grid: bits, which weights share a scale, and whether embeddings and head are rounded too.

    `by`: rtn (round to nearest), nf4 (NormalFloat-4, blocks of 64), or gptq, awq, which look at retain
    activations and know groups only.
    """

    bits: int
    scope: Scope = "row"
    embeddings: bool = False
    by: str = "rtn"


PLAIN = ("rtn", "nf4")
"""Quantizers that look at no data."""

GRIDS: Mapping[Profile, tuple[Grid, ...]] = {
    "quick": (Grid(8), Grid(4)),
    "default": (Grid(8), Grid(4), Grid(4, "row", True), Grid(4, "group"), Grid(4, by="nf4")),
    "deep": (
        Grid(8), Grid(4), Grid(3), Grid(4, "tensor"), Grid(4, "group"), Grid(3, "group"),
        Grid(4, "row", True), Grid(4, by="nf4"), Grid(4, "group", by="gptq"), Grid(4, "group", by="awq"),
    ),
}  # fmt: skip


@ATTACKS.register(
    "quantize",
    threat="white-box",
    kind="weights",
    injects="nothing",
    tier=1,
    profiles=["quick", "default", "deep"],
    budget="8 and 4 bits; default also groups, embeddings, NF4; deep 3 bits, tensors, GPTQ- and AWQ-like",
    source="Zhang et al. 2024, arXiv 2410.16454",
)
@dataclass(frozen=True, kw_only=True)
class Quantize(Perturbation):
    """Round to nearest, symmetric: ŵ = s·clip(round(w/s)), s = max|w| / (2^(b−1) − 1).

    An update smaller than the rounding step is undone. Rounding is simulated (integer codes times scales, in
    the model's own dtype) for the matrices of the blocks; norms, biases, embeddings and head keep full
    precision unless the grid says otherwise. `codes_moved`: the share of weights whose code is not that of
    the quantized original.
    """

    grids: tuple[Grid, ...] = ()  # empty: the profile's

    def configs(self, field: Field) -> Sequence[Mapping[str, Any]]:
        grids = [g for g in self.grids or GRIDS[field.profile] if g.by in PLAIN or field.request.retain]
        return [{k: v for k, v in grid._asdict().items() if (k, v) != ("by", "rtn")} for grid in grids]

    def changed(self, subject: Subject, field: Field) -> Iterator[Changed]:
        original = field.peers["original"]().unwrapped() if "original" in field.peers else None
        base = plain_copy(original) if original is not None else None
        for config in self.configs(field):
            grid = Grid(**config)
            if grid.by not in PLAIN:
                bits = {"bits": grid.bits}
                work = make_intervention(grid.by, **bits).apply(subject, field.request, field.seed)
                yield Changed(config, work, {"quantizer": f"simulated {grid.by.upper()}-like"})
                continue
            work = plain_copy(subject)
            if grid.by == "nf4":
                yield Changed(
                    config, work, {"quantizer": "simulated NF4", "rounded_weights": nf4_(work.model)}
                )
                continue
            moved = _moved(work, base, grid) if base is not None else "no original to compare with"
            rounded = quantize_(work.model, grid.bits, grid.scope, grid.embeddings)
            details = {"quantizer": "simulated round-to-nearest, symmetric", "rounded_weights": rounded}
            yield Changed(config, work, {**details, **({} if moved is None else {"codes_moved": moved})})


@torch.no_grad()
def nf4_(model: nn.Module) -> int:
    """Round the blocks' matrices to NormalFloat-4 in place; how many weights were rounded."""
    rounded = 0
    for _, weight in matrices(model):
        flat = weight.reshape(-1, weight.shape[-1])
        made = dequantized(*quantized(flat, "nf4"), flat.shape, weight.dtype)
        weight.copy_(made.view(weight.shape))
        rounded += weight.numel()
    return rounded


def _moved(work: Subject, base: Subject, grid: Grid) -> float | None:
    """Share of codes that differ from the original's; None where the two do not compare."""
    pair = [codes(s.model, grid.bits, grid.scope, grid.embeddings) for s in (work, base)]
    try:
        return code_difference(*pair)
    except ValueError:
        return None
