"""Retraining without the forget set: the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge.data.records import Record
from expunge.data.request import Request, fingerprint_records
from expunge.methods.base import METHODS, OneShot
from expunge.subjects.subject import Subject
from expunge.training.exact import Start, before_exposure, environment, what_stays
from expunge.training.finetune import finetune
from expunge.training.workspace import Workspace


@METHODS.register(
    "retrain",
    family="exact",
    erases="influence",
    targets=["records", "entity", "document", "topic", "attribute"],
    access="weights",
    needs=["retain", "a model from before exposure"],
    cost="full training",
    scale="ddp",
    source="Bourtoule et al. 2019, arXiv 1912.03817",
    verified=["forgetting", "utility", "robustness"],
)
@dataclass(frozen=True, kw_only=True)
class Retrain(OneShot):
    """Train on all but the forget set, from `base` (a model from before exposure) or from fresh weights.

    The oracle every other method is measured against. It trains on all splits the original has seen except
    forget, so it is the one method that reads calibration and report records. What was done is certified;
    `replay` does it twice and compares the bits, `base_is_clean` is your word that `base` is from before.
    """

    trains: ClassVar[bool] = True
    base: str | None = None
    base_is_clean: bool = False
    splits: tuple[str, ...] = ("retain", "calibration", "report", "neighbors", "utility")
    replay: bool = False

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        records = what_stays(request, self.splits, self.name)
        start = before_exposure(subject, self.base, self.base_is_clean, workspace.settings.seed)
        fresh, again = start.subject, start.subject.clone() if self.replay else None
        before = fresh.fingerprint()
        workspace.result = finetune(
            fresh, records, workspace.settings, folder=workspace.folder, name="retraining (oracle)"
        )
        if again is not None:
            finetune(again, records, workspace.settings, name="retraining again, to compare")
        fresh.info["method"] = "retrain"
        mark = fresh.fingerprint()
        differing = again is not None and again.fingerprint() != mark
        workspace.facts["certificate"] = {
            **self._certificate(start, before, records, request, workspace),
            "verified": again is not None and not differing,
            "differing": differing,
            "fingerprint": mark,
        }
        return fresh

    def _certificate(
        self, start: Start, before: str, records: list[Record], request: Request, workspace: Workspace
    ) -> dict[str, object]:
        """What it takes to do this again: weights it began with, data, order, settings, machine."""
        return {
            "method": "retrain",
            "exact": start.clean,
            "reason": start.reason,
            "base": before,
            "data": fingerprint_records(records),
            "records": len(records),
            "left_out": fingerprint_records(request.forget),
            "order": "by seed and epoch",
            "settings": workspace.settings.model_dump(mode="json"),
            "environment": environment(start.subject),
            "replay": "method: {name: retrain, replay: true}, same recipe and machine",
        }
