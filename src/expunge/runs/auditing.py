"""An audit of a model that anyone made: no training recipe, the same evidence, attacks and verdict."""

from __future__ import annotations

from typing import Any

from expunge.controls.bar import choose_metric
from expunge.errors import NotComputable
from expunge.metrics import compute
from expunge.reports import write_reports
from expunge.runs import stages
from expunge.runs.folder import announce
from expunge.runs.models import Shelf, model_facts, read_facts, set_threads
from expunge.runs.pipeline import Pipeline, RunResult
from expunge.runs.prepare import prepare, tell
from expunge.runs.recipe import Recipe
from expunge.subjects.weights import fingerprint

__all__ = ["AuditPipeline"]


class AuditPipeline(Pipeline):
    """`candidate` is the model in question. The recipe's `model` is the original; without one (`has_original`
    False) there is nothing to compute recovery against, and the verdict says so."""

    def __init__(self, recipe: Recipe, candidate: str, *, has_original: bool, new: bool = False):
        super().__init__(recipe, new=new)
        self.candidate, self.has_original = candidate, has_original
        self.folder.recipe["candidate"] = candidate

    def run(self) -> RunResult:
        announce(1, 5, "prepare: checking the request, finding the models")
        self.job = prepare(self.recipe, self.path)
        self.folder.begin()
        self.warnings += self.job.warnings
        tell(self.job.warnings)
        self.shelf = Shelf(self.recipe, {"controlled": self.candidate})
        if self.has_original or self.recipe.benchmark:
            self.shelf.places["original"] = self.job.original
        if self.job.oracle:
            self.shelf.places["oracle"] = self.job.oracle
        subject = self.shelf.load("controlled")
        set_threads(subject.num_parameters())
        self.known = {"controlled": model_facts(subject, fingerprint(subject.model))}
        del subject
        self.marks = {"controlled": self.known["controlled"]["fingerprint"]}
        self.evidence: dict[str, Any] = {}
        if "original" in self.shelf.places:
            self.marks["original"] = fingerprint(self.shelf.load("original").model)
            self._baseline(2, 5)
            self.known |= read_facts(self.baseline)
        elif "oracle" in self.shelf.places:
            self.marks["oracle"] = fingerprint(self.shelf.load("oracle").model)
        self._measure(3, 5)
        self._attack(4, 5)
        announce(5, 5, "score and report")
        card = self._score()
        return RunResult(self.path, card, write_reports(card, self.path)["report.html"])

    def _data(self) -> dict[str, Any]:
        return {
            "request": self.job.request.fingerprint(),
            "splits": sorted(self.job.request),
            "original": self.marks.get("original"),
        }

    def _made(self) -> dict[str, Any]:
        """The bar, measured but not calibrated: an audit changes no weights."""
        made: dict[str, Any] = {"control": {}, "facts": self.known, "keep": self.recipe.bar.keep}
        before = self.evidence.get("original", {}).get("calibration")
        if before is None:
            return made
        try:
            metric, original = choose_metric(self.recipe.bar.metric, before)
        except NotComputable as reason:
            self.warnings.append(str(reason))
            return made
        ours = compute(metric, self.evidence["controlled"], "calibration").value
        from expunge.controls.bar import is_met

        assert original.value is not None
        met = is_met(ours, original.value, self.recipe.bar.keep, original.better)
        return {**made, "bar_metric": metric.name, "control": {"met": met}}

    def _how(self) -> dict[str, Any]:
        return {"method": None, "controls": []}

    def _measure(self, number: int, total: int) -> None:
        super()._measure(number, total)
        if "oracle" in self.shelf.places and "oracle" not in self.evidence:
            inputs = {**self._data(), "oracle": self.marks["oracle"], **self._measuring()}
            folder = self.folder.stage(
                "oracle-evidence", inputs, lambda f: stages.measure_one(f, "oracle", self.job, self.shelf)
            )
            self.evidence |= stages.read_models({"oracle": folder / "oracle"})
