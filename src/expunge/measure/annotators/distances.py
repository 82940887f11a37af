"""How far the model is from another one at the answer tokens: in its distributions, and in its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.batching import Batch
from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.measure.score import per_token
from expunge.subjects.architecture import blocks
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject

__all__ = ["distances", "jensen_shannon", "to_another"]


def jensen_shannon(logits: Tensor, other: Tensor) -> Tensor:
    """½KL(p‖m) + ½KL(q‖m) with m = (p + q)/2, in nats, in [0, ln 2]; [A, V] and [A, V] → [A], fp32.

    >>> jensen_shannon(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()).round(decimals=6)
    tensor([0.0338])
    """
    p, q = (torch.log_softmax(x.float(), -1) for x in (logits, other))
    m = torch.logaddexp(p, q) - np.log(2)
    halves = [torch.where(x.exp() > 0, x.exp() * (x - m), 0.0).sum(-1) for x in (p, q)]
    return (0.5 * (halves[0] + halves[1])).clamp(0, float(np.log(2)))


def distances(subject: Subject, peer: Subject, batch: Batch, layers: bool) -> list[np.ndarray]:
    """[A] Jensen–Shannon divergence, [A] ‖p − q‖₂ of the probabilities and, asked for, [A, L] per layer.

    A layer's distance is ‖h_u − h_peer‖₂ / ‖h_peer‖₂ of the block's output at the position that predicts the
    token.
    """
    ours, theirs = subject.logits(batch), peer.logits(batch)
    apart = (ours.float().softmax(-1) - theirs.float().softmax(-1)).norm(dim=-1)
    found = [jensen_shannon(ours, theirs), apart]
    if layers:
        pairs = zip(_states(subject, batch), _states(peer, batch), strict=True)
        found.append(
            torch.stack([(a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-12) for a, b in pairs], 1)
        )
    return [column.cpu().numpy() for column in found]


def _states(subject: Subject, batch: Batch) -> list[Tensor]:
    count = len(blocks(subject.model))
    with subject.evaluating() as model:
        hidden = forward(model, batch, logits=False, layers=range(count)).hidden
    return [hidden[layer][batch.row, batch.col].float() for layer in range(count)]


def to_another(asked: Asked, peer: Subject) -> list[dict[str, Any]]:
    """Of each gold row {js, l2, layers}: means over its answer tokens, end token in; other rows: nothing."""
    alike = _shape(asked.subject) == _shape(peer) and "hidden" in asked.subject.can & peer.can
    gold = [i for i, line in enumerate(asked.sheet.lines) if line.variant == "gold"]
    part = replace(asked.sheet, lines=tuple(asked.sheet.lines[i] for i in gold))
    found = per_token(asked.subject, part, lambda batch: distances(asked.subject, peer, batch, alike))
    rows: list[dict[str, Any]] = [{} for _ in asked.sheet.lines]
    for i, columns in zip(gold, found, strict=True):
        if columns:
            means = [column.astype(np.float64).mean(0).tolist() for column in columns]
            rows[i] = dict(zip(("js", "l2", "layers"), means, strict=False))
    return rows


def _shape(subject: Subject) -> tuple[int, int, int]:
    text = subject.config.get_text_config()
    return len(blocks(subject.model)), text.hidden_size, text.vocab_size


def _same_vocabulary(asked: Asked, name: str) -> str | None:
    if asked.peers[name]().vocab_size == asked.subject.vocab_size:
        return None
    return f"the {name} has another vocabulary"


@ANNOTATORS.register(
    "distance_to_original", columns=["js_original", "l2_original", "layers_original"], peers=["original"]
)
@dataclass(frozen=True)
class DistanceToOriginal(Annotator):
    """Distances from the original's distributions and layers, per answer."""

    def missing(self, asked: Asked) -> str | None:
        return _same_vocabulary(asked, "original")

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        return [_named(row, "original") for row in to_another(asked, asked.peers["original"]())]


@ANNOTATORS.register(
    "distance_to_oracle",
    columns=["js_oracle", "l2_oracle", "layers_oracle"],
    peers=["oracle"],
    splits=["forget", "forget_hard"],
)
@dataclass(frozen=True)
class DistanceToOracle(Annotator):
    """Distances from the oracle's distributions and layers, per answer."""

    def missing(self, asked: Asked) -> str | None:
        return _same_vocabulary(asked, "oracle")

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        return [_named(row, "oracle") for row in to_another(asked, asked.peers["oracle"]())]


def _named(row: Mapping[str, Any], peer: str) -> dict[str, Any]:
    return {f"{key}_{peer}": value for key, value in row.items()}
