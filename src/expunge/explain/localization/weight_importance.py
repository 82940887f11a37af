"""Localization by the Fisher information of forget against that of retain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge.errors import DataError, Problem
from expunge.explain.base import LOCALIZERS, Case, Localization, Localizer
from expunge.explain.record_gradients import block_parameters, gradient_source
from expunge.subjects.subject import Subject
from expunge.training.gradients import fisher_diagonal
from expunge.training.selections import keep_largest
from expunge.training.selections.base import Share

__all__ = ["WeightImportance"]


@LOCALIZERS.register(
    "weight_importance",
    unit="weight",
    access="gradients",
    localizes=False,
    cost="1F+1B per record, twice over forget",
    source="Foster, Schoepf and Brintrup 2023, arXiv 2308.07707",
)
@dataclass(frozen=True, kw_only=True)
class WeightImportance(Localizer):
    """Weights that matter to forget far more than to retain: the ratio I_f / (I_r + ε) of Fisher diagonals.

    I: mean over rows of squared gradients (gold labels, exact per row), as `ssd` has it; ε the mean of I_r
    over the tensor, so that weights nobody uses do not come first. Map: the mean of g_i² / (I_r + ε) over a
    block's weights. Keeps the `share` of all block weights with the largest ratio.
    """

    share: Share = 0.01

    def localize(self, subject: Subject, case: Case) -> Localization:
        if not case.retain:
            fix = "Bring retain records, or use gradient_saliency"
            raise DataError(Problem("localizer.weight_importance", "needs retain records", fix))
        layers = block_parameters(subject.model)
        names = [name for some in layers.values() for name in some]
        forget = fisher_diagonal(subject, case.forget, names=names)
        floor = fisher_diagonal(subject, case.retain, names=names)
        for name, importance in floor.items():
            floor[name] = importance + importance.mean().clamp(min=1e-30)
        rows = []
        with gradient_source(subject, names) as gradients:
            for g in gradients.each(case.forget):
                rows.append(
                    [
                        float(
                            sum((g[n].square() / floor[n]).sum() for n in some)
                            / sum(g[n].numel() for n in some)
                        )
                        for some in layers.values()
                    ]
                )
        return Localization(
            tuple(r.id for r in case.forget),
            tuple(layers),
            np.array(rows),
            keep_largest({n: forget[n] / floor[n] for n in names}, self.share),
        )
