"""Arithmetic on weights: what a fine-tuning changed, as a vector that is added or taken away.

Everything is fp32, tensor by tensor, over the floating parameters, tied ones once; buffers stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.data.records import Record
from expunge.errors import ModelError, Problem
from expunge.progress import say
from expunge.subjects import attach_lora, merge
from expunge.subjects.subject import Subject
from expunge.training.checkpoint import trainable
from expunge.training.finetune import finetune
from expunge.training.loop import FitResult
from expunge.training.settings import TrainSettings
from expunge.training.workspace import Workspace

__all__ = [
    "Vector",
    "add_result",
    "add_vectors",
    "check_same",
    "difference",
    "fine_tuned",
    "ignore_controls",
    "note_moved",
]

Vector = dict[str, Tensor]
"""θ_a − θ_b by parameter name, fp32."""


def ignore_controls(name: str, workspace: Workspace) -> None:
    """Say that controls during training have no step to act on; what is said is not silently ignored."""
    if workspace.controls:
        say(f"{name}: controls during training do not act on it, those after training do")


def fine_tuned(
    subject: Subject,
    records: Sequence[Record],
    workspace: Workspace,
    *,
    name: str,
    settings: TrainSettings | None = None,
    part: str | None = None,
) -> Subject:
    """An fp32 copy of the subject fine-tuned on records, through the workspace's LoRA where it has one.

    `part` names this fine-tuning among several of one run: it gets a folder of its own, without checkpoint
    once it is done. Steps, tokens and notes are added to `workspace.result`.
    """
    work = subject.clone()
    work.model.float()  # in bf16 most of a small difference rounds away
    settings = settings or workspace.settings
    if workspace.lora is not None:
        rank, alpha = workspace.lora.rank, workspace.lora.alpha
        work = attach_lora(work, rank=rank, alpha=alpha, seed=settings.seed)
    workspace.facts["trained_parameters"] = sum(p.numel() for p in trainable(work.model).values())
    folder = workspace.folder / part if workspace.folder and part else workspace.folder
    result = finetune(work, records, settings, folder=folder, name=f"fine-tuning ({name})")
    if folder and part:
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    add_result(workspace, result)
    return merge(work)


def add_result(workspace: Workspace, result: FitResult) -> None:
    """Count a training, or an edit, into what the workspace reports of the whole method."""
    total = workspace.result
    if total is None:
        workspace.result = result
        return
    total.steps += result.steps
    total.tokens += result.tokens
    total.seconds += result.seconds
    total.history += result.history
    total.notes += result.notes
    total.status = total.status if total.status == "diverged" else result.status


def check_same(model: nn.Module, start: nn.Module) -> None:
    """Raise ModelError where the parameters of two models differ in name or shape."""
    ours, theirs = _floating(model), _floating(start)
    odd = sorted(
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    )
    if odd:
        what, fix = f"other tensors or shapes: {', '.join(odd[:3])}", "Bring a checkpoint of the same model"
        raise ModelError(Problem("task vector", what, fix))


@torch.no_grad()
def difference(model: nn.Module, start: nn.Module) -> Vector:
    """model − start."""
    check_same(model, start)
    theirs = _floating(start)
    return {name: p.float() - theirs[name].float() for name, p in _floating(model).items()}


@torch.no_grad()
def add_vectors(model: nn.Module, *scaled: tuple[float, Vector]) -> None:
    """θ ← θ + Σ c·τ, rounded once to the model's dtype; a term with c = 0 leaves every bit."""
    terms = [(scale, vector) for scale, vector in scaled if scale]
    for name, parameter in _floating(model).items() if terms else ():
        total = parameter.float()
        for scale, vector in terms:
            total = total + scale * vector[name]
        parameter.copy_(total)


@torch.no_grad()
def note_moved(workspace: Workspace, model: nn.Module, original: nn.Module) -> None:
    """Share of weights that differ from the original's, for the report."""
    ours, theirs = _floating(model), _floating(original)
    moved = sum(int((p != theirs[name]).sum()) for name, p in ours.items())
    workspace.facts["moved_fraction"] = moved / max(1, sum(p.numel() for p in ours.values()))


def _floating(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}
