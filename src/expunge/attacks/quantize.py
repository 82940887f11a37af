"""Rounding the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome, Profile
from expunge.interventions.rounding import GROUP, Scope, code_difference, codes, quantize_
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.subjects import merge
from expunge.subjects.subject import Subject

__all__ = ["GRIDS", "GROUP", "Grid", "Quantize", "Scope", "code_difference", "codes", "quantize_"]


class Grid(NamedTuple):
    """A rounding grid: bits, which weights share a scale, and whether embeddings and head are rounded too."""

    bits: int
    scope: Scope = "row"
    embeddings: bool = False


GRIDS: Mapping[Profile, tuple[Grid, ...]] = {
    "quick": (Grid(8), Grid(4)),
    "default": (Grid(8), Grid(4)),
    "deep": (Grid(8), Grid(4), Grid(3), Grid(4, "tensor"), Grid(4, "group"), Grid(4, "row", True)),
}


@ATTACKS.register(
    "quantize",
    threat="white-box",
    kind="weights",
    injects="nothing",
    tier=1,
    profiles=["quick", "default", "deep"],
    source="Zhang et al. 2024, arXiv 2410.16454",
)
@dataclass(frozen=True, kw_only=True)
class Quantize(Attack):
    """Round to nearest, symmetric: ŵ = s·clip(round(w/s)), s = max|w| / (2^(b−1) − 1).

    An update smaller than the rounding step is undone. Rounding is simulated (integer codes times scales, in
    the model's own dtype) for the matrices of the blocks; norms, biases, embeddings and head keep full
    precision.
    """

    grids: tuple[Grid, ...] = ()  # empty: the profile's

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("weights", "logprobs", what="the attack quantize")
        splits = field.scored().items()
        sheets = {s: make_sheet(subject.encoder, records, s, field.variants) for s, records in splits}
        for grid in self.grids or GRIDS[field.profile]:
            work = merge(subject.clone())
            rounded = quantize_(work.model, *grid)
            yield Outcome(
                grid._asdict(),
                {split: score_sheet(work, sheet) for split, sheet in sheets.items()},
                details={"quantizer": "simulated round-to-nearest, symmetric", "rounded_weights": rounded},
            )
