"""What exact removal from shards has in common: find the shards or train them, delete, replay, certify."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from expunge.data.request import Request
from expunge.methods.base import OneShot
from expunge.progress import say
from expunge.subjects.subject import Subject
from expunge.training.exact import Start, before_exposure, certify_shards, judged, what_stays
from expunge.training.loop import FitResult
from expunge.training.shard_plan import ShardPlan
from expunge.training.shards import Shards, open_shards, train_shards
from expunge.training.workspace import LoraSettings, Workspace

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class Sharded(OneShot):
    """Base of the methods that retrain the shards which saw the records, and no other.

    `folder`: where the training by shards lies (train_shards wrote it); without it the shards are trained
    first, forget records included: set-up and deletion in one go. `replay`: which shards are trained once
    more from the base, to see that the same bits come out.
    """

    trains: ClassVar[bool] = True
    folder: str | None = None
    base: str | None = None  # what the shards begin with; None: fresh weights
    base_is_clean: bool = False  # your word that `base` has never seen what has to go
    shards: Count = 4
    slices: Count = 1
    by: Literal["entity", "id"] = "entity"
    splits: tuple[str, ...] = ("retain", "calibration", "report", "neighbors", "utility")
    replay: Literal["affected", "all", "none"] = "affected"

    @abstractmethod
    def serve(self, shards: Shards) -> Subject:
        """One subject out of all shards."""

    def adapter(self) -> LoraSettings | None:
        """What each shard trains; None: all weights."""
        return None

    def start(self, subject: Subject, request: Request, workspace: Workspace) -> Start:
        """What each shard begins with."""
        return before_exposure(subject, self.base, self.base_is_clean, workspace.settings.seed)

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        kept = what_stays(request, self.splits, self.name)
        if workspace.controls or workspace.lora:
            say(f"{self.name}: controls during training and `adapter` are left out, shards train alone")
        with TemporaryDirectory() as spare:
            place = (workspace.folder or Path(spare)) / "shards"
            if self.folder is None:
                say(f"{self.name}: no `folder` of a training by shards, so the shards are trained first")
                plan = ShardPlan(self.shards, self.slices, workspace.settings.seed, self.by)
                start = self.start(subject, request, workspace)
                shards = train_shards(
                    start.subject, [*request.forget, *kept], plan, workspace.settings, place,
                    lora=self.adapter(), clean=start.clean, origin=start.reason,
                )  # fmt: skip
            else:
                shards = open_shards(self.folder, device=str(subject.device))
                if self.base_is_clean:
                    _, shards.clean, shards.origin = judged(shards.base, subject, True)
            set_up = shards.spent.steps
            shards.delete([record.id for record in request.forget], kept)
            result = self.serve(shards)
            result.info["method"] = self.name
            certificate = certify_shards(shards, result, kept, self.replay)
            workspace.result = FitResult("finished", *shards.spent)
            workspace.facts |= {
                "trained_parameters": shards.trained_parameters,
                "steps_to_set_up": set_up,
                "steps_to_delete": shards.spent.steps - set_up,
                "certificate": {"method": self.name, **certificate},
            }
        return result
