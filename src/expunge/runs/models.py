"""The models of a run: where each lies on disk, loaded when a stage needs it and let go after."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from expunge.progress import say
from expunge.runs.recipe import Recipe
from expunge.subjects.subject import Subject, load_subject
from expunge.subjects.wrapped import Wrapped

__all__ = ["Shelf", "model_facts", "set_threads"]

SMALL = 5_000_000

COLLECTED = 2**28
"""Bytes of weights after which what is no longer used is collected: that takes longer than a tiny model."""

ACCESS = {
    "weights": frozenset({"generate", "logprobs", "hidden", "weights"}),
    "logits": frozenset({"generate", "logprobs"}),
    "text": frozenset({"generate"}),
}
"""What each access of a recipe lets a model be asked."""


@dataclass
class Shelf:
    """Model name → folder or hub id; `load` gives a fresh subject."""

    recipe: Recipe
    places: dict[str, str]
    loaded: int = 0  # bytes of weights since the last collection

    def load(self, name: str, device: str | None = None) -> Subject:
        recipe = self.recipe
        if self.loaded > COLLECTED:
            gc.collect()  # what the last stages held
            self.loaded = 0
        subject = load_subject(
            self.places[name],
            dtype=recipe.dtype,
            device=device or recipe.device,
            max_length=recipe.max_length,
            attention=recipe.attention,
            trust_remote_code=recipe.trust_remote_code,
        )
        self.loaded += sum(p.numel() * p.element_size() for p in subject.model.parameters())
        return subject.limited(ACCESS[recipe.access])


def model_facts(subject: Subject) -> dict[str, Any]:
    """What the scorecard says about a model; `weights` and `can`: of what the holder of its files has."""
    mark = subject.fingerprint()
    return {
        "fingerprint": mark,
        "weights": subject.unwrapped().fingerprint() if isinstance(subject, Wrapped) else mark,
        "wrapper": subject.name if isinstance(subject, Wrapped) else None,
        "can": sorted(subject.unwrapped().can),
        "architecture": type(subject.model).__name__,
        "parameters": subject.num_parameters(),
        "vocabulary": subject.vocab_size,
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
    }


def set_threads(parameters: int) -> None:
    """One thread for tiny models: two OpenMP threads that wait for each other can be ten times slower."""
    import os

    if "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available():
        return
    threads = 1 if parameters < SMALL else (os.cpu_count() or 1)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
        say(
            f"using {threads} thread{'s' if threads > 1 else ''} "
            f"for a model of {parameters / 1e6:.1f} M parameters"
        )
