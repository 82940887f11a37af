"""The task of an objective: forget rows in the declared variants and retain rows in one fused forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge import ranks
from expunge.data.batching import Batch, collate
from expunge.data.encoding import Encoded
from expunge.data.pairing import Schedule
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, Problem
from expunge.progress import say
from expunge.subjects.forward import Forward, Site, forward
from expunge.subjects.subject import Subject
from expunge.training.answers import SAMPLE, Ask, answer_for
from expunge.training.hooks import TrainingControl
from expunge.training.loop import Rows, Term
from expunge.training.reference import Mode, Reference
from expunge.training.retain import RETAIN_LOSSES
from expunge.training.settings import TrainSettings
from expunge.training.views import FrozenView, Reads, View

__all__ = ["Micro", "Part", "UnlearnTask"]

_SCORES = frozenset({"sum_nll", "mean_nll", "token_logprobs", "logits"})


@dataclass(frozen=True)
class Part:
    """Rows of one side in one variant: `forget` or `retain`, gold or another answer."""

    side: str
    variant: str
    indices: Sequence[int]
    rows: Sequence[Encoded]

    @property
    def name(self) -> str:
        return _name(self.side, self.variant)


@dataclass(frozen=True)
class Micro:
    """A micro-batch of step `step`, which has `num_forget` and `num_retain` rows in all.

    `penalty`: the share of a retain loss on the weights themselves that it carries, [0, 1].
    """

    parts: Sequence[Part]
    batch: Batch | None  # None: no row, the penalty alone
    step: int
    num_forget: int
    num_retain: int
    penalty: float = 0.0


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
        reference_subject: Subject | None = None,
        teacher: Subject | None = None,
    ):
        """`reference_subject`: θ_o where it is not the subject as it stands; `teacher`: the method's own."""
        self.method, self.subject, self.request, self.settings = method, subject, request, settings
        self.controls = controls
        self.retain_loss = RETAIN_LOSSES.get(method.retain)()
        self.with_retain = self._wants_retain()
        self.reads = {"forget": Reads.parse(method.reads)}
        self.sources = {"forget": _answers(subject, request.forget)}
        if not self.sources["forget"]:
            raise DataError(
                Problem("forget", "no record has an answer within the context", "Bring shorter ones")
            )
        own = getattr(method, "retain_reads", ()) if request.retain else ()
        if self.with_retain and (self.retain_loss.reads or own):
            self.reads["retain"] = Reads.parse((*self.retain_loss.reads, *own))
            self.sources["retain"] = _answers(subject, request.retain)
        if any(v.startswith(SAMPLE) for reads in self.reads.values() for v in reads.variants):
            if reference == "cache":
                say(f"{method.name}: samples are new in every step, no reference cache can hold them")
            reference = "live" if reference == "live" else "adapter_off"
        if hasattr(self.retain_loss, "attach"):
            self.retain_loss.attach(subject)
        self.layers = self._layers()
        self.site: Site = getattr(method, "site", "block")
        self.rows: dict[str, list[Encoded]] = {}  # by part
        self.needs: dict[str, frozenset[str]] = {}
        frozen: dict[str, dict[str, frozenset[str]]] = {"reference": {}, "teacher": {}}
        for side, reads in self.reads.items():
            for variant in reads.variants:
                name = _name(side, variant)
                self.needs[name] = reads.model[variant]
                frozen["reference"][name] = reads.reference.get(variant, frozenset())
                frozen["teacher"][name] = reads.teacher.get(variant, frozenset())
                self.rows[name] = [self._encode(side, variant, i) for i in range(len(self.sources[side]))]
        self.schedule = Schedule(
            self._lengths("forget"), self._lengths("retain"), batch=settings.batch, seed=settings.seed
        )
        self.steps_per_epoch = self.schedule.steps_per_epoch
        self.num_steps = settings.num_steps(len(self.sources["forget"]))
        self.state: dict[str, Tensor] = {}  # of the method: passed to its loss, kept in the checkpoint
        if hasattr(method, "setup"):
            self.state = method.setup(subject, request, settings.seed)
        more: dict[str, Any] = {"budget": reference_budget, "bf16": settings.bf16, "site": self.site}
        more["layers"] = {part: self.layers[part.partition(".")[0]] for part in self.rows}
        self.frozen = {
            "reference": Reference(
                reference_subject or subject, self.rows, frozen["reference"], mode=reference,
                frozen=reference_subject is not None, **more,
            ),
            "teacher": Reference(
                teacher or subject, self.rows, frozen["teacher"], mode="auto", frozen=True, **more
            ),
        }  # fmt: skip

    @property
    def reference(self) -> Reference:
        return self.frozen["reference"]

    def _wants_retain(self) -> bool:
        method = self.method
        if method.retain == "none" or method.retain_weight == 0:
            return False
        if any(control.drops_retain for control in self.controls):
            return False
        if any(read.endswith("hidden") for read in self.retain_loss.reads) and not hasattr(
            method, "layers_of"
        ):
            raise ConfigError(
                Problem("method.retain", f"{method.retain} needs a layer, {method.name} has none")
            )
        if not self.request.retain and self.retain_loss.reads:
            say(f"{method.name}: no retain set, so its retain term ({method.retain}) is left out")
            return False
        return True

    def _layers(self) -> dict[str, tuple[int, ...]]:
        """Blocks whose states each side reads."""
        if not hasattr(self.method, "layers_of"):
            return {"forget": (), "retain": ()}
        forget = self.method.layers_of(self.subject)
        own = getattr(self.method, "retain_layers_of", None)
        return {"forget": forget, "retain": own(self.subject) if own else forget}

    def _lengths(self, side: str) -> list[int]:
        """The longest of each row's variants."""
        names = [name for name in self.rows if name.partition(".")[0] == side]
        return [max(len(self.rows[n][i].ids) for n in names) for i in range(len(self.sources.get(side, ())))]

    # Rows ---------------------------------------------------------------------------------------------

    def _encode(self, side: str, variant: str, index: int, epoch: int = 0) -> Encoded:
        record, gold = self.sources[side][index]
        if variant == "gold":
            return gold
        answer = answer_for(variant)(Ask(record, self.request, self.settings.seed, epoch))
        return self.subject.encoder.windows(record.answered(answer))[0]

    def _row(self, side: str, variant: str, index: int, epoch: int) -> Encoded:
        """Answers other than gold change with the epoch, unless a frozen model's view of them is cached."""
        name = _name(side, variant)
        kept = variant == "gold" or variant.startswith(SAMPLE)
        if kept or any(f.reads.get(name) for f in self.frozen.values()):
            return self.rows[name][index]
        return self._encode(side, variant, index, epoch)

    def micro_batches(self, step: int, side: str | None = None) -> list[Micro]:
        """The micro-batches of a rank's share of a step; with `side`, only its forget or its retain rows."""
        _, forget, retain = self.schedule.step(step)
        own = ranks.shard(forget), ranks.shard(retain)
        pieces = max(1, min(self.settings.accumulate, len(own[0])))
        pairs = zip(*(_split(rows, pieces) for rows in own), strict=True)
        made = []
        for f, r in pairs:
            chosen = ([] if side == "retain" else f, [] if side == "forget" else r)
            if any(map(len, chosen)):
                micro = self.micro(step, *chosen, len(forget), len(retain))
                made.append(replace(micro, penalty=0.0) if side else micro)
        if side == "retain" and self.with_retain and not self.retain_loss.reads and ranks.is_first():
            made.append(Micro([], None, step, len(forget), 0, penalty=1.0))
        return made

    def micro(
        self, step: int, forget: Sequence[int], retain: Sequence[int], num_forget: int, num_retain: int
    ) -> Micro:
        """These forget and retain rows as one batch of a step with `num_forget` and `num_retain` rows."""
        epoch = step // self.steps_per_epoch
        parts = []
        for side, indices in (("forget", forget), ("retain", retain)):
            if not len(indices) or side not in self.reads:
                continue
            for variant in self.reads[side].variants:
                rows = [self._row(side, variant, i, epoch) for i in indices]
                parts.append(Part(side, variant, indices, rows))
        batch = collate([row for part in parts for row in part.rows], self.subject.encoder.pad_id)
        penalty = len(forget) / num_forget if self.with_retain and not self.retain_loss.reads else 0.0
        return Micro(parts, batch.to(self.subject.device), step, num_forget, num_retain, penalty)

    def tokens(self, micro: Micro) -> int:
        return micro.batch.input_ids.numel() if micro.batch else 0

    # Losses -------------------------------------------------------------------------------------------

    def weights(self, step: int) -> tuple[float, float]:
        """(γ, λ) of this step: the method's, then what the controls make of them."""
        found: tuple[float, float] = self.method.weights(step / self.num_steps)
        for control in self.controls:
            found = control.weights(*found)
        return found

    def terms(self, micro: Micro, rows: Rows | None = None) -> dict[str, Term]:
        """The weighted terms of both sides; `rows` stands in the place of either loss, with weight 1."""
        views = self.views(micro) if micro.parts else {}
        if rows is not None:
            counts = {"forget": micro.num_forget, "retain": micro.num_retain}
            return {side: Term(rows(view), counts[side]) for side, view in views.items()}
        forget_weight, retain_weight = self.weights(micro.step)
        terms = {}
        if "forget" in views:
            found = self.forget_rows(views["forget"])
            terms = {name: Term(values, micro.num_forget, forget_weight) for name, values in found.items()}
        if "retain" in views:
            for name, values in self.retain_rows(views["retain"]).items():
                terms[name] = Term(values, micro.num_retain, retain_weight)
        if micro.penalty:
            terms["retain"] = Term(micro.penalty * self.retain_loss.loss(None)[None], 1, retain_weight)
        return terms

    def within(self, micro: Micro) -> AbstractContextManager[Any]:
        """What the method wants to be in force while its loss is computed: a perturbation of states, say."""
        method: Any = self.method
        return method.within(self, micro) if hasattr(method, "within") else nullcontext()

    def forget_rows(self, forget: View) -> dict[str, Tensor]:
        """The method's forget terms, [B] each, under the controls."""
        for control in self.controls:
            forget = control.forget_view(forget)
        found = self.method.loss(forget, **self.state)
        if isinstance(found, Mapping):
            return dict(found)
        for control in self.controls:
            found = control.forget_rows(found, forget)
        return {"forget": found}

    def retain_rows(self, retain: View) -> dict[str, Tensor]:
        """The retain loss under the controls, and the method's own retain terms, [B] each."""
        found: dict[str, Tensor] = {}
        if self.retain_loss.reads:
            found["retain"] = self.retain_loss.loss(retain)
            for control in self.controls:
                found["retain"] = control.retain_rows(found["retain"], retain)
        if hasattr(self.method, "retain_terms"):
            found |= self.method.retain_terms(retain, **self.state)
        return found

    def views(self, micro: Micro) -> dict[str, View]:
        """One fused forward over all parts; the view of each side, its variants in reach."""
        batch, parts = micro.batch, micro.parts
        assert batch is not None
        starts = [0, *accumulate(len(part.rows) for part in parts)]
        ends = torch.cat([torch.zeros(1, dtype=torch.long), batch.num_tokens.cpu().cumsum(0)]).tolist()
        spans = [slice(ends[a], ends[b]) for a, b in pairwise(starts)]
        scored = [bool(self.needs[part.name] & _SCORES) for part in parts]
        layers = {
            layer for part in parts if "hidden" in self.needs[part.name] for layer in self.layers[part.side]
        }
        positions = None
        if any(scored) and not all(scored):
            chosen = [
                torch.arange(s.start, s.stop) for s, wanted in zip(spans, scored, strict=True) if wanted
            ]
            positions = torch.cat(chosen).to(batch.row.device)
        out = forward(
            self.subject.model,
            batch,
            logits=any(scored),
            layers=sorted(layers),
            site=self.site,
            positions=positions,
        )
        sizes = [s.stop - s.start for s, wanted in zip(spans, scored, strict=True) if wanted]
        logits = iter(out.logits.split(sizes) if out.logits is not None else ())
        sides: dict[str, dict[str, View]] = {}
        for part, wanted, span, start in zip(parts, scored, spans, starts, strict=False):
            view = self._view(part, micro, out, next(logits) if wanted else None, span, start)
            sides.setdefault(part.side, {})[part.variant] = view
        return {side: _joined(variants) for side, variants in sides.items()}

    def _view(
        self, part: Part, micro: Micro, out: Forward, logits: Tensor | None, span: slice, start: int
    ) -> View:
        batch, needs = micro.batch, self.needs[part.name]
        assert batch is not None
        where = part.name.removesuffix(".gold")
        row, num_tokens = batch.row[span] - start, batch.num_tokens[start : start + len(part.rows)]
        hidden = {}
        if "hidden" in needs:
            at = batch.row[span], batch.col[span]
            hidden = {layer: out.hidden[layer][at] for layer in self.layers[part.side]}

        def frozen(model: str) -> FrozenView:
            def fetch(quantity: str, layer: int | None = None) -> Tensor:
                own = collate(part.rows, self.subject.encoder.pad_id).to(batch.input_ids.device)
                return self.frozen[model].fetch(part.name, part.indices, own, quantity, layer)

            declared = self.frozen[model].reads.get(part.name, frozenset())
            return FrozenView(fetch, row, num_tokens, declared, f"{where}.{model}")

        return View(
            batch.targets[span], row, num_tokens, logits, hidden, frozen("reference"), frozen("teacher"),
            {}, needs, where, tuple(part.indices), micro.step / self.num_steps,
        )  # fmt: skip


def _name(side: str, variant: str) -> str:
    return f"{side}.{variant}"


def _answers(subject: Subject, records: Sequence[Record]) -> list[tuple[Record, Encoded]]:
    """(record, row) for every row that has something to score."""
    return [(record, row) for record in records for row in subject.encoder.windows(record) if row.num_targets]


def _split(indices: Sequence[int], pieces: int) -> list[list[int]]:
    return [part.tolist() for part in np.array_split(np.array(indices, dtype=int), pieces)]


def _joined(variants: Mapping[str, View]) -> View:
    """What a loss gets: the gold view with the other answers in reach, or those alone."""
    if "gold" in variants:
        return replace(variants["gold"], variants=variants)
    return next(iter(variants.values())).hidden_behind(variants)
