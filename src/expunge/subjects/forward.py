"""One forward pass that computes only what is read: the head at answer positions, blocks up to a layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from expunge.data.batching import Batch
from expunge.subjects.architecture import blocks, mlp, output_head

__all__ = ["Forward", "Site", "forward"]

Site = Literal["block", "mlp"]


@dataclass
class Forward:
    """`logits` [A', V] and `last` [A', D] at the asked positions; `hidden[ℓ]` [B, T, D] of block ℓ."""

    logits: Tensor | None = None
    last: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)


class _Stop(Exception):
    """The last block that is read has run."""


def forward(
    model: nn.Module,
    batch: Batch,
    *,
    logits: bool = True,
    last: bool = False,
    layers: Collection[int] = (),
    site: Site = "block",
    positions: Tensor | None = None,
) -> Forward:
    """Run `batch` through `model`.

    `positions` (indices into the batch's A answer positions) narrows where the head is applied. `last`: the
    hidden states the head is given (after the final norm). `site`: states of `layers` are taken after the
    block, or are what its MLP writes. Without `logits` and `last` the pass ends after the highest of them.
    """
    result = Forward()
    rows, cols = batch.row, batch.col
    if positions is not None:
        rows, cols = rows[positions], cols[positions]
    full = logits or last
    with ExitStack() as hooks:
        if full:
            hooks.enter_context(_packed_head(model, rows, cols, result))
        if layers:
            stop = not full and not _recomputes(model)
            hooks.enter_context(_captured(model, layers, site, result.hidden, stop))
        try:
            more = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
            output = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **more
            )
        except _Stop:
            return result
        if logits:
            result.logits = output.logits[0]
    return result


@contextmanager
def _packed_head(model: nn.Module, rows: Tensor, cols: Tensor, result: Forward) -> Iterator[None]:
    """The head sees [1, A', D] instead of [B, T, D]; what the model does after it (soft caps) goes on."""

    def pack(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        result.last = inputs[0][rows, cols]
        return (result.last.unsqueeze(0), *inputs[1:])

    handle = output_head(model).register_forward_pre_hook(pack)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _captured(
    model: nn.Module, layers: Collection[int], site: Site, hidden: dict[int, Tensor], stop: bool
) -> Iterator[None]:
    stack = [mlp(block) for block in blocks(model)] if site == "mlp" else blocks(model)
    deepest = max(layers)

    def capture(layer: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            hidden[layer] = output[0] if isinstance(output, tuple) else output
            if stop and layer == deepest:
                raise _Stop

        return hook

    handles = [stack[layer].register_forward_hook(capture(layer)) for layer in sorted(set(layers))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recomputes(model: nn.Module) -> bool:
    """Whether activations are recomputed in the backward pass: a pass cut short could not be."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
