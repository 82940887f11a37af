"""The task of an objective: forget rows in the declared variants and retain rows in one fused forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
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
from expunge.errors import ConfigError, DataError, Problem
from expunge.measure.forward import Forward, forward
from expunge.progress import say
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
        self.retain_loss = RETAIN_LOSSES.get(method.retain)()
        self.with_retain = self._wants_retain()
        forget = _answers(subject, request.forget)
        if not forget:
            raise DataError(
                Problem("forget", "no record has an answer within the context", "Bring shorter ones")
            )
        self.sources = [record for record, _ in forget]
        self.rows = {v: self._encode(v) for v in self.reads.variants if v != "gold"}
        self.rows["gold"] = [row for _, row in forget]
        self.needs = dict(self.reads.model)  # by part: what of the model, what of the reference
        self.from_reference = {v: self.reads.reference.get(v, frozenset()) for v in self.reads.variants}
        lengths = [max(len(self.rows[v][i].ids) for v in self.needs) for i in range(len(forget))]
        if self.with_retain:
            retain_reads = Reads.parse(self.retain_loss.reads)
            self.rows["retain"] = [row for _, row in _answers(subject, request.retain)]
            self.needs["retain"] = retain_reads.model["gold"]
            self.from_reference["retain"] = retain_reads.reference.get("gold", frozenset())
        retain_lengths = [len(row.ids) for row in self.rows.get("retain", ())]
        self.schedule = Schedule(lengths, retain_lengths, batch=settings.batch, seed=settings.seed)
        self.steps_per_epoch = self.schedule.steps_per_epoch
        self.num_steps = settings.num_steps(len(forget))
        self.state: dict[str, Tensor] = {}  # of the method: passed to its loss, kept in the checkpoint
        if hasattr(method, "setup"):
            self.state = method.setup(subject, settings.seed)
        self.reference = Reference(
            subject, self.rows, self.from_reference, layer=self.layer, mode=reference,
            budget=reference_budget, bf16=settings.bf16,
        )  # fmt: skip

    def _wants_retain(self) -> bool:
        method, reads = self.method, self.retain_loss.reads
        if method.retain == "none" or method.retain_weight == 0:
            return False
        if self.layer is None and any(read.endswith("hidden") for read in reads):
            raise ConfigError(
                Problem("method.retain", f"{method.retain} needs a layer, {method.name} has none")
            )
        if not self.request.retain:
            say(f"{method.name}: no retain set, so its retain term ({method.retain}) is left out")
        return bool(self.request.retain)

    # Rows ---------------------------------------------------------------------------------------------

    def _encode(self, variant: str, epoch: int = 0) -> list[Encoded]:
        return [self._as_variant(record, variant, epoch) for record in self.sources]

    def _as_variant(self, record: Record, variant: str, epoch: int) -> Encoded:
        if variant == "refusal":
            answer = refusal_for(record, self.request.refusals, self.settings.seed, epoch)
        elif variant == "alternate" and record.alternates:
            answer = record.alternates[epoch % len(record.alternates)]
        else:
            what = f"{self.method.name} needs the answer variant {variant!r}"
            raise DataError(Problem(f"record {record.id}", what, "Add `alternates` to the forget records"))
        return self.subject.encoder.windows(record.answered(answer))[0]

    def _row(self, variant: str, index: int, epoch: int) -> Encoded:
        """Answers other than gold change with the epoch, unless their score under the reference is cached."""
        if variant in ("gold", "retain") or self.from_reference[variant]:
            return self.rows[variant][index]
        return self._as_variant(self.sources[index], variant, epoch)

    def micro_batches(self, step: int) -> list[Micro]:
        epoch, forget, retain = self.schedule.step(step)
        pieces = min(self.settings.accumulate, len(forget))
        pairs = zip(_split(forget, pieces), _split(retain, pieces), strict=True)
        return [self.micro(epoch, f, r, len(forget), len(retain)) for f, r in pairs]

    def micro(
        self, epoch: int, forget: list[int], retain: list[int], num_forget: int, num_retain: int
    ) -> Micro:
        """These forget and retain rows as one batch of a step with `num_forget` and `num_retain` rows."""
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
        forget = _forget_view({v: views[v] for v in self.reads.variants})
        for control in self.controls:
            forget = control.forget_view(forget)
        rows = self.method.loss(forget, **self.state)
        for control in self.controls:
            rows = control.forget_rows(rows, forget)
        terms = {"forget": Term(rows, micro.num_forget, self.method.forget_weight)}
        if "retain" in views:
            retain = self.retain_loss.loss(views["retain"])
            terms["retain"] = Term(retain, micro.num_retain, self.method.retain_weight)
        return terms

    def views(self, micro: Micro) -> dict[str, View]:
        """One fused forward over all parts; each part's slice of it as a view."""
        batch, names = micro.batch, [part.name for part in micro.parts]
        starts = [0, *accumulate(len(part.rows) for part in micro.parts)]
        ends = torch.cat([torch.zeros(1, dtype=torch.long), batch.num_tokens.cpu().cumsum(0)]).tolist()
        spans = [slice(ends[a], ends[b]) for a, b in pairwise(starts)]
        scored = [bool(self.needs[name] & _SCORES) for name in names]
        layers = (
            [self.layer] if self.layer is not None and any("hidden" in self.needs[n] for n in names) else []
        )
        positions = None
        if any(scored) and not all(scored):
            chosen = [
                torch.arange(s.start, s.stop) for s, wanted in zip(spans, scored, strict=True) if wanted
            ]
            positions = torch.cat(chosen).to(batch.row.device)
        out = forward(self.subject.model, batch, logits=any(scored), layers=layers, positions=positions)
        sizes = [s.stop - s.start for s, wanted in zip(spans, scored, strict=True) if wanted]
        logits = iter(out.logits.split(sizes) if out.logits is not None else ())
        return {
            part.name: self._view(part, batch, out, next(logits) if wanted else None, span, start)
            for part, wanted, span, start in zip(micro.parts, scored, spans, starts, strict=False)
        }

    def _view(
        self, part: Part, batch: Batch, out: Forward, logits: Tensor | None, span: slice, start: int
    ) -> View:
        where = {"retain": "retain", "gold": "forget"}.get(part.name, f"forget.{part.name}")
        row, num_tokens = batch.row[span] - start, batch.num_tokens[start : start + len(part.rows)]
        hidden = None
        if self.layer is not None and "hidden" in self.needs[part.name]:
            hidden = out.hidden[self.layer][batch.row[span], batch.col[span]]

        def fetch(quantity: str) -> Tensor:
            own = collate(part.rows, self.subject.encoder.pad_id).to(batch.input_ids.device)
            return self.reference.fetch(part.name, part.indices, own, quantity)

        reference = ReferenceView(fetch, row, num_tokens, self.from_reference[part.name], where)
        needs = self.needs[part.name]
        return View(batch.targets[span], row, num_tokens, logits, hidden, reference, {}, needs, where)


def _answers(subject: Subject, records: Sequence[Record]) -> list[tuple[Record, Encoded]]:
    """(record, row) for every row that has something to score."""
    return [(record, row) for record in records for row in subject.encoder.windows(record) if row.num_targets]


def _split(indices: Sequence[int], pieces: int) -> list[list[int]]:
    return [part.tolist() for part in np.array_split(np.array(indices, dtype=int), pieces)]


def _forget_view(variants: Mapping[str, View]) -> View:
    """What the loss gets: the gold view with the other answers in reach, or those alone."""
    if "gold" in variants:
        return replace(variants["gold"], variants=variants)
    return next(iter(variants.values())).hidden_behind(variants)
