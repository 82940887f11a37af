"""The contests: the same work done in three ways, each as pieces that can be timed in turn.

`textbook` takes records in file order; `grouped` is the textbook on batches of like lengths, so the step from
one to the other is what padding costs; `expunge` is the package. All start from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import process_time
from typing import Any

import torch

from expunge.data.encoding import Encoded
from expunge.data.request import Request
from expunge.measure.generate import add_generations
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods.likelihood.ascent import GradientDifference
from expunge.methods.likelihood.npo import NPO
from expunge.methods.representation.rmu import RMU
from expunge.metrics import compute, make_metric
from expunge.subjects.subject import Subject
from expunge.training.loop import Loop
from expunge.training.settings import TrainSettings
from expunge.training.unlearn import UnlearnTask
from perf import textbook
from perf.world import make_reciter, make_records, make_subject

__all__ = ["Aside", "Contest", "contests", "false_answers", "generation", "teacher_forced", "training"]

Piece = Callable[[], Any]
Build = Callable[[], Subject]
LR = 1e-5
EPOCHS = 5  # of a usual run


@dataclass(frozen=True)
class Aside:
    """Work of expunge that the pieces build on, done once for `rounds` rounds of them."""

    name: str
    seconds: float
    rounds: int = 1


@dataclass
class Contest:
    """One row of the table. `ways`: the work as pieces, by the way it is done; `target`: the ratio wanted."""

    name: str
    target: float
    what: str
    ways: dict[str, list[Piece]]
    aside: Aside | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)


def contests(records: int, batch: int) -> list[Callable[[], Contest]]:
    """Makers of the contests, in the order of the table; each is built when its turn comes."""
    return [
        lambda: training("NPO step", 0.65, NPO(), records, batch),
        lambda: training("GradDiff step", 0.80, GradientDifference(), records, batch),
        lambda: training("RMU step at layer 2 of 8", 0.40, RMU(layer=2), records, batch),
        lambda: teacher_forced(records),
        lambda: false_answers(records),
        lambda: generation(records),
    ]


# Training ------------------------------------------------------------------------------------------------


def training(
    name: str, target: float, method: Any, records: int, batch: int, build: Build = make_subject
) -> Contest:
    """One epoch of optimizer steps; the reference cache of expunge is filled before, as in a run."""
    request = Request({"forget": make_records(records, "forget"), "retain": make_records(records, "retain")})
    settings = TrainSettings(lr=LR, batch=batch, warmup=0.0, schedule="constant")
    ours = build()
    began = process_time()
    task = UnlearnTask(method, ours, request, settings)
    once = Aside(f"encoding and reference cache spread over {EPOCHS} epochs", process_time() - began, EPOCHS)
    _select(ours, method)
    loop = Loop(ours, task, settings)
    steps = [task.schedule.step(i)[1:] for i in range(task.steps_per_epoch)]
    everything = range(records)
    in_order = [(everything[i : i + batch], everything[i : i + batch]) for i in range(0, records, batch)]

    def expunge_step(step: int) -> float:
        values = loop.gradients(step)
        torch.nn.utils.clip_grad_norm_(loop.parameters, 1.0)
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=True)
        return method.forget_weight * values["forget"] + method.retain_weight * values["retain"]

    ours.model.train()
    return Contest(
        name, target, f"{len(steps)} optimizer steps, {batch} forget and {batch} retain rows each",
        {
            "textbook": _textbook_steps(method, task, in_order, build),
            "grouped": _textbook_steps(method, task, steps, build),
            "expunge": [lambda i=i: expunge_step(i) for i in range(len(steps))],
        },
        once,
    )  # fmt: skip


def _select(subject: Subject, method: Any) -> list[torch.nn.Parameter]:
    """Freeze what the method does not train."""
    chosen = method.selects(subject)
    for name, parameter in subject.model.named_parameters():
        parameter.requires_grad_(chosen is None or name in chosen)
    return [p for p in subject.model.parameters() if p.requires_grad]


def _textbook_steps(
    method: Any, task: UnlearnTask, steps: Sequence[tuple[Any, Any]], build: Build
) -> list[Piece]:
    subject, frozen = build(), build()
    parameters = _select(subject, method)
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.01)
    model, reference = subject.model.train(), frozen.model
    forget, retain = task.rows["forget.gold"], task.rows["retain.gold"]

    def loss(f: textbook.Padded, r: textbook.Padded) -> torch.Tensor:
        if isinstance(method, NPO):
            return textbook.npo_loss(model, reference, f, r, method.beta)
        if isinstance(method, RMU):
            direction = method.steering * task.state["direction"]
            return textbook.rmu_loss(
                model, reference, f, r, layer=method.layer, target=direction, weight=method.retain_weight
            )
        return textbook.graddiff_loss(model, f, r)

    def step(f: Sequence[int], r: Sequence[int]) -> float:
        batches = textbook.pad([forget[i] for i in f]), textbook.pad([retain[i] for i in r])
        return textbook.train_step(optimizer, parameters, loss(*batches))

    return [lambda f=f, r=r: step(f, r) for f, r in steps]


# Evaluation ----------------------------------------------------------------------------------------------

EVAL_BATCH = 16


def teacher_forced(records: int, build: Build = make_subject) -> Contest:
    """Ten metrics on members and non-members; expunge's time includes all bootstrap intervals."""
    subject = build()
    splits = {name: make_records(records // 2, name) for name in ("forget", "holdout")}
    sheets = {name: make_sheet(subject.encoder, part, name) for name, part in splits.items()}
    rows = [line.windows[0] for sheet in sheets.values() for line in sheet.lines]
    texts = [record.answer for part in splits.values() for record in part]

    def expunge() -> dict[str, dict[str, float]]:
        evidence = {name: score_sheet(subject, sheet) for name, sheet in sheets.items()}
        found = {}
        for name in textbook.METRICS:
            metric = make_metric("mia_min_k", k=0.4) if name == "mia_min_k_40" else make_metric(name)
            if name.startswith("mia_"):
                found[name] = dict(compute(metric, evidence, "forget").per_record)
            else:
                scores = [compute(metric, evidence, split) for split in splits]
                found[name] = {record: value for s in scores for record, value in s.per_record.items()}
        return found

    def textbook_suite(order: Sequence[int]) -> list[Piece]:
        batches = [textbook.pad([rows[i] for i in part]) for part in _chunks(order, EVAL_BATCH)]
        ordered = [texts[i] for i in order]
        return [lambda m=m: textbook.suite(subject.model, batches, ordered, m) for m in textbook.METRICS]

    return Contest(
        "teacher-forced suite", 0.25, f"ten metrics on {len(rows)} rows, textbook in batches of {EVAL_BATCH}",
        {
            "textbook": textbook_suite(range(len(rows))),
            "grouped": textbook_suite(_by_length(rows)),
            "expunge": [expunge],
        },
    )  # fmt: skip


NUM_FALSE = 5


def false_answers(records: int, build: Build = make_subject) -> Contest:
    """Each question with its answer, a paraphrase and five false ones, as the truth ratio needs them."""
    subject = build()
    told = make_records(records * (NUM_FALSE + 2), "forget")
    asked = [
        replace(
            gold,
            paraphrased_answers=(told[records + i].answer,),
            perturbed_answers=tuple(told[(2 + j) * records + i].answer for j in range(NUM_FALSE)),
        )
        for i, gold in enumerate(told[:records])
    ]
    sheet = make_sheet(subject.encoder, asked, "forget", ("gold", "paraphrased_answer", "perturbed"))
    rows = [line.windows[0] for line in sheet.lines]

    def expunge() -> list[float]:
        return [-float(row.logprobs.sum()) for row in score_sheet(subject, sheet).rows]

    def plain(order: Sequence[int]) -> list[Piece]:
        def losses(part: Sequence[int]) -> list[float]:
            with torch.no_grad():
                found, _ = textbook.row_losses(subject.model, textbook.pad([rows[i] for i in part]))
            return found.tolist()

        return [lambda p=part: losses(p) for part in _chunks(order, EVAL_BATCH)]

    return Contest(
        "false answers to one prompt", 0.75,
        f"{len(rows)} answers to {records} questions, textbook's losses alone in batches of {EVAL_BATCH}",
        {"textbook": plain(range(len(rows))), "grouped": plain(_by_length(rows)), "expunge": [expunge]},
    )  # fmt: skip


def generation(records: int, max_new_tokens: int = 96) -> Contest:
    """Greedy texts of memorized records; expunge starts from their scores, which every audit has."""
    subject, known = make_reciter(records, "forget")
    sheet = make_sheet(subject.encoder, known, "forget")
    rows = [line.windows[0] for line in sheet.lines]
    began = process_time()
    evidence = score_sheet(subject, sheet)
    scoring = Aside("the scoring pass it starts from", process_time() - began)
    end = subject.tokenizer.eos_token_id

    def plain(order: Sequence[int]) -> list[Piece]:
        def generate(part: Sequence[Encoded]) -> list[str]:
            ids = textbook.generate(subject.model, part, end=end, pad_id=end, max_new_tokens=max_new_tokens)
            return [subject.encoder.decode([t for t in text if t != end]) for text in ids]

        chunks = [[rows[i] for i in part] for part in _chunks(order, 2 * EVAL_BATCH)]
        return [lambda c=c: generate(c) for c in chunks]

    def expunge() -> list[str]:
        told = add_generations(subject, sheet, evidence, max_new_tokens=max_new_tokens)
        return [row.generated or "" for row in told.rows]

    by_answer = sorted(range(len(rows)), key=lambda i: rows[i].num_targets)
    return Contest(
        "generation on memorized records", 0.20,
        f"{len(rows)} answers, recited without a miss, textbook in batches of {2 * EVAL_BATCH}",
        {"textbook": plain(range(len(rows))), "grouped": plain(by_answer), "expunge": [expunge]},
        scoring,
    )  # fmt: skip


def _chunks(order: Sequence[int], size: int) -> list[Sequence[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def _by_length(rows: Sequence[Encoded]) -> list[int]:
    return sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
