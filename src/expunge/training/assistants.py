"""Small models that help a large one to forget while it decodes: cut from it, taught, given by folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from expunge.data.records import Record
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject, load_subject
from expunge.training.finetune import finetune
from expunge.training.loop import FitResult
from expunge.training.retain import RETAIN_LOSSES
from expunge.training.views import View
from expunge.training.workspace import LoraSettings, Workspace

__all__ = ["UniformRetain", "given", "shallow", "taught", "trained"]


@RETAIN_LOSSES.register("uniform")
@dataclass(frozen=True)
class UniformRetain:
    """KL(U ‖ p) on the retain answers, mean over each row's tokens: know nothing but the forget set."""

    reads: ClassVar[tuple[str, ...]] = ("logits",)

    def loss(self, retain: View) -> Tensor:
        z = retain.logits
        return retain.mean_rows(z.logsumexp(-1) - z.mean(-1) - torch.log(torch.tensor(z.shape[-1])))


def shallow(subject: Subject, layers: int) -> Subject:
    """A copy with the first `layers` blocks, the embeddings, the last norm and the head."""
    subject.need("weights", what="an assistant cut from the model (or give its folder: `plus`, `minus`)")
    from transformers import AutoModelForCausalLM

    if layers >= len(blocks(subject.model)):
        return subject.clone()
    config = copy.deepcopy(subject.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    dtype = next(subject.model.parameters()).dtype
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    missing, _ = model.load_state_dict(subject.model.state_dict(), strict=False)
    assert not missing, f"the cut model has weights of its own: {missing[:3]}"
    model.to(subject.device).eval()
    return Subject(model, subject.tokenizer, subject.encoder, f"{subject.source} ({layers} layers)")


def given(folder: str, like: Subject) -> Subject:
    """The assistant in a folder, in the precision and on the device of `like`."""
    dtype = str(next(like.model.parameters()).dtype).removeprefix("torch.")
    return load_subject(folder, dtype=dtype, device=str(like.device), max_length=like.encoder.max_length)


def taught(subject: Subject, records: Sequence[Record], workspace: Workspace, name: str) -> Subject:
    """A copy fine-tuned on these records with the run's settings."""
    subject.need("weights", what="an assistant trained from the model (or give its folder: `plus`)")
    work = subject.clone()
    work.model.requires_grad_(True)
    result = finetune(
        work, records, workspace.settings, folder=_below(workspace, name), name=f"assistant {name}"
    )
    _add(workspace, result)
    return work


def trained(
    method: Any, subject: Subject, request: Any, workspace: Workspace, name: str, *, rank: int = 0
) -> Subject:
    """A copy trained by a method, with a LoRA of this rank or in full; the run's controls stay out of it.

    They hold the shipped model to its bar, and an assistant is not that model.
    """
    lora = LoraSettings(rank=rank) if rank else workspace.lora
    inner = Workspace(workspace.settings, _below(workspace, name), lora=lora)
    made = method.unlearn(subject, request, inner)
    if inner.result is not None:
        _add(workspace, inner.result)
    return made


def _below(workspace: Workspace, name: str) -> Path | None:
    return workspace.folder / name if workspace.folder else None


def _add(workspace: Workspace, result: FitResult) -> None:
    """The run's result: that of the last training, with what all of them took."""
    before = workspace.result
    if before is not None:
        result = replace(
            result,
            steps=before.steps + result.steps,
            tokens=before.tokens + result.tokens,
            seconds=before.seconds + result.seconds,
            notes=[*before.notes, *result.notes],
        )
    workspace.result = result
