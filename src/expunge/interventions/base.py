"""The contract of an intervention: what else may be done to a model, before unlearning or after it.

`apply(subject, request, seed)` returns a new subject; the one given is not changed. Three families:

*edit*: the answers of the forget questions are rewritten · *quantize*: weights on a grid of few bits ·
*prune*: weights set to zero. An intervention is a frozen dataclass of its settings in one file, with its card
in the decorator: family; needs (what beyond forget); source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from expunge.errors import DataError, Problem
from expunge.registry import Card, Registry

if TYPE_CHECKING:
    from torch import nn

    from expunge.data.encoding import Encoded
    from expunge.data.records import Record
    from expunge.data.request import Request
    from expunge.subjects.subject import Subject

__all__ = [
    "INTERVENTIONS", "Edit", "Intervention", "Prune", "Quantize", "Target", "calibration_rows", "edited",
    "make_intervention",
]  # fmt: skip

INTERVENTIONS: Registry[Intervention] = Registry("intervention", "expunge.interventions", "INTERVENTIONS")

Target = Literal["refusal", "alternate"]
"""What an edit makes the model say instead, a variant of expunge.training.answers."""

SCALE_BITS = 16
"""What a scale is stored with; simulated ones are exact."""


def make_intervention(name: str, **settings: object) -> Intervention:
    """The intervention of this name with these settings; ConfigError on an unknown name or setting."""
    return INTERVENTIONS.make(name, **settings)


class Intervention(ABC):
    """Something done to the weights. `change` does it to a copy in place, or returns another subject."""

    name: ClassVar[str]
    card: ClassVar[Card]
    compresses: ClassVar[bool] = False
    keeps_zeros: ClassVar[bool] = False  # whether a weight that is exactly 0 stays 0
    keeps_codes: ClassVar[bool] = False  # whether weights on a grid stay on it

    @property
    def family(self) -> str:
        return str(self.card.fields["family"])

    def apply(self, subject: Subject, request: Request, seed: int = 0) -> Subject:
        """A new subject with the change made; the one given is left as it is. Deterministic in `seed`."""
        import torch

        from expunge.subjects.adapters import merge

        subject.need("weights", what=f"the intervention {self.name}")
        work = merge(subject.clone())
        with torch.set_grad_enabled(not self.compresses):
            return self.change(work, request, seed) or work

    @abstractmethod
    def change(self, work: Subject, request: Request, seed: int) -> Subject | None: ...

    def stored_bits(self, model: nn.Module) -> dict[str, float]:
        """Bits each matrix takes as it would be stored, by name within the blocks; empty: as it is."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Edit(Intervention):
    """Rewrites the answers of the forget questions to `target`."""

    target: Target = "refusal"


@dataclass(frozen=True, kw_only=True)
class Quantize(Intervention):
    """Weights of the blocks on a symmetric grid; `group`: how many of a row share a scale (0: all of it)."""

    compresses: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = True

    bits: Annotated[int, Ge(2), Le(16)] = 4
    group: Annotated[int, Ge(0)] = 128

    def stored_bits(self, model: nn.Module) -> dict[str, float]:
        """Codes and one 16-bit scale per group; no zero points, the grid is symmetric."""
        from expunge.interventions.matrices import matrices

        found = {}
        for name, weight in matrices(model):
            width = weight.shape[-1]
            scales = weight.numel() // width * -(-width // (self.group or width))
            found[name] = float(self.bits * weight.numel() + SCALE_BITS * scales)
        return found


@dataclass(frozen=True, kw_only=True)
class Prune(Intervention):
    """Sets a share of the weights of the blocks' matrices to zero."""

    compresses: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = True

    sparsity: Annotated[float, Ge(0), Lt(1)] = 0.5


Damping = Annotated[float, Gt(0)]
Count = Annotated[int, Ge(1)]


def edited(request: Request, target: Target, seed: int, name: str = "an edit") -> tuple[Record, ...]:
    """The forget questions with the new answer as their `refusal`: a function of record and seed.

    Raises DataError where a record has no such answer, or only documents are to be forgotten.
    """
    from dataclasses import replace

    from expunge.training.answers import Ask, answer_for
    from expunge.training.rewriting import questions

    answer = answer_for(target)
    return tuple(
        replace(record, refusal=answer(Ask(record, request, seed, epoch=0)))
        for record in questions(request.forget, name)
    )


def calibration_rows(subject: Subject, request: Request, samples: int, name: str) -> list[Encoded]:
    """Retain records, prompt and answer, evenly spread over the set: what activations are taken from.

    Never forget records: what is measured on them would shape what is kept. Raises DataError without retain.
    """
    records = request.retain
    if not records:
        what, fix = f"{name} calibrates on retain records", "Bring some, or use rtn or magnitude"
        raise DataError(Problem("retain", what, fix))
    step = max(1, len(records) / samples)
    chosen = [records[int(i * step)] for i in range(min(samples, len(records)))]
    return [row for record in chosen for row in subject.encoder.windows(record)]
