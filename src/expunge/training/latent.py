"""Perturbations of hidden states: where they sit, and the strongest one within a ball.

δ is [b, T, D] over the b records of a micro-batch; every answer variant of a record gets the record's δ. It
sits at prompt tokens; of a document, which has no prompt, at all tokens but the last.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.batching import collate

__all__ = ["Perturbation", "strongest"]


class Perturbation:
    """Adds δ to the output of `block` at the forget rows of a micro-batch, while the context is open."""

    def __init__(self, block: nn.Module, micro: Any, delta: Tensor):
        self.block, self.delta = block, delta
        self.rows: list[int] = []  # of the batch
        self.records: list[int] = []  # of δ
        start = 0
        for part in micro.parts:
            if part.side == "forget":
                self.rows += range(start, start + len(part.rows))
                self.records += range(len(part.rows))
            start += len(part.rows)

    def __enter__(self) -> None:
        self._handle = self.block.register_forward_hook(self._add)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _add(self, _: nn.Module, __: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        width = min(states.shape[1], self.delta.shape[1])
        change = torch.zeros_like(states[self.rows])
        change[:, :width] = self.delta[self.records, :width].to(states.dtype)
        moved = states.index_add(0, torch.tensor(self.rows, device=states.device), change)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved


def attacked_positions(rows: Any, width: int) -> Tensor:
    """[b, T, 1]: 1 where δ may be non-zero."""
    mask = torch.zeros(len(rows), width, 1)
    for i, row in enumerate(rows):
        mask[i, : row.num_prompt if row.num_prompt > 1 else len(row.ids) - 1] = 1
    return mask


def strongest(task: Any, micro: Any, block: nn.Module, steps: int, lr: float, epsilon: float) -> Tensor:
    """δ that makes the gold answers of the forget rows likely: AdamW on their mean NLL, projected each step.

    No weight receives a gradient. ‖δ_t‖₂ ≤ ε at every token after every step.
    """
    gold = next(part for part in micro.parts if part.name == "forget.gold")
    batch = collate(gold.rows, task.subject.encoder.pad_id).to(task.subject.device)
    alone = replace(micro, parts=[gold], batch=batch)
    width = batch.input_ids.shape[1]
    mask = attacked_positions(gold.rows, width).to(task.subject.device)
    size = task.subject.config.get_text_config().hidden_size
    delta = torch.zeros(len(gold.rows), width, size, device=mask.device, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        with Perturbation(block, alone, delta), task.settings.autocast(mask.device):
            loss = task.views(alone)["forget"].mean_nll.sum()
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        optimizer.step()
        with torch.no_grad():
            length = delta.norm(dim=-1, keepdim=True).clamp(min=1e-30)
            delta.mul_(mask * (epsilon / length).clamp(max=1.0))
    return delta.detach()
