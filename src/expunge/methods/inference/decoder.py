"""What the forms of contrastive decoding share: the rule, and how its assistants are come by."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from expunge.data.request import Request
from expunge.methods.base import Wrapper
from expunge.subjects.subject import Subject
from expunge.subjects.wrappers.contrast import Contrast, ContrastRule
from expunge.training.assistants import given
from expunge.training.workspace import Workspace

__all__ = ["Contrastive", "Count", "Share"]

Count = Annotated[int, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class Contrastive(Wrapper):
    """z' = z_base + w·(z_plus − z_minus) on the plausible set: log p_base ≥ max log p_base + log r.

    r = 0: no filter. `at_least` tokens are always plausible, by default int(r·V) as in the official code of
    ULD: r alone leaves a memorized token (p_base > 1/(1 + r)) without rivals, and nothing would change; 1:
    the bare formula. An excluded token stands 50 nats below the best one, in scoring as in decoding: −∞ in
    effect, with a finite logarithm. `plus` and `minus` name folders of assistants; those not given are
    trained here.
    """

    weight: float
    ratio: Share = 0.1
    at_least: Count | None = None
    plus: str | None = None
    minus: str | None = None

    @abstractmethod
    def complete(
        self, parts: dict[str, Subject], subject: Subject, request: Request, work: Workspace
    ) -> None:
        """Add the assistants that `parts` lacks."""

    def rule(self, vocab_size: int) -> ContrastRule:
        at_least = self.at_least or max(1, int(self.ratio * vocab_size))
        return ContrastRule(self.weight, self.ratio, at_least)

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        folders = {"plus": self.plus, "minus": self.minus}
        parts = {name: given(folder, subject) for name, folder in folders.items() if folder}
        self.complete(parts, subject, request, workspace)
        return Contrast(subject, self.rule(subject.vocab_size), parts)
