"""Whole matrices that forget pulls at, elsewhere than retain."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch.nn.functional import cosine_similarity

from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.stats import seed_from
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows, mean_gradient
from expunge.training.selections.base import SELECTIONS, Mask, Selection, retain_of

__all__ = ["MemFlex"]


@SELECTIONS.register(
    "memflex",
    unit="tensor",
    cost="3 × (1F+1B) over forget and retain",
    source="Tian et al. 2024, arXiv 2407.01920",
)
@dataclass(frozen=True, kw_only=True)
class MemFlex(Selection):
    """Tensors with cos(g_f, g_r) below one threshold and mean |g_f| above another; suits a LoRA.

    Gradients of answers in which half as many draws as there are tokens put a random one in, over 3 copies
    of each record: at gold answers a memorized record has hardly a gradient (`labels: gold` takes them all
    the same). cosine 0.92, gradient 6e-4 and the copies are those of the authors' code, which has the
    gradients of LoRA matrices of a 7B model; here they are those of the full matrices, and on other models
    `gradient` must be set by what the error says. Tian et al. 2024 (arXiv 2407.01920).
    """

    cosine: Annotated[float, Ge(-1), Le(1)] = 0.92
    gradient: Annotated[float, Ge(0)] = 6e-4
    labels: Literal["random", "gold"] = "random"
    copies: Annotated[int, Ge(1)] = 3

    def select(self, subject: Subject, request: Request, names: Collection[str], seed: int) -> Mask:
        sides = {"forget": request.forget, "retain": retain_of(request, self)}
        rows = {side: self._rows(subject, records, side, seed) for side, records in sides.items()}
        forget, retain = (mean_gradient(subject, rows[side], names=names) for side in sides)
        cosines = {
            n: float(cosine_similarity(g.reshape(-1), retain[n].reshape(-1), dim=0))
            for n, g in forget.items()
        }
        sizes = {n: float(g.abs().mean()) for n, g in forget.items()}
        mask: dict[str, torch.Tensor | bool] = {
            n: True for n in forget if cosines[n] < self.cosine and sizes[n] > self.gradient
        }
        if not mask:
            near = [n for n in forget if cosines[n] < self.cosine] or list(forget)
            what = (
                f"no tensor has cosine < {self.cosine} and mean |g| > {self.gradient}; the smallest cosine "
                f"is {min(cosines.values()):.2g}, the largest mean |g| {max(sizes[n] for n in near):.2g}"
            )
            raise ConfigError(Problem("selection.memflex", what, "Set gradient and cosine to suit"))
        return mask

    def _rows(self, subject: Subject, records: Sequence[Record], side: str, seed: int) -> list[Encoded]:
        rows = answer_rows(subject, records)
        if self.labels == "gold":
            return rows
        special = set(subject.tokenizer.all_special_ids)
        words = np.array([i for i in range(len(subject.tokenizer)) if i not in special])

        def scrambled(row: Encoded, nth: int, copy: int) -> Encoded:
            draw = np.random.default_rng(seed_from(seed, "memflex", side, nth, copy))
            ids, end = np.array(row.ids), len(row.ids) - row.has_end
            count = max(1, (end - row.num_prompt) // 2)
            ids[draw.integers(row.num_prompt, end, count)] = draw.choice(words, count)
            return replace(row, ids=tuple(ids.tolist()))

        return [scrambled(row, i, k) for k in range(self.copies) for i, row in enumerate(rows)]
