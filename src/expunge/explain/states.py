"""The residual stream: what every block hands on, and what the model says of states given in their place.

Layers are counted by blocks: ℓ ≥ 0 is what block ℓ returns, −1 what block 0 is given (the embeddings). The
last block's output is taken *before* the final norm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from expunge.data.batching import Batch, collate, token_batches
from expunge.data.encoding import Encoded
from expunge.errors import ConfigError, Problem
from expunge.measure.score import batch_tokens
from expunge.subjects.architecture import blocks
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject

__all__ = ["EMBEDDINGS", "all_layers", "block_states", "check_layers", "row_states", "tail_logits"]

EMBEDDINGS = -1
"""The layer before the first block."""


def all_layers(subject: Subject, *, embeddings: bool = False) -> list[int]:
    """Every block, and the embeddings before them where asked for."""
    return list(range(EMBEDDINGS if embeddings else 0, len(blocks(subject.model))))


def check_layers(subject: Subject, layers: Collection[int]) -> list[int]:
    """The layers in order. Raises ConfigError on one that the model does not have, and without any."""
    last = len(blocks(subject.model)) - 1
    wrong = sorted(layer for layer in set(layers) if not EMBEDDINGS <= layer <= last)
    if wrong or not layers:
        what = f"no block {wrong[0]}" if wrong else "no layer is named"
        raise ConfigError(Problem("layers", what, f"Blocks are 0 to {last}; {EMBEDDINGS} is the embeddings"))
    return sorted(set(layers))


def block_states(subject: Subject, batch: Batch, layers: Collection[int]) -> dict[int, Tensor]:
    """{layer: [B, T, D]} in one pass that ends behind the deepest of them; eval mode, no gradients."""
    subject.need("hidden", what="reading layers")
    deep = [layer for layer in layers if layer != EMBEDDINGS] or [0]
    with subject.evaluating() as model, _first_input(model) as found:
        hidden = forward(model, batch, logits=False, layers=deep).hidden
    return {layer: found[0] if layer == EMBEDDINGS else hidden[layer] for layer in layers}


def row_states(
    subject: Subject, rows: Sequence[Encoded], layers: Collection[int], at: Literal["answer", "prompt"]
) -> list[dict[int, Tensor]]:
    """Per row {layer: [T, D]}, fp32: where answer tokens are predicted; [1, D] at the last prompt token."""
    found: list[dict[int, Tensor]] = [{} for _ in rows]
    for part in token_batches([len(row.ids) for row in rows], batch_tokens(subject)):
        batch = collate([rows[i] for i in part], subject.encoder.pad_id).to(subject.device)
        states = block_states(subject, batch, layers)
        starts = [0, *batch.num_tokens.cumsum(0).tolist()]
        for nth, i in enumerate(part):
            span = slice(starts[nth], starts[nth + 1] if at == "answer" else starts[nth] + 1)
            where = (batch.row[span], batch.col[span])
            found[i] = {layer: states[layer][where].float() for layer in layers}
    return found


def tail_logits(subject: Subject, batch: Batch, states: Tensor) -> Tensor:
    """What the model would say [A, V], were `states` [B, T, D] the output of its last block.

    Final norm, head and all that comes after it are the model's own, run by its own forward.
    """
    with subject.evaluating() as model, _instead_of_blocks(model, states):
        found = forward(model, batch).logits
    assert found is not None
    return found


@contextmanager
def _first_input(model: nn.Module) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(inputs[0] if inputs else named["hidden_states"])

    handle = blocks(model)[0].register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _instead_of_blocks(model: nn.Module, states: Tensor) -> Iterator[None]:
    """Only the last block runs, for the form in which its family returns states; it hands on `states`."""
    *earlier, last = blocks(model)

    def answered(*inputs: Any, **named: Any) -> Any:
        if inputs:
            inputs = (states, *inputs[1:])
        else:
            named["hidden_states"] = states
        output = type(last).forward(last, *inputs, **named)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    for block in earlier:
        object.__setattr__(block, "forward", lambda *_, **__: states)
    object.__setattr__(last, "forward", answered)
    try:
        yield
    finally:
        for block in (*earlier, last):
            object.__delattr__(block, "forward")
