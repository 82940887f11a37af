"""Live tensor bytes of an optimizer step at the end of its forward pass, where a second model would show."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from expunge.data.request import Request
from expunge.methods.likelihood.ascent import GradientDifference
from expunge.methods.likelihood.npo import NPO
from expunge.training.loop import Loop
from expunge.training.settings import TrainSettings
from expunge.training.unlearn import UnlearnTask
from perf import textbook
from perf.world import make_records, make_subject

__all__ = ["live_bytes", "memory"]

BATCH = 4


def memory() -> dict[str, dict[str, int]]:
    """method → way → bytes: weights, optimizer state, saved activations, and what serves the reference."""
    return {
        name: {way: live_bytes(lambda b=build, m=method: b(m)) for way, build in WAYS.items()}
        for name, method in (("NPO", NPO()), ("GradDiff", GradientDifference()))
    }


def live_bytes(build: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]]) -> int:
    """Bytes of the tensors that `build` and the forward pass it returns bring to life.

    `build` gives (whole step, forward pass); the step runs first, so that the optimizer's state is there.
    """
    before = _storages()
    step, forward = build()
    step()
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    alive = {**_storages(), **saved}
    del loss
    return sum(size for place, size in alive.items() if place not in before)


def _storages() -> dict[int, int]:
    """Every tensor storage that Python can see, once: address → bytes."""
    gc.collect()
    storages = [x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), Tensor)]
    return {s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}


def _large() -> Any:
    """105 M parameters."""
    return make_subject(768, 2560, 12, 12)


def _expunge(method: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    subject = _large()
    request = Request({"forget": make_records(BATCH, "forget"), "retain": make_records(BATCH, "retain")})
    settings = TrainSettings(lr=1e-5, batch=BATCH)
    task = UnlearnTask(method, subject, request, settings)
    loop = Loop(subject, task, settings)

    def step() -> None:
        loop.gradients(0)
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=True)

    return step, lambda: task.terms(task.micro_batches(0)[0])


def _textbook(method: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    subject = _large()
    encode = subject.encoder.encode
    forget, retain = (textbook.pad([encode(r) for r in make_records(BATCH, n)]) for n in ("forget", "retain"))
    parameters = list(subject.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    if isinstance(method, NPO):
        reference = _large().model
        loss = lambda: textbook.npo_loss(subject.model, reference, forget, retain)  # noqa: E731
    else:
        loss = lambda: textbook.graddiff_loss(subject.model, forget, retain)  # noqa: E731
    return lambda: textbook.train_step(optimizer, parameters, loss()), loss


WAYS = {"textbook": _textbook, "expunge": _expunge}
