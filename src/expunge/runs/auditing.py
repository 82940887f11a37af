"""An audit of a model that anyone made: no training recipe, the same evidence, attacks and verdict."""

from __future__ import annotations

from typing import Any

from expunge.audit.scorecard import Scorecard
from expunge.controls.bar import choose_metric, is_met
from expunge.errors import NotComputable
from expunge.metrics import compute
from expunge.runs.pipeline import Pipeline
from expunge.runs.recipe import Recipe

__all__ = ["AuditPipeline"]


class AuditPipeline(Pipeline):
    """`candidate` is the model in question; the recipe's `model` is the original.

    Without an original (`has_original` False) there is nothing to compute recovery against, and the verdict
    says so.
    """

    trains = False

    def __init__(self, recipe: Recipe, candidate: str, *, has_original: bool, new: bool = False):
        self.candidate, self.has_original = candidate, has_original
        super().__init__(recipe, new=new)

    def _baseline(self, number: int, total: int) -> None:
        if self.has_original:
            super()._baseline(number, total)
        else:
            self._ask("baseline", "oracle")

    def _requested(self) -> None:
        """An audit is no request: it has no life."""

    def _audited(self, card: Scorecard, bar_met: bool | None) -> None:
        """Nor does it end here."""

    def _unlearn(self, number: int, total: int) -> None:
        """Someone did."""

    def _control(self, number: int, total: int) -> None:
        """An audit changes no weights."""

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "candidate": self.candidate, "has_original": self.has_original}

    def _needs_bar(self) -> bool:
        return False

    def _places(self) -> dict[str, str]:
        given = super()._places()
        if not self.has_original:
            del given["original"]
        return {"controlled": self.candidate, **given}

    def _made(self) -> dict[str, Any]:
        """The bar, measured but not calibrated."""
        made: dict[str, Any] = {"control": {}, "facts": self.known}
        before = self.evidence.get("original", {}).get("calibration")
        if before is None:
            return made
        try:
            metric, original = choose_metric(self.recipe.bar.metric, before)
        except NotComputable as reason:
            self._warn(str(reason))
            return made
        assert original.value is not None
        ours = compute(metric, self.evidence["controlled"], "calibration").value
        met = is_met(ours, original.value, self.recipe.bar.keep, original.better)
        return {**made, "bar_metric": metric.name, "control": {"met": met}}

    def _how(self) -> dict[str, Any]:
        return {"method": None, "controls": []}
