"""The state of a training under way, written atomically: a killed run resumes to the same bits.

Tensors are safetensors, the rest is JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from expunge import ranks
from expunge.training.sharding import like, whole

__all__ = ["load_checkpoint", "optimizer_tensors", "save_checkpoint", "trainable"]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def optimizer_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The optimizer's state as flat tensors and plain parameter groups."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    for index, entry in state["state"].items():
        nested = [value for value in entry.values() if isinstance(value, dict)]  # bitsandbytes hides some
        plain = {key: value for key, value in entry.items() if not isinstance(value, dict)}
        for part in (plain, *nested):
            for key, value in part.items():
                stored = whole(torch.as_tensor(value).detach()).cpu().contiguous()
                tensors[f"{index}.{key}"] = stored.clone() if nested else stored  # it shares its code books
    return tensors, state["param_groups"]


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer, state: dict[str, Any], extra: dict[str, Tensor]
) -> None:
    """Trained weights, optimizer, JSON `state`, tensors of method and controls; replaces the last one.

    Rank 0 writes; where weights are divided, all ranks have to call.
    """
    tensors, groups = optimizer_tensors(optimizer)
    weights = {name: whole(p.detach()).cpu().contiguous() for name, p in trainable(model).items()}
    extra = {name: whole(t.detach()).cpu().contiguous() for name, t in extra.items()}
    if not ranks.is_first():
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(weights, temporary / "weights.safetensors")
    save_file(tensors, temporary / "optimizer.safetensors")
    save_file(extra, temporary / "extra.safetensors")
    (temporary / "state.json").write_text(json.dumps({**state, "param_groups": groups}), encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old.tmp")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Put weights and optimizer back; (state, extra tensors), or None where there is no checkpoint."""
    if not ranks.on_first(lambda: _mended(folder)) or not folder.is_dir():
        return None
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    parameters = trainable(model)
    with torch.no_grad():
        for name, tensor in load_file(folder / "weights.safetensors").items():
            parameters[name].copy_(like(tensor, parameters[name]))
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        count = tensor.ndim == 0 and not tensor.is_floating_point()  # a plain count of steps
        stored = int(tensor) if count else like(tensor, ordered[int(index)])
        entries.setdefault(int(index), {})[key] = stored
    optimizer.load_state_dict({"state": entries, "param_groups": state.pop("param_groups")})
    extra = load_file(folder / "extra.safetensors")
    for key, tensor in extra.items():  # copies of weights that a control keeps
        if (name := key.partition(".")[2]) in parameters:
            extra[key] = like(tensor, parameters[name])
    return state, extra


def _mended(folder: Path) -> bool:
    """Whether there is a checkpoint; what a kill left half done is put right or removed."""
    if not (folder / "state.json").is_file():
        old = folder.with_name(f".{folder.name}.old.tmp")  # killed between the two renames
        if not (old / "state.json").is_file():
            return False
        os.replace(old, folder)
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a kill: weights nobody would purge
        shutil.rmtree(leftover, ignore_errors=True)
    return True
