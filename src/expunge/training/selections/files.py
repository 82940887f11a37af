"""Masks as files: safetensors, with what they were computed from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import ConfigError, Problem
from expunge.training.selections.base import Mask

__all__ = ["load_mask", "save_mask"]

_WHOLE = torch.tensor(True)


def save_mask(path: Path, mask: Mask, meta: Mapping[str, Any]) -> None:
    """Write a mask: boolean tensors by parameter name, a scalar for a whole tensor; `meta` as JSON.

    `meta` should hold the fingerprint of the model the mask was computed on.
    """
    tensors = {name: _WHOLE.clone() if m is True else _stored(m) for name, m in mask.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, {"expunge_mask": json.dumps(meta)})
    os.replace(temporary, path)


def load_mask(path: Path) -> tuple[dict[str, Tensor | bool], dict[str, Any]]:
    """(mask, meta) of a file that `save_mask` wrote. Raises ConfigError on any other file."""
    where = f"mask {path}"
    if not path.is_file():
        raise ConfigError(Problem(where, "no such file", "Give the mask.safetensors of an earlier run"))
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["expunge_mask"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        fix = "Give the mask.safetensors of an earlier run"
        raise ConfigError(Problem(where, f"is not a mask ({type(error).__name__})", fix)) from error
    return {name: t if t.ndim else True for name, t in tensors.items()}, meta


def _stored(mask: Tensor | bool) -> Tensor:
    assert isinstance(mask, Tensor)
    assert mask.dtype is torch.bool
    return mask.cpu().contiguous()
