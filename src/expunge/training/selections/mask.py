"""A mask from a file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.subjects.subject import Subject
from expunge.training.selections.base import SELECTIONS, Mask, Selection
from expunge.training.selections.files import load_mask

__all__ = ["SavedMask"]


@SELECTIONS.register("mask", unit="weight", cost="none", source="")
@dataclass(frozen=True, kw_only=True)
class SavedMask(Selection):
    """The mask of an earlier run, from its mask.safetensors; on another model only with `any_model`.

    Raises ConfigError where the model is not the one it was computed on, or tensors do not fit.
    """

    path: str
    any_model: bool = False

    def select(self, subject: Subject, request: Request, names: Collection[str], seed: int) -> Mask:
        mask, meta = load_mask(Path(self.path))
        where = f"mask {self.path}"
        if not self.any_model and meta.get("fingerprint") != subject.fingerprint():
            what = f"was computed on another model ({meta.get('fingerprint')})"
            raise ConfigError(Problem(where, what, "Compute it on this one, or set any_model: true"))
        shapes = {name: p.shape for name, p in subject.model.named_parameters()}
        wrong = [
            n
            for n, m in mask.items()
            if n not in shapes or (not isinstance(m, bool) and m.shape != shapes[n])
        ]
        if wrong:
            what = f"the model has no {wrong[0]} of that shape"
            raise ConfigError(Problem(where, what, "Bring a mask of a model of this architecture"))
        return {name: m for name, m in mask.items() if name in names}
