"""Weights as data: fingerprint, dump, in-place mixing, and saving that is checked before it counts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.errors import ExpungeError, ModelError, Problem
from expunge.subjects.adapters import lora_modules
from expunge.subjects.subject import Subject, load_subject

__all__ = [
    "WeightFile",
    "check_mixable",
    "dump_weights",
    "fingerprint",
    "load_weights",
    "mix_into",
    "moved_fraction",
    "named_weights",
    "save_subject",
]


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every stored tensor once, by its first name: parameters and persistent buffers, ties not repeated."""
    seen: set[tuple[int, int, torch.Size]] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        storage = (tensor.data_ptr(), tensor.storage_offset(), tensor.shape)
        if tensor.numel() and storage in seen:
            continue
        seen.add(storage)
        yield name, tensor


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights' names, dtypes, shapes and bits and of the adapters' scales; ties count once."""
    digest = hashlib.sha256()
    for name, module in lora_modules(model):  # no tensor holds the scale, and θ(α) differs in nothing else
        digest.update(f"{name}|{sorted(module.scaling.items())}|{module.disable_adapters}".encode())
    for name, tensor in named_weights(model):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{data.dtype}|{tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return digest.hexdigest()[:16]


class WeightFile:
    """Tensors of a dumped model, read one at a time."""

    def __init__(self, path: Path):
        self.path = Path(path)
        with safe_open(self.path, framework="pt") as file:
            self.names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        with safe_open(self.path, framework="pt") as file:
            for name in self.names:
                yield name, file.get_tensor(name)


def dump_weights(model: nn.Module, path: Path, *, trainable_only: bool = False) -> WeightFile:
    """Write the model's tensors under the names they have in memory, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in named_weights(model)
        if not trainable_only or tensor.requires_grad
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return WeightFile(path)


@torch.no_grad()
def load_weights(model: nn.Module, weights: WeightFile) -> None:
    """Copy dumped tensors into the live model, bit for bit."""
    live = dict(named_weights(model))
    for name, tensor in weights.items():
        live[name].copy_(tensor)


def check_mixable(live: nn.Module, original: WeightFile, unlearned: WeightFile) -> None:
    """Raise ModelError naming the first tensors that differ in name or shape, or hold NaN or infinity."""
    here = dict(named_weights(live))
    problems = []
    for where, weights in (("original", original), ("unlearned", unlearned)):
        names = set(weights)
        if names != set(here):
            odd = sorted(names ^ set(here))[:3]
            problems.append(Problem(f"the {where} model", f"other tensors or other ties: {', '.join(odd)}"))
            continue
        for name, tensor in weights.items():
            if tensor.shape != here[name].shape:
                what = f"shape {tuple(tensor.shape)}, expected {tuple(here[name].shape)}"
                problems.append(Problem(f"{where}: {name}", what))
            elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
                problems.append(Problem(f"{where}: {name}", "non-finite: mixing cannot rescue a NaN"))
    if not problems:
        for name, tensor in original.items():
            if not tensor.is_floating_point() and not torch.equal(tensor, unlearned[name]):
                problems.append(
                    Problem(name, "an integer buffer that differs between the models: no mix of them")
                )
    if problems:
        raise ModelError(problems)


@torch.no_grad()
def mix_into(live: nn.Module, original: WeightFile, unlearned: WeightFile, alpha: float) -> None:
    """θ(α) = (1−α)·θ_o + α·θ_u into the live model, tensor by tensor; α = 0 original, α = 1 unlearned.

    End points are copied, not computed; everything between is computed in fp32 from θ_o and θ_u (never from
    the last mix), then cast to the live dtype. Tied weights are mixed once.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha {alpha} outside [0, 1]")
    tensors = dict(named_weights(live))
    if alpha in (0.0, 1.0):
        for name, tensor in (unlearned if alpha else original).items():
            tensors[name].copy_(tensor)
        return
    for name, start in original.items():
        if start.is_floating_point():
            tensors[name].copy_(torch.lerp(start.float(), unlearned[name].float(), alpha))
        else:
            tensors[name].copy_(start)


def moved_fraction(model: nn.Module, before: WeightFile) -> float:
    """Share of weights whose stored bits differ from `before` (floating parameters and buffers)."""
    moved = total = 0
    live = dict(named_weights(model))
    for name, tensor in before.items():
        if tensor.is_floating_point() and name in live:
            moved += int((live[name].detach().cpu() != tensor.to(live[name].dtype)).sum())
            total += tensor.numel()
    return moved / max(1, total)


def save_subject(
    subject: Subject, folder: Path, *, info: dict[str, Any] | None = None, check: bool = True
) -> Path:
    """Save a subject with all its parts: to a temporary folder, reload, compare bit for bit, rename.

    `info` is written beside the weights as `expunge.json`. Raises ExpungeError when what was reloaded differs
    or the disk is too small; whatever fails, the target is left as it was.
    """
    folder = Path(folder).absolute()
    _check_room(subject, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        subject.write(temporary)
        mark = subject.fingerprint()
        facts = json.dumps({**subject.info, **(info or {}), "fingerprint": mark}, indent=2, default=str)
        (temporary / "expunge.json").write_text(facts + "\n", encoding="utf-8")
        if check and not subject.adapter:
            dtype = str(next(subject.model.parameters()).dtype).removeprefix("torch.")
            again = load_subject(temporary, dtype=dtype, device="cpu", max_length=subject.encoder.max_length)
            if again.encoder.fingerprint() != subject.encoder.fingerprint():
                raise ExpungeError(
                    f"{folder}: transformers reads the saved tokenizer as another; nothing was written"
                )
            if again.fingerprint() != mark:
                raise ExpungeError(
                    f"{folder}: the saved model differs from the one in memory; nothing was written"
                )
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_room(subject: Subject, folder: Path) -> None:
    need = 1.1 * next(subject.model.parameters()).element_size() * subject.num_parameters()
    free = shutil.disk_usage(next(p for p in folder.parents if p.exists())).free
    if free < need:
        sizes = f"{need / 2**20:.0f} MiB to write, {free / 2**20:.0f} MiB free"
        raise ExpungeError(f"{folder}: {sizes}. Make room and run again")


def _replace(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; the old one is deleted only after the new one stands."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
