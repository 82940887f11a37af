"""Retraining without the forget set: the oracle."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, Problem
from expunge.methods.base import METHODS, OneShot
from expunge.stats import seed_from
from expunge.subjects.subject import Subject, load_subject
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
    scale="single",
    source="Bourtoule et al. 2019, arXiv 1912.03817",
)
@dataclass(frozen=True, kw_only=True)
class Retrain(OneShot):
    """Train on all but the forget set, from `base` (a model from before exposure) or from fresh weights.

    The oracle every other method is measured against. It trains on all splits the original has seen except
    forget, so it is the one method that reads calibration and report records.
    """

    base: str | None = None
    splits: tuple[str, ...] = ("retain", "calibration", "report", "neighbors", "utility")
    forget_splits: ClassVar[tuple[str, ...]] = ("forget", "forget_hard", "holdout")

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        if forbidden := sorted(set(self.splits) & set(self.forget_splits)):
            raise ConfigError(Problem("method.splits", f"an oracle must not train on {', '.join(forbidden)}"))
        if not request.forget:
            raise DataError(
                Problem("forget", "retrain needs forget records to leave out", "Bring a forget set")
            )
        records = [record for split in self.splits for record in request[split]]
        if not records:
            raise DataError(Problem("retain", "retrain has nothing to train on", "Bring a retain set"))
        if self.base:
            fresh = load_subject(self.base, device=str(subject.device), max_length=subject.encoder.max_length)
        else:
            fresh = reinitialized(subject, workspace.settings.seed)
        workspace.result = finetune(
            fresh, records, workspace.settings, folder=workspace.folder, name="retraining (oracle)"
        )
        fresh.info["method"] = "retrain"
        return fresh


def reinitialized(subject: Subject, seed: int) -> Subject:
    """The same architecture with random weights, a function of the seed."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(seed, "init") % 2**63)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(subject.config))
    model.to(subject.device)
    return Subject(model.eval(), subject.tokenizer, subject.encoder, "reinitialized", subject.can)
