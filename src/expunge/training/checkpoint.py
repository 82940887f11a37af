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
                stored = torch.as_tensor(value).detach().cpu().contiguous()
                tensors[f"{index}.{key}"] = stored.clone() if nested else stored  # it shares its code books
    return tensors, state["param_groups"]


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer, state: dict[str, Any], extra: dict[str, Tensor]
) -> None:
    """Trained weights, optimizer, JSON `state`, tensors of method and controls; replaces the last one."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors, groups = optimizer_tensors(optimizer)
    weights = {name: p.detach().cpu().contiguous() for name, p in trainable(model).items()}
    save_file(weights, temporary / "weights.safetensors")
    save_file(tensors, temporary / "optimizer.safetensors")
    save_file({k: v.detach().cpu().contiguous() for k, v in extra.items()}, temporary / "extra.safetensors")
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
            parameters[name].copy_(tensor)
    entries: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        whole = tensor.ndim == 0 and not tensor.is_floating_point()  # a plain count of steps
        entries.setdefault(int(index), {})[key] = int(tensor) if whole else tensor
    optimizer.load_state_dict({"state": entries, "param_groups": state.pop("param_groups")})
    return state, load_file(folder / "extra.safetensors")


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
