"""How long and how fast: the settings every training in expunge shares."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch

__all__ = ["TrainSettings"]


class TrainSettings(BaseModel):
    """An optimizer with a schedule. `batch` forget rows (and as many retain rows) make one optimizer step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float = Field(5.0, gt=0, description="passes over the forget set")
    steps: int | None = Field(None, gt=0, description="optimizer steps; overrides epochs")
    lr: float = Field(1e-5, gt=0, description="peak learning rate")
    batch: int = Field(32, gt=0, description="forget rows per optimizer step")
    accumulate: int = Field(
        1, gt=0, description="micro-batches per optimizer step; changes memory, not the result"
    )
    seed: int = Field(0, ge=0)
    optimizer: Literal["adamw", "adamw_8bit", "sgd", "sophia"] = "adamw"
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] | None = Field(
        None, description="of the two moments; default 0.9, 0.999, for sophia 0.9, 0.95"
    )
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising learning rate")
    max_grad_norm: float = Field(1.0, ge=0, description="clip; 0: never")
    bf16: bool = Field(False, description="compute in bfloat16 over fp32 master weights")
    gradient_checkpointing: bool = False
    checkpoint_seconds: float = Field(60.0, ge=0, description="at most this much work is lost by a crash")
    log_every: int = Field(1, gt=0)
    report_to: list[str] = Field([], description="trackers: tensorboard, wandb, trackio")

    def num_steps(self, rows: int) -> int:
        """Optimizer steps over `rows` rows; at least one."""
        per_epoch = -(-rows // self.batch)
        return self.steps or max(1, round(self.epochs * per_epoch))

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """bf16 compute where asked for."""
        import torch

        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)
