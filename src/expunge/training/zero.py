"""The loop with a DeepSpeed engine (ZeRO, stages 1 and 2) in the optimizer's place.

DeepSpeed divides gradients and moments, may keep them in host memory, and clips; the weights stay whole.
Its checkpoints are pickled, so none is written: a training that was cut off begins again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from expunge import ranks
from expunge.errors import ConfigError, ExpungeError, Problem, require
from expunge.training.hooks import TrainingControl
from expunge.training.loop import Loop
from expunge.training.settings import TrainSettings

__all__ = ["ZeroLoop", "read_config"]


def read_config(path: str | Path, settings: TrainSettings) -> dict[str, Any]:
    """DeepSpeed's configuration with what the recipe says; ConfigError where the two may contradict."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            Problem("deepspeed", f"{path} cannot be read ({error})", "Give a JSON file")
        ) from error
    wrong = {
        "optimizer": "optimizer" in config,
        "scheduler": "scheduler" in config,
        "fp16": config.get("fp16", {}).get("enabled", False),
        "zero_optimization.stage": config.get("zero_optimization", {}).get("stage", 0) not in (1, 2),
    }
    stages = "It has to be 1 or 2. Whole gradients: strategy: ddp; divided weights: strategy: fsdp2"
    fixes = {"fp16": "Use train.bf16", "zero_optimization.stage": stages}
    problems = [
        Problem(
            "deepspeed", f"{key} of {path} does not go", fixes.get(key, "Take it out: it stands under train")
        )
        for key, found in wrong.items()
        if found
    ]
    if problems:
        raise ConfigError(problems)
    own = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}  # the loop counts rows
    clip = {"gradient_clipping": settings.max_grad_norm}
    return {**config, **own, **clip, "zero_allow_untested_optimizer": True}


class ZeroLoop(Loop):
    """An objective without transforms, masks or a step of its own."""

    def __init__(self, *args: Any, config: dict[str, Any], **more: Any):
        super().__init__(*args, **more)
        deepspeed = require("deepspeed", why="strategy: deepspeed")
        skipping = [c for c in self.controls if type(c).skip_step is not TrainingControl.skip_step]
        if skipping:
            what = f"{type(skipping[0]).__name__} may leave a step out, and DeepSpeed takes every one"
            raise ConfigError(Problem("control", what, "Remove it, or set strategy: ddp"))
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=self.subject.model, optimizer=self.optimizer, config=config
        )
        wanted = config["zero_optimization"]["stage"]
        if self.engine.zero_optimization_stage() != wanted or self.engine.world_size != ranks.world():
            raise ExpungeError("strategy: deepspeed is not in force: another stage, or other processes")
        self._joint = True  # the engine sums when all ranks are at their last micro-batch

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(ranks.world() * loss)  # it takes the mean over the ranks, we the sum

    def _clip(self) -> float:
        return 0.0  # known after the step

    def _check_gradients(self) -> None:
        """They are divided: the norm after the step tells."""

    def _move(self) -> None:
        self.engine.step()
        self.norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(self.norm):
            where = f"{self.name}: step {self.result.steps + 1}"
            raise ExpungeError(f"{where} had a non-finite gradient; nothing is kept")

    def _save(self) -> None:
        """Not pickled, so not at all."""

    def _resume(self) -> int:
        return 0
