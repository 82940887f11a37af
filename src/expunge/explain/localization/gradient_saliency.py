"""Localization by the size of gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from expunge.explain.base import LOCALIZERS, Case, Localization, Localizer
from expunge.explain.record_gradients import block_parameters, gradient_source
from expunge.subjects.subject import Subject
from expunge.training.selections import keep_largest
from expunge.training.selections.base import Share

__all__ = ["GradientSaliency"]


@LOCALIZERS.register(
    "gradient_saliency",
    unit="weight",
    access="gradients",
    localizes=False,
    cost="1F+1B per record",
    source="Fan et al. 2023, arXiv 2310.12508",
)
@dataclass(frozen=True, kw_only=True)
class GradientSaliency(Localizer):
    """Weights with a large forget gradient where retain records have a small one: |g_f| / (rms |g_r| + ε).

    g_f: mean over forget of the gradient of each record's mean answer NLL; rms over retain records, ε the
    mean of it over the tensor. Without retain records |g_f|. Map: ‖g_i‖ by block over the rms of the retain
    records' norms there. Keeps the `share` of all block weights with the largest score.
    A gradient says which weights would change an answer, not which hold it.
    """

    share: Share = 0.01

    def localize(self, subject: Subject, case: Case) -> Localization:
        layers = block_parameters(subject.model)
        names = [name for some in layers.values() for name in some]
        with gradient_source(subject, names) as gradients:
            mean = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in gradients.chosen.items()}
            square = {n: torch.zeros_like(t) for n, t in mean.items()}
            norms = []
            for g in gradients.each(case.forget):
                norms.append([_norm(g[n] for n in some) for some in layers.values()])
                for name, total in mean.items():
                    total += g[name] / len(case.forget)
            base = [[1.0] * len(layers)]
            for nth, g in enumerate(gradients.each(case.retain)):
                base = [*(base if nth else []), [_norm(g[n] for n in some) for some in layers.values()]]
                for name, total in square.items():
                    total += g[name].square() / len(case.retain)
        scores = {name: g.abs() for name, g in mean.items()}
        if case.retain:
            for name, total in square.items():
                rms = total.sqrt()
                scores[name] = scores[name] / (rms + rms.mean().clamp(min=1e-30))
        reference = np.sqrt(np.square(base).mean(0))
        return Localization(
            tuple(r.id for r in case.forget),
            tuple(layers),
            np.array(norms) / np.maximum(reference, 1e-30),
            keep_largest(scores, self.share),
        )


def _norm(tensors: object) -> float:
    return float(sum(t.double().square().sum() for t in tensors)) ** 0.5  # type: ignore[attr-defined]
