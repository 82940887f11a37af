"""Free input vectors: the worst input there is, text or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as field_
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.attacks.prefill import with_lead_in
from expunge.attacks.rtt import split_facts
from expunge.data.batching import Batch, collate
from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Line, make_sheet
from expunge.progress import track
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject

LEAD_IN = "The answer is"
ROWS = 64
"""Rows that are fitted at once."""

MAX_TAUGHT = 64
"""Facts that the universal vectors are fitted to at most: the budget is fixed, not the request's size."""

Aim = Literal["individual", "universal", "answer"]


@ATTACKS.register(
    "embedding",
    threat="white-box",
    kind="prompts",
    injects="related facts",
    tier=2,
    profiles=["deep"],
    budget="5 free vectors, 50 signed gradient steps: for each record, over two folds, and on the answers",
    source="Schwinn et al. 2024, arXiv 2402.09063",
)
@dataclass(frozen=True, kw_only=True)
class Embedding(Attack):
    """Put j free vectors behind the prompt and move them by signed gradient steps on the NLL of a target.

    Individual: one set per record, target a neutral lead-in, the answer scored behind it; nothing is
    injected. Universal: one set for all, fitted to the answers of some facts T and scored on the others E,
    which share no entity and no answer. Answer: one set per record, fitted to its own answer; any flexible
    input can spell that, so it stands aside for comparison. The weights do not change.
    """

    vectors: int = 5
    steps: int | None = None  # None: 50, in a quick audit 10
    step_size: float = 0.05  # of the mean norm of an input embedding, spread over its dimensions

    def missing(self, field: Field) -> str | None:
        documents = all(r.is_document for r in field.request.forget)
        return "documents are not asked" if documents else None

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("weights", "logprobs", what="the attack embedding")
        asked = {s: [r for r in records if not r.is_document] for s, records in field.scored().items()}
        folds = split_facts(asked["forget"], 2, field.seed)
        steps = self._steps(field)
        fits = len(folds) + sum(-(-len(r) // ROWS) for r in (*asked.values(), asked["forget"]))
        with track("attack embedding", steps * fits) as advance:
            yield Outcome({"target": "none", "vectors": 0}, _direct(subject, asked))
            yield self._individual(subject, asked, steps, advance)
            if folds:
                yield self._universal(subject, folds, asked.get("holdout", []), steps, advance)
            yield self._answer(subject, asked["forget"], steps, advance)

    def _steps(self, field: Field) -> int:
        return (10 if field.profile == "quick" else 50) if self.steps is None else self.steps

    def _individual(
        self, subject: Subject, asked: Mapping[str, list[Record]], steps: int, advance: Any
    ) -> Outcome:
        found: dict[str, Evidence] = {}
        curve: list[float] = []
        for split, records in asked.items():
            led = [with_lead_in(subject.encoder, r, LEAD_IN) for r in records]
            targets = [_cut(subject.encoder.encode(r), e) for r, e in zip(records, led, strict=True)]
            soft, losses = self._fit_each(subject, targets, steps, advance)
            found[split] = _scored(subject, records, split, led, targets, soft)
            curve = curve or losses
        return Outcome({"target": "lead-in", "vectors": self.vectors}, found, details={"loss": _ends(curve)})

    def _universal(
        self, subject: Subject, folds: Sequence[Any], holdout: Sequence[Record], steps: int, advance: Any
    ) -> Outcome:
        rows: dict[str, list[Any]] = {}
        curve: list[float] = []
        for i, fold in enumerate(folds):
            taught = [subject.encoder.encode(r) for r in fold.train[:MAX_TAUGHT]]
            soft, losses = self._fit(subject, taught, steps, advance, shared=True)
            curve = curve or losses
            for split, records in (("forget", fold.scored), ("holdout", holdout[i :: len(folds)])):
                if records:
                    plain = [subject.encoder.encode(r) for r in records]
                    same = soft.expand(len(plain), -1, -1)
                    rows.setdefault(split, []).extend(_scored(subject, records, split, plain, plain, same))
        evidence = {split: Evidence(split, found) for split, found in rows.items()}
        return Outcome(
            {"target": "other facts", "vectors": self.vectors}, evidence, details={"loss": _ends(curve)}
        )

    def _answer(self, subject: Subject, records: Sequence[Record], steps: int, advance: Any) -> Outcome:
        plain = [subject.encoder.encode(r) for r in records]
        soft, losses = self._fit_each(subject, plain, steps, advance)
        return Outcome(
            {"target": "the answer", "vectors": self.vectors},
            {"forget": _scored(subject, records, "forget", plain, plain, soft)},
            aside="the vectors were fitted to the answer itself: any model can be made to spell it",
            details={"loss": _ends(losses), "injects": "the answer"},
        )

    def _fit_each(
        self, subject: Subject, targets: Sequence[Encoded], steps: int, advance: Any
    ) -> tuple[Tensor, list[float]]:
        """Vectors of its own for every row, a batch at a time; the loss curve is the first batch's."""
        parts = [targets[i : i + ROWS] for i in range(0, len(targets), ROWS)]
        found = [self._fit(subject, part, steps, advance) for part in parts]
        return torch.cat([soft for soft, _ in found]), found[0][1]

    def _fit(
        self, subject: Subject, targets: Sequence[Encoded], steps: int, advance: Any, *, shared: bool = False
    ) -> tuple[Tensor, list[float]]:
        """The best vectors seen, [1 or R, j, D], and the best loss so far after every step."""
        rows = [widened(e, self.vectors, subject.encoder.pad_id) for e in targets]
        batch = collate(rows, subject.encoder.pad_id).to(subject.device)
        table = subject.model.get_input_embeddings().weight.detach().float()  # type: ignore[operator]
        start = table.mean(0).expand(1 if shared else len(rows), self.vectors, -1)
        stride = self.step_size * float(table.norm(dim=-1).mean()) / table.shape[1] ** 0.5
        soft = start.clone().requires_grad_(True)
        best, least = start.clone(), torch.full((len(start),), torch.inf, device=start.device)
        curve: list[float] = []
        with frozen(subject):
            for step in range(steps + 1):
                losses = _losses(subject, batch, soft)  # [R]
                own = losses.mean()[None] if shared else losses
                better = own.detach() < least
                best[better], least[better] = soft.detach()[better], own.detach()[better]
                curve.append(float(least.mean()))
                if step == steps:
                    break
                (grad,) = torch.autograd.grad(losses.sum(), soft)
                soft = (soft - stride * grad.sign()).detach().requires_grad_(True)
                advance()
        return best, curve


@dataclass
class Softened(Subject):
    """A subject that reads free vectors at certain places of certain rows, known by their ids."""

    placed: Mapping[tuple[int, ...], tuple[int, Tensor]] = field_(default_factory=dict)
    """ids → (where the vectors begin, the vectors [j, D])."""

    def logits(self, batch: Batch) -> Tensor:
        lengths = batch.attention_mask.sum(1).tolist()
        rows = [tuple(ids[:n]) for ids, n in zip(batch.input_ids.tolist(), lengths, strict=True)]
        starts = torch.tensor([self.placed[row][0] for row in rows], device=batch.col.device)
        soft = torch.stack([self.placed[row][1] for row in rows])
        with self.evaluating() as model, inserted(model, starts, soft):
            found = forward(model, batch).logits
        assert found is not None
        return found


@contextmanager
def inserted(model: Any, starts: Tensor, soft: Tensor) -> Iterator[None]:
    """The model's input embeddings with `soft` [B, j, D] at `starts` [B] of each row.

    The places are there already, so mask and positions are those of the longer row.
    """
    columns = starts[:, None] + torch.arange(soft.shape[1], device=starts.device)
    rows = torch.arange(len(starts), device=starts.device)[:, None].expand_as(columns)

    def replaced(_: Any, __: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[rows, columns] = soft.to(output.dtype)
        return changed

    handle = model.get_input_embeddings().register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def frozen(subject: Subject) -> Iterator[None]:
    """Eval mode, no gradient reaches a weight; what needed one before needs it again after."""
    needed = [p for p in subject.model.parameters() if p.requires_grad]
    training = subject.model.training
    subject.model.eval()
    for p in needed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in needed:
            p.requires_grad_(True)
        subject.model.train(training)


def widened(encoded: Encoded, j: int, pad_id: int) -> Encoded:
    """The row with j places between prompt and answer."""
    prompt, answer = encoded.ids[: encoded.num_prompt], encoded.answer_ids
    return replace(encoded, ids=(*prompt, *[pad_id] * j, *answer), num_prompt=encoded.num_prompt + j)


def _losses(subject: Subject, batch: Batch, soft: Tensor) -> Tensor:
    """Mean NLL of each row's target, [R]."""
    first = batch.num_tokens.cumsum(0) - batch.num_tokens  # [B], where each row's answer positions begin
    starts = batch.col[first] + 1 - soft.shape[1]
    with inserted(subject.model, starts, soft.expand(len(batch), -1, -1)):
        logits = forward(subject.model, batch).logits
    assert logits is not None
    nll = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
    total = torch.zeros(len(batch), device=nll.device).index_add(0, batch.row, nll)
    return total / batch.num_tokens.clamp(min=1)


def _cut(plain: Encoded, led: Encoded) -> Encoded:
    """The prompt and the lead-in as its answer."""
    return Encoded(led.ids[: led.num_prompt], min(plain.num_prompt, led.num_prompt - 1), False)


def _scored(
    subject: Subject,
    records: Sequence[Record],
    split: str,
    rows: Sequence[Encoded],
    asked: Sequence[Encoded],
    soft: Tensor,
) -> Evidence:
    """Evidence of the answers in `rows`, with the vectors where `asked` puts them: behind the question."""
    j, encoder = soft.shape[1], subject.encoder
    lines, placed = [], {}
    for record, row, question, own in zip(records, rows, asked, soft.detach(), strict=True):
        at = question.num_prompt
        ids = (*row.ids[:at], *[encoder.pad_id] * j, *row.ids[at:])
        placed[ids] = (at, own)
        lines.append(Line(record, "gold", (replace(row, ids=ids, num_prompt=row.num_prompt + j),), None))
    asker = Softened(subject.model, subject.tokenizer, encoder, placed=placed)
    return score_sheet(asker, replace(make_sheet(encoder, records, split), lines=tuple(lines)))


def _direct(subject: Subject, asked: Mapping[str, list[Record]]) -> dict[str, Evidence]:
    return {s: score_sheet(subject, make_sheet(subject.encoder, r, s)) for s, r in asked.items()}


def _ends(curve: Sequence[float]) -> list[float]:
    """First and last of a loss curve."""
    return [curve[0], curve[-1]] if curve else []
