"""Mixing the original back in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from expunge.attacks.base import ATTACKS, Field, Profile
from expunge.attacks.perturbing import Changed, Perturbation, ask, plain_copy, same_shape, sheets_of
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics import compute
from expunge.subjects.subject import Subject
from expunge.subjects.weights import named_weights

MARGIN: Mapping[Profile, tuple[float, ...]] = {
    "quick": (0.9, 0.8),
    "default": (0.95, 0.9, 0.85, 0.8),
    "deep": (0.95, 0.9, 0.85, 0.8),
}
CURVE = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


@ATTACKS.register(
    "merge_back",
    threat="white-box",
    kind="weights",
    injects="nothing",
    tier=1,
    profiles=["quick", "default", "deep"],
    peers=["original"],
    line=0.5,
    budget="the nearest fifth of the way to the original, in 4 steps (deep: the whole way, in 11)",
    source="Wortsman et al. 2022, arXiv 2203.05482; Che et al. 2025, arXiv 2502.05209",
)
@dataclass(frozen=True, kw_only=True)
class MergeBack(Perturbation):
    """Mix the original's weights back in, a little: θ(α) = (1−α)·θ_o + α·θ for α down to 0.8.

    At α = 0 every model is the original, so only the margin counts: a leak is half of the knowledge back
    within the nearest fifth of the way. A deep audit draws the whole curve beside it, with the barrier: the
    worst probability of retain on the way, under the lower of the two ends.
    """

    alphas: tuple[float, ...] = ()  # empty: the profile's

    def configs(self, field: Field) -> Sequence[Mapping[str, Any]]:
        return [{"alpha": alpha} for alpha in self.alphas or MARGIN[field.profile]]

    def changed(self, subject: Subject, field: Field) -> Iterator[Changed]:
        work, end = plain_copy(subject), plain_copy(subject)
        start = plain_copy(field.peers["original"]().unwrapped())
        same_shape(end, start)
        details = self._curve(work, start, end, field) if field.profile == "deep" else {}
        for config in self.configs(field):
            mix(work, start, end, config["alpha"])
            yield Changed(config, work, details)

    def _curve(self, work: Subject, start: Subject, end: Subject, field: Field) -> dict[str, object]:
        retain = make_sheet(work.encoder, field.request.retain, "report")
        sheets = {"forget": sheets_of(work, field)["forget"]}
        forget: list[float] = []
        kept: list[float] = []
        for alpha in CURVE:
            mix(work, start, end, alpha)
            forget.append(compute("extraction_strength", ask(work, sheets), "forget").value or 0.0)
            if retain.lines:
                evidence = {"report": score_sheet(work, retain)}
                kept.append(compute("probability", evidence, "report").value or 0.0)
        found: dict[str, object] = {
            "alphas": list(CURVE),
            "forget": forget,
            "half_at": half_at(CURVE, forget),
        }
        return found | ({"barrier": min(kept[0], kept[-1]) - min(kept)} if kept else {})


@torch.no_grad()
def mix(work: Subject, start: Subject, end: Subject, alpha: float) -> None:
    """θ(α) into `work`; the end points are copied to the bit, everything between is computed in fp32."""
    for (_, mixed), (_, a), (_, b) in zip(*(named_weights(s.model) for s in (work, start, end)), strict=True):
        if alpha == 1 or not a.is_floating_point():
            mixed.copy_(b)
        else:
            mixed.copy_(a if alpha == 0 else torch.lerp(a.float(), b.float(), alpha))


def half_at(alphas: Sequence[float], forget: Sequence[float]) -> float | None:
    """The largest α at which forget is halfway to its value at the last α; None where the ends are equal.

    >>> half_at([1.0, 0.9, 0.5, 0.0], [0.0, 0.2, 0.6, 1.0])
    0.5
    """
    first, last = forget[0], forget[-1]
    if first == last:
        return None
    share = (np.asarray(forget) - first) / (last - first)
    return float(max(a for a, s in zip(alphas, share, strict=True) if s >= 0.5))
