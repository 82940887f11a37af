"""Quantities of the reference θ_o: cached before training within a byte budget, or from a live frozen model.

Cached per (part, row): S as one scalar, token log-probabilities [n], states after the layers read [n, D],
last hidden states [n, D] for exact distributions (the head is then kept as well, since training moves it).
Taken in eval mode and in the precision of the training, before the first optimizer step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.data.batching import Batch, collate, token_batches
from expunge.data.encoding import Encoded
from expunge.measure.score import batch_tokens
from expunge.progress import say, track
from expunge.subjects.adapters import base_moved
from expunge.subjects.architecture import output_head
from expunge.subjects.forward import Site, forward
from expunge.subjects.subject import Subject
from expunge.training.views import sum_rows

__all__ = ["Mode", "Reference", "reference_bytes", "resolve_mode"]

Mode = Literal["auto", "cache", "live", "adapter_off"]


def reference_bytes(
    reads: Mapping[str, frozenset[str]],
    rows: Mapping[str, Sequence[Encoded]],
    hidden_size: int,
    head_bytes: int,
    layers: Mapping[str, Sequence[int]] | None = None,
) -> int:
    """Bytes a cache of these quantities takes, before any of it is computed."""
    total = 0
    for part, quantities in reads.items():
        tokens = sum(r.num_targets for r in rows[part])
        total += 4 * tokens * ("token_logprobs" in quantities)
        total += 4 * len(rows[part]) * bool(quantities & {"sum_nll", "mean_nll"})
        num_layers = len((layers or {}).get(part, (0,)))
        total += 4 * tokens * hidden_size * num_layers * ("hidden" in quantities)
        total += 4 * tokens * hidden_size * ("logits" in quantities)
    return total + head_bytes * any("logits" in q for q in reads.values())


def resolve_mode(mode: Mode, *, adapter: bool, need: int, budget: int) -> Mode:
    """`auto`: the cache if it fits the budget, else the base under the adapter, else a live model."""
    if mode != "auto":
        return mode
    if need <= budget:
        return "cache"
    return "adapter_off" if adapter else "live"


@dataclass
class _Head:
    """The reference's own output head, and what the model does to its logits."""

    module: nn.Module
    softcap: float | None

    def __call__(self, last: Tensor) -> Tensor:
        logits = self.module(last)
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


class Reference:
    """Serves reference quantities of rows by (part, row index)."""

    def __init__(
        self,
        subject: Subject,
        rows: Mapping[str, Sequence[Encoded]],
        reads: Mapping[str, frozenset[str]],
        *,
        layers: Mapping[str, Sequence[int]] | None = None,
        site: Site = "block",
        mode: Mode = "auto",
        budget: int = 2 * 2**30,
        bf16: bool = False,
        frozen: bool = False,
    ):
        """`layers`: blocks whose states are read, by part. `frozen`: nobody trains `subject`, no copy of it
        is needed."""
        self.reads = {part: q for part, q in reads.items() if q}
        self.layers, self.site, self.bf16 = layers or {}, site, bf16
        self.rows = rows
        self.subject = subject
        self._cache: dict[tuple[str, str | int], list[Tensor]] = {}
        self._head: _Head | None = None
        self._frozen: Subject | None = None
        if not self.reads:
            self.mode: Mode = "cache"
            return
        head = output_head(subject.model)
        head_bytes = sum(p.numel() * p.element_size() for p in head.parameters())
        hidden_size = subject.config.get_text_config().hidden_size
        self.bytes = reference_bytes(self.reads, rows, hidden_size, head_bytes, self.layers)
        switchable = subject.adapter and not base_moved(subject.model)
        self.mode = resolve_mode(mode, adapter=switchable, need=self.bytes, budget=budget)
        if self.mode == "adapter_off" and not switchable:
            self.mode = "live"
        if mode == "auto" and self.mode != "cache":
            sizes = f"{self.bytes / 2**20:.0f} MiB exceed the budget of {budget / 2**20:.0f} MiB"
            say(f"reference: {sizes}, using {self.mode}")
        if self.mode == "cache":
            self._fill()
        elif self.mode == "live":
            self._frozen = subject if frozen else subject.clone()

    def fetch(
        self, part: str, indices: Sequence[int], batch: Batch, quantity: str, layer: int | None = None
    ) -> Tensor:
        """The quantity for these rows of a part, in the packed shapes of the views."""
        device = batch.input_ids.device
        if self.mode != "cache":
            return self._live(batch, quantity if layer is None else layer)
        stored: str | int = "last" if quantity == "logits" else quantity if layer is None else layer
        values = [self._cache[part, stored][i] for i in indices]
        joined = torch.stack(values) if quantity == "sum_nll" else torch.cat(values)
        joined = joined.to(device)
        if quantity == "logits":
            assert self._head is not None
            with torch.no_grad():
                return self._head(joined).float()
        return joined

    def _fill(self) -> None:
        if any("logits" in q for q in self.reads.values()):
            self._head = copy.deepcopy(_head_of(self.subject.model))
            self._head.module.requires_grad_(False)
        total = sum(len(self.rows[part]) for part in self.reads)
        with track("reference", total) as advance:
            for part, quantities in self.reads.items():
                rows = self.rows[part]
                names: set[str | int] = {
                    "last" if q == "logits" else "sum_nll" if q == "mean_nll" else q
                    for q in quantities - {"hidden"}
                }
                if "hidden" in quantities:
                    names.update(self.layers[part])
                for name in names:
                    self._cache[part, name] = [torch.empty(0)] * len(rows)
                for indices in token_batches([len(r.ids) for r in rows], batch_tokens(self.subject)):
                    batch = collate([rows[i] for i in indices], self.subject.encoder.pad_id).to(
                        self.subject.device
                    )
                    for name, values in self._compute(self.subject, batch, names).items():
                        pieces = values if name == "sum_nll" else values.split(batch.num_tokens.tolist())
                        for i, piece in zip(indices, pieces, strict=True):
                            self._cache[part, name][i] = piece.cpu().clone()
                    advance(len(indices))

    def _live(self, batch: Batch, quantity: str | int) -> Tensor:
        name = "last" if quantity == "logits" else quantity
        subject = self._frozen or self.subject
        off: Any = subject.model.disable_adapter() if self.mode == "adapter_off" else nullcontext()  # type: ignore[operator]
        with off, torch.no_grad():
            values = self._compute(subject, batch, {name})[name]
            return _head_of(subject.model)(values).float() if quantity == "logits" else values

    def _compute(self, subject: Subject, batch: Batch, names: set[str | int]) -> dict[str | int, Tensor]:
        """By name: scores, last states, and states after a block under its number."""
        wants_scores = bool(names & {"sum_nll", "token_logprobs"})
        layers = [name for name in names if isinstance(name, int)]
        precision = torch.autocast(subject.device.type, torch.bfloat16, enabled=self.bf16)
        with subject.evaluating() as model, precision:
            out = forward(
                model, batch, logits=wants_scores, last="last" in names, layers=layers, site=self.site
            )
        result: dict[str | int, Tensor] = {}
        if wants_scores:
            assert out.logits is not None
            logits = out.logits.float()
            logp = logits.gather(1, batch.targets[:, None])[:, 0] - logits.logsumexp(-1)
            result["token_logprobs"] = logp
            result["sum_nll"] = -sum_rows(logp, batch.row, len(batch))
        if "last" in names:
            assert out.last is not None
            result["last"] = out.last.float()
        for layer in layers:
            result[layer] = out.hidden[layer][batch.row, batch.col].float()
        return {name: result[name] for name in names}


def _head_of(model: nn.Module) -> _Head:
    config: Any = model.config
    return _Head(output_head(model), getattr(config.get_text_config(), "final_logit_softcapping", None))
