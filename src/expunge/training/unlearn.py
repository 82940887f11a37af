"""The task of an objective: forget rows in the declared variants and their retain partners in one fused forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.batching import Batch, collate
from expunge.data.encoding import Encoded
from expunge.data.pairing import Schedule
from expunge.data.records import Record
from expunge.data.refusals import refusal_for
from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.measure.forward import Forward, forward
from expunge.subjects.subject import Subject
from expunge.training.hooks import TrainingControl
from expunge.training.loop import Term
from expunge.training.reference import Mode, Reference
from expunge.training.retain import RETAIN_LOSSES
from expunge.training.settings import TrainSettings
from expunge.training.views import Reads, ReferenceView, View

__all__ = ["Micro", "Part", "UnlearnTask"]

_SCORES = frozenset({"sum_nll", "mean_nll", "token_logprobs", "logits"})


@dataclass(frozen=True)
class Part:
    """Rows of one kind in a micro-batch: a variant of the forget rows, or the retain rows."""

    name: str
    indices: Sequence[int]
    rows: Sequence[Encoded]


@dataclass(frozen=True)
class Micro:
    parts: Sequence[Part]
    batch: Batch
    epoch: int
    num_forget: int  # rows of the whole step
    num_retain: int


class UnlearnTask:
    """Serves the loop with γ·forget and λ·retain terms of a method on a request."""

    def __init__(
        self,
        method: Any,
        subject: Subject,
        request: Request,
        settings: TrainSettings,
        *,
        controls: Sequence[TrainingControl] = (),
        reference: Mode = "auto",
        reference_budget: int = 2 * 2**30,
    ):
        self.method, self.subject, self.request, self.settings = method, subject, request, settings
        self.controls = controls
        self.layer: int | None = method.layer_of(subject) if hasattr(method, "layer_of") else None
        self.reads = Reads.parse(method.reads)
        retain_loss = RETAIN_LOSSES.get(method.retain)()
        self.retain_loss = retain_loss
        self.retain_reads = Reads.parse(retain_loss.reads)
        self.with_retain = bool(request.retain) and method.retain_weight != 0 and method.retain != "none"
        self.sources = [(r, w) for r in request.forget for w in range(len(subject.encoder.windows(r)))]
        self.rows = {variant: self._encode(variant, 0) for variant in self.reads.variants}
        retain = [w for r in request.retain for w in subject.encoder.windows(r) if w.num_targets] if self.with_retain else []
        lengths = [max(len(rows[i].ids) for rows in self.rows.values()) for i in range(len(self.sources))]
        self.schedule = Schedule(lengths, [len(r.ids) for r in retain], batch=settings.batch, seed=settings.seed)
        self.steps_per_epoch = self.schedule.steps_per_epoch
        self.num_steps = settings.num_steps(len(self.sources))
        self.state: dict[str, Tensor] = method.setup(subject, settings.seed) if hasattr(method, "setup") else {}
        if self.with_retain:
            self.rows["retain"] = retain
        wanted = {v: self.reads.reference.get(v, frozenset()) for v in self.reads.variants}
        if self.with_retain:
            wanted["retain"] = self.retain_reads.reference.get("gold", frozenset())
        self.reference = Reference(
            subject, self.rows, wanted, layer=self.layer, mode=reference, budget=reference_budget
        )

    # Rows ---------------------------------------------------------------------------------------------

    def _encode(self, variant: str, epoch: int) -> list[Encoded]:
        encode = self.subject.encoder.windows
        if variant == "gold":
            return [w for record in self.request.forget for w in encode(record)]
        return [encode(self._as_variant(record, variant, epoch))[0] for record, _ in self.sources]

    def _as_variant(self, record: Record, variant: str, epoch: int) -> Record:
        if variant == "refusal":
            return record.answered(refusal_for(record, self.request.refusals, self.settings.seed, epoch))
        if variant == "alternate" and record.alternates:
            return record.answered(record.alternates[epoch % len(record.alternates)])
        raise DataError(Problem(f"record {record.id}", f"{self.method.name} needs an {variant} answer", "Add `alternates`"))

    def _row(self, variant: str, index: int, epoch: int) -> Encoded:
        """Refusals change with the epoch, unless their score under the reference was cached."""
        fixed = variant in ("gold", "retain") or self.reads.reference.get(variant)
        if fixed or self.sources[index][0].refusal:
            return self.rows[variant][index]
        return self.subject.encoder.windows(self._as_variant(self.sources[index][0], variant, epoch))[0]

    def micro_batches(self, step: int) -> list[Micro]:
        epoch, forget, retain = self.schedule.step(step)
        pieces = min(self.settings.accumulate, len(forget))
        return [
            self._micro(epoch, f.tolist(), r.tolist(), len(forget), len(retain))
            for f, r in zip(np.array_split(forget, pieces), np.array_split(np.array(retain, int), pieces), strict=True)
        ]

    def _micro(self, epoch: int, forget: list[int], retain: list[int], num_forget: int, num_retain: int) -> Micro:
        parts = [Part(v, forget, [self._row(v, i, epoch) for i in forget]) for v in self.reads.variants]
        if retain:
            parts.append(Part("retain", retain, [self.rows["retain"][i] for i in retain]))
        batch = collate([row for part in parts for row in part.rows], self.subject.encoder.pad_id)
        return Micro(parts, batch.to(self.subject.device), epoch, num_forget, num_retain)

    def tokens(self, micro: Micro) -> int:
        return micro.batch.input_ids.numel()

    # Losses -------------------------------------------------------------------------------------------

    def terms(self, micro: Micro) -> dict[str, Term]:
        views = self.views(micro)
        forget = views[self.reads.variants[0]]
        if len(self.reads.variants) > 1 or self.reads.variants[0] != "gold":
            forget = _with_variants(views, self.reads.variants)
        for control in self.controls:
            forget = control.forget_view(forget)
        rows = self.method.loss(forget, **self.state)
        for control in self.controls:
            rows = control.forget_rows(rows, forget)
        terms = {"forget": Term(rows, micro.num_forget, self.method.forget_weight)}
        if "retain" in views:
            terms["retain"] = Term(self.retain_loss.loss(views["retain"]), micro.num_retain, self.method.retain_weight)
        return terms

    def needs(self, part: str) -> frozenset[str]:
        reads = self.retain_reads.model.get("gold") if part == "retain" else self.reads.model.get(part)
        return reads or frozenset()

    def views(self, micro: Micro) -> dict[str, View]:
        """One fused forward over all parts; each part's slice of it as a view."""
        batch = micro.batch
        counts = [len(p.rows) for p in micro.parts]
        starts = np.concatenate([[0], np.cumsum(counts)])
        tokens = torch.cat([torch.zeros(1, dtype=torch.long), batch.num_tokens.cpu().cumsum(0)]).tolist()
        spans = [(tokens[a], tokens[b]) for a, b in zip(starts[:-1], starts[1:], strict=True)]
        scored = [bool(self.needs(p.name) & _SCORES) for p in micro.parts]
        hidden = [self.layer] if self.layer is not None and any("hidden" in self.needs(p.name) for p in micro.parts) else []
        positions = None
        if not all(scored):
            chosen = [torch.arange(*span) for span, s in zip(spans, scored, strict=True) if s]
            positions = torch.cat(chosen).to(batch.row.device) if chosen else None
        out = forward(self.subject.model, batch, logits=any(scored), layers=hidden, positions=positions)
        views, at = {}, 0
        for part, (a, b), start, count, has_scores in zip(micro.parts, spans, starts, counts, scored, strict=False):
            logits = None
            if has_scores:
                assert out.logits is not None
                logits, at = out.logits[at : at + b - a], at + b - a
            views[part.name] = self._view(part, micro.batch, out, logits, slice(a, b), int(start), count)
        return views

    def _view(self, part: Part, batch: Batch, out: Forward, logits: Tensor | None, span: slice, start: int, count: int) -> View:
        where = "retain" if part.name == "retain" else "forget" if part.name == "gold" else f"forget.{part.name}"
        reads = self.retain_reads if part.name == "retain" else self.reads
        from_reference = reads.reference.get("gold" if part.name == "retain" else part.name, frozenset())
        row, num_tokens = batch.row[span] - start, batch.num_tokens[start : start + count]
        hidden = None
        if self.layer is not None and "hidden" in self.needs(part.name):
            hidden = out.hidden[self.layer][batch.row[span], batch.col[span]]

        def fetch(quantity: str) -> Tensor:
            own = collate(part.rows, self.subject.encoder.pad_id).to(batch.input_ids.device)
            return self.reference.fetch(part.name, part.indices, own, quantity)

        reference = ReferenceView(fetch, row, num_tokens, from_reference, where)
        return View(batch.targets[span], row, num_tokens, logits, hidden, reference, {}, self.needs(part.name), where)


def _with_variants(views: dict[str, View], variants: Sequence[str]) -> View:
    """The first view, with the others (and itself) reachable by variant name."""
    import dataclasses

    return dataclasses.replace(views[variants[0]], variants={v: views[v] for v in variants})
