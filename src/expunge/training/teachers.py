"""Second models that some methods learn from: copies of the original, trained further on some records."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from expunge.data.records import Record
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.subjects.subject import Subject
from expunge.training.finetune import finetune
from expunge.training.loop import FitResult
from expunge.training.settings import TrainSettings
from expunge.training.workspace import Workspace

__all__ = ["knowledge_gap", "reinforced", "trained_copy"]


def trained_copy(
    subject: Subject,
    records: Sequence[Record],
    settings: TrainSettings,
    name: str,
    folder: Path | None = None,
) -> tuple[Subject, FitResult]:
    """A frozen copy trained on the records in full; the subject given is not changed."""
    work = subject.clone()
    work.model.requires_grad_(True)
    result = finetune(work, records, settings, folder=folder, name=f"fine-tuning ({name})")
    work.model.requires_grad_(False).eval()
    return work, result


def reinforced(
    subject: Subject, records: Sequence[Record], workspace: Workspace, name: str, *, epochs: float, lr: float
) -> Subject:
    """A frozen copy trained `epochs` more at `lr`, other settings the run's; its cost goes into the facts.

    A training that was cut off goes on; once it is done its checkpoint, which knows the records too well, is
    deleted, and a resumed run makes the copy again.
    """
    settings = workspace.settings.model_copy(update={"epochs": epochs, "lr": lr, "steps": None})
    folder = workspace.folder / name if workspace.folder else None
    work, result = trained_copy(subject, records, settings, name, folder)
    if folder:
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    cost = {key: value for key, value in asdict(result).items() if key in ("steps", "tokens", "seconds")}
    workspace.facts[f"teacher_{name}"] = cost
    return work


def knowledge_gap(one: Subject, other: Subject, records: Sequence[Record]) -> float:
    """Mean over records of the mean over answer tokens of KL(one ‖ other), nats."""
    sheet = make_sheet(other.encoder, records, "holdout")
    rows = score_sheet(other, sheet, reference=one).rows
    return float(np.mean([row.kl.mean() for row in rows if row.kl is not None and len(row.kl)]))
