"""How deep the erasure goes: activation patching into the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.attacks.perturbing import plain_copy, same_shape
from expunge.data.batching import Batch, collate, token_batches
from expunge.data.records import Record
from expunge.errors import NotComputable
from expunge.measure.score import batch_tokens
from expunge.progress import track
from expunge.subjects.architecture import blocks
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows

QUALIFIES = 0.05
"""Nats per token that the oracle's states of a layer must cost the original, for the layer to count."""


@ATTACKS.register(
    "uds",
    threat="white-box",
    kind="read-out",
    injects="nothing",
    tier=1,
    profiles=["default", "deep"],
    peers=["original", "oracle"],
    line=0.5,
    budget="two passes of the original for each block",
    source="Lee, Kim and Jo 2026, arXiv 2605.24614",
)
@dataclass(frozen=True, kw_only=True)
class UDS(Attack):
    """Put the model's states of one block into the original: if it still answers, the block forgot nothing.

    s = mean log-probability of the answer under the original; Δ1_ℓ and Δ2_ℓ what it loses when block ℓ's
    output at the predicting positions is the oracle's, and the attacked model's. Over the blocks with Δ1 >
    0.05, UDS = Σ Δ1·clip(Δ2/Δ1, 0, 1) / Σ Δ1: 0 as in the original, 1 as in the oracle. The score is what is
    left, 1 − UDS; above ½ the erasure is shallow. A record without such a block is left out, for every model.
    """

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("hidden", what="the attack uds")
        original, oracle = (plain_copy(field.peers[m]().unwrapped()) for m in ("original", "oracle"))
        own = plain_copy(subject)
        same_shape(own, original)
        same_shape(oracle, original)
        values = depth_left(own, original, oracle, field.request.forget)
        if not values:
            raise NotComputable("no block of the oracle costs the original anything on these records")
        details = {"records_left_out": len(field.request.forget) - len(values)}
        yield Outcome({}, values={"forget": values}, metric="depth", details=details)


def depth_left(
    subject: Subject, original: Subject, oracle: Subject, records: Sequence[Record]
) -> dict[str, float]:
    """Record id → 1 − UDS, of the records that have an answer and a block that counts."""
    asked = [r for r in records if any(w.num_targets for w in original.encoder.windows(r))]
    rows = [answer_rows(original, [r])[0] for r in asked]
    count = len(blocks(original.model))
    left: dict[str, float] = {}
    with track("attack uds", len(rows)) as advance:
        for part in token_batches([len(r.ids) for r in rows], batch_tokens(original)):
            batch = collate([rows[i] for i in part], original.encoder.pad_id).to(original.device)
            base = _means(original, batch)
            states = {name: _states(s, batch, count) for name, s in (("oracle", oracle), ("own", subject))}
            drops = {
                name: torch.stack([base - _patched(original, batch, found, layer) for layer in range(count)])
                for name, found in states.items()
            }  # [L, B]
            for at, i in enumerate(part):
                score = depth_score(drops["oracle"][:, at], drops["own"][:, at])
                if score is not None:
                    left[asked[i].id] = 1 - score
            advance(len(part))
    return left


def depth_score(first: Tensor, second: Tensor) -> float | None:
    """UDS of one record from Δ1 and Δ2 [L]; None where no block counts.

    >>> found = depth_score(torch.tensor([0.02, 0.5, 2, 4]), torch.tensor([0.5, 0.1, 2.5, 1]))
    >>> round(found, 6)
    0.476923
    """
    counts = first > QUALIFIES
    if not counts.any():
        return None
    share = (second[counts] / first[counts]).clamp(0, 1)
    return float((first[counts] * share).sum() / first[counts].sum())


def _states(subject: Subject, batch: Batch, count: int) -> dict[int, Tensor]:
    with subject.evaluating() as model:
        return forward(model, batch, logits=False, layers=range(count)).hidden


def _means(subject: Subject, batch: Batch) -> Tensor:
    """Mean log-probability of each row's answer tokens, [B], fp64."""
    logp = subject.logits(batch).float().log_softmax(-1).gather(1, batch.targets[:, None])[:, 0].double()
    total = torch.zeros(len(batch), dtype=torch.double, device=logp.device).index_add_(0, batch.row, logp)
    return total / batch.num_tokens


def _patched(subject: Subject, batch: Batch, states: dict[int, Tensor], layer: int) -> Tensor:
    with _replacing(blocks(subject.model)[layer], batch, states[layer]):
        return _means(subject, batch)


@contextmanager
def _replacing(block: nn.Module, batch: Batch, states: Tensor) -> Iterator[None]:
    """The block hands on `states` where answer tokens are predicted, its own elsewhere."""

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[batch.row, batch.col] = states[batch.row, batch.col].to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
