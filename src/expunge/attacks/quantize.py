"""Rounding the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome, Profile
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.subjects import merge
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject

Scope = Literal["row", "tensor", "group"]

GROUP = 32
"""Weights that share a scale in scope "group"."""


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


@torch.no_grad()
def quantize_(model: nn.Module, bits: int, scope: Scope = "row", embeddings: bool = False) -> int:
    """Round the model's matrices in place; how many weights were rounded."""
    rounded = 0
    for _, weight in _matrices(model, embeddings):
        code, scale = _round(weight, bits, scope)
        weight.copy_((code * scale).to(weight.dtype))
        rounded += weight.numel()
    return rounded


@torch.no_grad()
def codes(model: nn.Module, bits: int, scope: Scope = "row", embeddings: bool = False) -> dict[str, Tensor]:
    """The integer code of every weight that is rounded, by name; output channels in rows."""
    dtype = torch.int8 if bits <= 8 else torch.int32
    return {n: _round(w, bits, scope)[0].to("cpu", dtype) for n, w in _matrices(model, embeddings)}


def code_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Share of weights whose code differs; 0: the update was lost in rounding (if the scales agree too).

    Raises ValueError when the two come from different architectures.
    """
    if a.keys() != b.keys() or any(a[n].shape != b[n].shape for n in a):
        raise ValueError("codes of two different architectures")
    return sum(int((a[n] != b[n]).sum()) for n in a) / max(1, sum(t.numel() for t in a.values()))


def _matrices(model: nn.Module, embeddings: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, weights as a view [..., output channels, inputs]), each once however often it is tied."""
    transposed = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    for name, parameter in (model if embeddings else blocks(model)).named_parameters():
        if parameter.ndim >= 2:
            yield name, parameter.mT if id(parameter) in transposed else parameter


def _round(weight: Tensor, bits: int, scope: Scope) -> tuple[Tensor, Tensor]:
    """(codes, scales).

    In fp64, s·(2^(b−1) − 1) is max|w| again to the bit, so rounding twice changes nothing.
    """
    w = weight.detach().double()
    top = 2 ** (bits - 1) - 1
    if scope == "tensor":
        largest = w.abs().amax()
    elif scope == "row":
        largest = w.abs().amax(-1, keepdim=True)
    else:
        width = w.shape[-1]
        padded = nn.functional.pad(w.abs(), (0, -width % GROUP))
        largest = padded.unflatten(-1, (-1, GROUP)).amax(-1).repeat_interleave(GROUP, -1)[..., :width]
    scale = largest / top
    code = torch.where(scale > 0, w / scale, 0.0).round().clamp(-top, top) + 0.0  # no −0
    return code, scale
