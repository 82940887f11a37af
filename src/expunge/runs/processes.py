"""What a run does with the processes torchrun started: the strategy asked for is in force, or an error."""

from __future__ import annotations

import os
from typing import Literal

import torch

from expunge import ranks
from expunge.errors import ConfigError, Problem, require
from expunge.methods import METHODS
from expunge.runs.recipe import Recipe
from expunge.subjects.subject import pick_device
from expunge.training.sharding import check_axes
from expunge.training.zero import read_config

__all__ = ["InForce", "in_force"]

InForce = Literal["single", "ddp", "fsdp2", "deepspeed"]

WHOLE = ("ball", "gradient_projection")
"""Controls that look at whole tensors."""

START = "torchrun --nproc-per-node N -m expunge run RECIPE"


def in_force(recipe: Recipe, *, trains: bool = True) -> InForce:
    """The strategy of this run. Raises ConfigError where the recipe asks for another than there can be.

    `trains`: whether the recipe's method will run; an audit only measures and attacks.
    """
    world, asked = ranks.world(), recipe.strategy
    found: InForce = ("single" if world == 1 else "ddp") if asked == "auto" else asked
    if found == "single" and world > 1:
        fix = "Start it with expunge run, or set strategy: ddp"
        raise ConfigError(Problem("strategy", f"is single, and torchrun has started {world} processes", fix))
    if found != "single" and world == 1:
        raise ConfigError(Problem("strategy", f"is {found}, and there is one process", f"Start: {START}"))
    if (found == "deepspeed") != (recipe.deepspeed is not None):
        fix = "Give both keys, or none: strategy: deepspeed, deepspeed: config.json"
        raise ConfigError(Problem("deepspeed", "a strategy and its configuration go together", fix))
    if world > 1:
        _check_devices(recipe)
    if trains:
        ranks.check_scale(METHODS.card(recipe.method.name), divided=found in ("fsdp2", "deepspeed"))
    if found in ("fsdp2", "deepspeed"):
        check_axes(
            quantized=recipe.adapter == "lora" and recipe.lora.base != "full",
            transforms=bool(recipe.transform),
            selections=bool(recipe.selection),
            optimizer=recipe.train.optimizer,
            reference=recipe.reference,
            controls=[c.name for c in recipe.control if c.name in WHOLE],
        )
    if found == "deepspeed":
        require("deepspeed", why="strategy: deepspeed")
        read_config(str(recipe.deepspeed), recipe.train)
    return found


def _check_devices(recipe: Recipe) -> None:
    """A device for each process of this machine, and nobody else who takes them all."""
    device, local = pick_device(recipe.device), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.index is not None:
        what = f"{recipe.device} is one device, {local} processes of this machine would share it"
        raise ConfigError(Problem("device", what, f"Set device: {device.type}"))
    if device.type == "cuda" and torch.cuda.device_count() < local:
        what = f"{local} processes on a machine with {torch.cuda.device_count()} GPUs"
        raise ConfigError(Problem("torchrun", what, "Start one for each GPU, or set device: cpu"))
    if recipe.engine == "vllm":
        what = "vllm decodes in one process, over several the model itself does"
        raise ConfigError(Problem("engine", what, "Leave the key away"))
