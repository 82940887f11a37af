"""A block's MLP output matrix as a linear memory, W k = v: its keys, their second moments, edits to it.

Shapes: F inner width (`down_proj` inputs), D hidden width, N keys. Sums and solutions are float64: second
moments of few tokens are all but singular.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.batching import collate, token_batches
from expunge.data.encoding import Encoded
from expunge.errors import ConfigError, ModelError, Problem
from expunge.measure.score import batch_tokens
from expunge.subjects.architecture import MLP_OUTPUT, blocks
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.gradients import differentiable, row_losses

__all__ = [
    "Fit",
    "Memory",
    "add_edit",
    "edit",
    "fit_shifts",
    "key_sums",
    "layer_at",
    "mean_keys",
    "mlp_output",
    "outputs_at",
    "second_moment",
    "states",
    "weight_of",
]

JITTER = 1e-4
"""Share of the mean eigenvalue added to a second moment's diagonal: few tokens do not span every key."""


# The matrix -------------------------------------------------------------------------------------------


def mlp_output(model: nn.Module, layer: int) -> nn.Module:
    """The linear map through which this block's MLP writes into the residual stream.

    Raises ModelError where there is no such single map (experts), or where a norm follows it (Gemma 2): what
    it is made to write would not be what arrives.
    """
    block = blocks(model)[layer]
    found = [m for n, m in block.named_modules() if MLP_OUTPUT.search(n) and hasattr(m, "weight")]
    expert = any(MLP_OUTPUT.search(n) and p.dim() > 2 for n, p in block.named_parameters())
    normed = any(re.match(r"post_(feedforward|mlp).*norm", n) for n, _ in block.named_children())
    if expert or len(found) != 1 or normed:
        what = "a norm follows its MLP" if normed else "its MLP does not write through one matrix"
        fix = "Use a method that trains, npo for one"
        raise ModelError(Problem(f"{type(model).__name__}, block {layer}", what, fix))
    return found[0]


def weight_of(module: nn.Module) -> Tensor:
    """W as [D, F], a view: GPT-2's Conv1D stores it transposed."""
    from transformers.pytorch_utils import Conv1D

    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


@torch.no_grad()
def add_edit(module: nn.Module, change: Tensor) -> None:
    """W ← W + ΔW in place, summed in float64 and rounded once."""
    weight = weight_of(module)
    weight.copy_(weight.double() + change)


def layer_at(subject: Subject, layer: int | None, share: float, *, where: str, last: int) -> int:
    """The block asked for, or that at this share of the depth; `last` is the deepest allowed.

    Raises ConfigError for one that does not exist or lies too deep.
    """
    layer = min(round(share * len(blocks(subject.model))), last) if layer is None else layer
    if not 0 <= layer <= last:
        raise ConfigError(Problem(f"method.{where}", f"{layer}, but only blocks 0..{last} can be edited"))
    return layer


# Keys -------------------------------------------------------------------------------------------------


@torch.no_grad()
def states(
    subject: Subject, layer: int, rows: Sequence[Encoded]
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Per batch, up to this block: row numbers, keys [b,T,F], the block's outputs [b,T,D], mask [b,T]."""
    found: list[Tensor] = []
    handle = mlp_output(subject.model, layer).register_forward_pre_hook(lambda _, x: found.append(x[0]))
    try:
        for indices in token_batches([len(r.ids) for r in rows], batch_tokens(subject)):
            batch = collate([rows[i] for i in indices], subject.encoder.pad_id).to(subject.device)
            with subject.evaluating() as model:
                hidden = forward(model, batch, logits=False, layers=[layer]).hidden[layer]
            keys = found.pop().reshape(*hidden.shape[:2], -1)
            yield indices, keys.double(), hidden.double(), batch.attention_mask.bool()
    finally:
        handle.remove()


def key_sums(subject: Subject, layer: int, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor, int]:
    """(Σk [F], Σkkᵀ [F, F], number of keys) over all tokens of rows."""
    width = weight_of(mlp_output(subject.model, layer)).shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=subject.device)
    total, count = torch.zeros_like(gram[0]), 0
    for _, keys, _, mask in states(subject, layer, rows):
        real = keys[mask]
        total += real.sum(0)
        gram += real.T @ real
        count += len(real)
    return total, gram, count


def second_moment(subject: Subject, layer: int, rows: Sequence[Encoded]) -> Tensor:
    """C = E[kkᵀ] over all tokens of rows, [F, F], positive definite by jitter; without rows the identity."""
    _, gram, count = key_sums(subject, layer, rows)
    if not count:
        return torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    gram /= count
    gram.diagonal().add_(JITTER * gram.diagonal().mean())
    return gram


@dataclass(frozen=True)
class Memory:
    """What is to be overwritten: rows (prefix, prompt, new answer), and where the key sits in each.

    The first row is the bare prompt. `found`: the entity stands in the prompt.
    """

    rows: tuple[Encoded, ...]
    positions: tuple[int, ...]
    found: bool = True


def mean_keys(subject: Subject, layer: int, memories: Sequence[Memory]) -> Tensor:
    """[F, N]: each memory's key, the mean over its rows."""
    rows = [row for m in memories for row in m.rows]
    places = [p for m in memories for p in m.positions]
    found = {}
    for indices, keys, _, _ in states(subject, layer, rows):
        found.update({i: keys[at, places[i]] for at, i in enumerate(indices)})
    mine = (found[i] for i in range(len(rows)))
    return torch.stack([torch.stack([next(mine) for _ in m.rows]).mean(0) for m in memories], dim=1)


def outputs_at(subject: Subject, layer: int, rows: Sequence[Encoded], places: Sequence[int]) -> Tensor:
    """[D, n]: what the block puts out at one token of each row."""
    found = {}
    for indices, _, hidden, _ in states(subject, layer, rows):
        found.update({i: hidden[at, places[i]] for at, i in enumerate(indices)})
    return torch.stack([found[i] for i in range(len(rows))], dim=1)


# Edits ------------------------------------------------------------------------------------------------


def edit(keys: Tensor, residuals: Tensor, moment: Tensor, *, prior: float = 0.0) -> Tensor:
    """ΔW [D, F] that moves W k by each residual [D, N] at its key [F, N], least on what C [F, F] knows.

    ΔW = R Kᵀ(λ₀C + KKᵀ)⁻¹, written R (λ₀I + KᵀC⁻¹K)⁻¹KᵀC⁻¹: an N × N system that λ₀ = 0 leaves solvable when
    the keys are independent. One key and λ₀ = 0: r (C⁻¹k)ᵀ/(kᵀC⁻¹k).
    """
    keys, residuals, moment = keys.double(), residuals.double(), moment.double()
    white = torch.cholesky_solve(keys, torch.linalg.cholesky(moment))
    small = keys.T @ white + prior * torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
    return residuals @ torch.linalg.solve(small, white.T)


@dataclass(frozen=True)
class Fit:
    """How v* is found: Adam on a shift, in units of the root mean square of what it is added to."""

    steps: int
    lr: float
    decay: float
    clamp: float  # ‖δ‖ ≤ clamp·‖v‖


def fit_shifts(subject: Subject, memories: Sequence[Memory], module: nn.Module, fit: Fit) -> Tensor:
    """δ [D, N]: added to the module's output at a memory's positions, it makes the new answer likely.

    min_δ mean over rows of the answer's mean NLL + decay·mean(δ²)/mean(v²), each memory by itself.
    """
    rows = [row for m in memories for row in m.rows]
    owner = torch.tensor([i for i, m in enumerate(memories) for _ in m.rows], device=subject.device)
    places = torch.tensor([p for m in memories for p in m.positions], device=subject.device)
    at = (torch.arange(len(rows), device=subject.device), places)
    share = 1 / owner.bincount()[owner].float()
    written: list[Tensor] = []
    with differentiable(subject, ()), _output_hook(module, lambda hidden: written.append(hidden[at])):
        row_losses(subject, rows)
    square = written[0].float().square().mean(-1) * share
    scale = square.new_zeros(len(memories)).index_add(0, owner, square).sqrt()[:, None]
    free = scale.new_zeros(len(memories), written[0].shape[-1]).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=fit.lr)

    def shifted(hidden: Tensor) -> Tensor:
        return hidden.index_put(at, (free * scale)[owner].to(hidden.dtype), accumulate=True)

    with differentiable(subject, ()), _output_hook(module, shifted):
        for _ in range(fit.steps):
            loss = (row_losses(subject, rows) * share).sum() + fit.decay * free.square().mean(-1).sum()
            (free.grad,) = torch.autograd.grad(loss, [free])
            optimizer.step()
            with torch.no_grad():
                norm = free.square().mean(-1, keepdim=True).sqrt()
                free *= (fit.clamp / norm.clamp(min=1e-12)).clamp(max=1.0)
    return (free * scale).detach().T


@contextmanager
def _output_hook(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Put the module's output through `change`; None leaves it as it is."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return change(output)
        changed = change(output[0])
        return None if changed is None else (changed, *output[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
