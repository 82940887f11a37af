"""What the fine-tuning attacks share: the sweep, and one trajectory measured at a grid of steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from expunge.attacks.base import Attack, Field, Outcome, Profile
from expunge.data.records import Record
from expunge.errors import ExpungeError
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Sheet, make_sheet
from expunge.stats import seed_from
from expunge.subjects import attach_lora, merge
from expunge.subjects.adapters import lora_modules
from expunge.subjects.subject import Subject
from expunge.subjects.weights import named_weights
from expunge.training.finetune import finetune
from expunge.training.hooks import TrainingControl
from expunge.training.settings import TrainSettings

__all__ = ["GRIDS", "Arm", "FinetuningAttack", "Plan", "Trial"]

GRIDS: Mapping[Profile, tuple[int, ...]] = {
    "quick": (0, 5, 20),
    "default": (0, 5, 10, 20, 50),
    "deep": (0, 5, 10, 20, 50, 100),
}
"""Optimizer steps at which evidence is taken; 0 is the model before the attack."""

RANK = 16
"""Of the LoRA; α = 2·rank."""


@dataclass(frozen=True)
class Trial:
    """One fine-tuning run: what is trained on, and what is scored, by split."""

    train: Sequence[Record]
    scored: Mapping[str, Sequence[Record]]


class Arm(NamedTuple):
    """How the weights are trained: all of them or a LoRA, the schedule, bf16 compute, the order of rows."""

    adapter: Literal["full", "lora"] = "full"
    schedule: Literal["constant", "cosine"] = "constant"
    bf16: bool = False
    seed: int = 0

    def config(self) -> dict[str, Any]:
        """What differs from the plain way: all weights, constant rate, fp32, the field's seed."""
        plain = Arm()
        return {k: v for k, v in self._asdict().items() if v != getattr(plain, k)}


class Plan(NamedTuple):
    """The runs of one configuration, and what tells it from the others beside rate and arm."""

    config: Mapping[str, Any]
    trials: Sequence[Trial]


@dataclass(frozen=True, kw_only=True)
class FinetuningAttack(Attack):
    """Fine-tune a copy on the answers of some records: an attack of this kind only says which, in `trials`.

    AdamW, no warm-up, no decay, LoRA of rank 16 where an arm says so, always over fp32 weights; every model
    sees the same batches in the same order. One outcome per configuration and step of the grid: the steps are
    checkpoints of one trajectory. Several trials (folds) are merged into one outcome.
    """

    SWEEPS: ClassVar[Mapping[Profile, tuple[Arm, ...]]] = {}
    STEPS: ClassVar[Mapping[Profile, tuple[int, ...]]] = GRIDS

    lrs: Sequence[float] = ()  # empty: the field's; a quick audit takes the middle one
    steps: Sequence[int] = ()  # empty: the profile's grid
    arms: tuple[Arm, ...] = ()  # empty: the profile's

    @abstractmethod
    def trials(self, field: Field) -> Sequence[Trial]:
        """The runs of one configuration; no record is scored in two of them."""

    def plans(self, field: Field) -> Sequence[Plan]:
        """What is trained on; more than one where several sets of records are tried, each for itself."""
        return [Plan({}, self.trials(field))]

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("weights", "logprobs", what=f"the attack {self.name}")
        grid = self._grid(field)
        for plan in self.plans(field):
            sheets = [_sheets(subject, trial, field.variants) for trial in plan.trials]
            start = [_measure(subject, s) for s in sheets]
            for config, arm, lr in self._sweep(plan, field):
                runs = []
                for trial, sheet, before in zip(plan.trials, sheets, start, strict=True):
                    run = _Grid(sheet, {0: before}, grid)
                    facts: dict[str, Any] = {}
                    if grid[-1]:
                        _, facts = _attack(
                            subject, trial, _settings(field, lr, grid[-1], arm), arm, run, self.name
                        )
                    runs.append((run.found, facts))
                details = _summary([facts for _, facts in runs], plan.trials)
                for step in grid:
                    if all(step in found for found, _ in runs):  # a run that diverged ends early
                        evidence = _merged([found[step] for found, _ in runs])
                        yield Outcome(config, evidence, step, details=details)

    def trained(
        self, subject: Subject, field: Field
    ) -> Iterator[tuple[Mapping[str, Any], Iterator[tuple[Subject, Trial]]]]:
        """For each configuration the models at the end of its trials, for whoever goes on attacking them."""
        steps = self._grid(field)[-1]
        for plan in self.plans(field):
            for config, arm, lr in self._sweep(plan, field):
                settings = _settings(field, lr, steps, arm)
                yield (
                    config,
                    (
                        (merge(_attack(subject, trial, settings, arm, None, self.name)[0]), trial)
                        for trial in plan.trials
                    ),
                )

    def _grid(self, field: Field) -> list[int]:
        return sorted({0, *(self.steps or self.STEPS[field.profile])})

    def _sweep(self, plan: Plan, field: Field) -> Iterator[tuple[dict[str, Any], Arm, float]]:
        for arm in self.arms or self.SWEEPS.get(field.profile, (Arm(),)):
            for lr in self._rates(field):
                yield {**plan.config, "lr": lr, **arm.config()}, arm, lr

    def _rates(self, field: Field) -> Sequence[float]:
        lrs = sorted(self.lrs or field.lrs)
        return [lrs[len(lrs) // 2]] if field.profile == "quick" and not self.lrs else lrs


@dataclass
class _Grid(TrainingControl):
    """Takes evidence at the steps of a grid; changes nothing."""

    sheets: Mapping[str, Sheet]
    found: dict[int, dict[str, Evidence]]
    grid: Sequence[int]

    def after_step(self, step: int, subject: Subject) -> bool:
        if step in self.grid:
            self.found[step] = _measure(subject, self.sheets)
        return False


def _settings(field: Field, lr: float, steps: int, arm: Arm) -> TrainSettings:
    plain = {"warmup": 0.0, "weight_decay": 0.0, "log_every": max(1, steps)}
    seed = seed_from(field.seed, "attack run", arm.seed) % 2**31 if arm.seed else field.seed
    run = {"steps": max(1, steps), "lr": lr, "batch": field.batch, "seed": seed}
    return TrainSettings.model_validate({**plain, **run, "schedule": arm.schedule, "bf16": arm.bf16})


def _attack(
    subject: Subject, trial: Trial, settings: TrainSettings, arm: Arm, grid: _Grid | None, name: str
) -> tuple[Subject, dict[str, Any]]:
    """Fine-tune a copy of the subject: the copy, how it ended, and the share of weights that moved."""
    attacked = merge(subject.clone())
    attacked.model.float()  # bf16 without fp32 masters rounds small steps away: nothing would move, "robust"
    attacked.model.requires_grad_(True)
    if arm.adapter == "lora":
        attacked = attach_lora(attacked, rank=RANK, seed=settings.seed)
    controls = [] if grid is None else [grid]
    result = finetune(attacked, trial.train, settings, controls=controls, name=f"attack {name}")
    moved = _moved_adapters(attacked) if arm.adapter == "lora" else _moved(subject, attacked)
    if moved == 0 and result.status == "finished":
        raise ExpungeError(
            f"attack {name}: {result.steps} steps at lr {settings.lr:g} moved no weight. Raise its lr"
        )
    return attacked, {"status": result.status, "moved_fraction": moved}


def _moved_adapters(attacked: Subject) -> float:
    """Share of the LoRA's B that is no longer 0, as it starts."""
    up = [layer.lora_B["default"].weight for _, layer in lora_modules(attacked.model)]
    return sum(int((b != 0).sum()) for b in up) / max(1, sum(b.numel() for b in up))


def _moved(before: Subject, after: Subject) -> float:
    """Share of weights that differ; with adapters, whose tensors have no counterpart, all of them."""
    if before.adapter:
        return 1.0
    pairs = [
        (a, b)
        for (_, a), (_, b) in zip(named_weights(before.model), named_weights(after.model), strict=True)
        if a.is_floating_point()
    ]
    moved = sum(int((a.detach().float() != b.detach()).sum()) for a, b in pairs)
    return moved / max(1, sum(a.numel() for a, _ in pairs))


def _sheets(subject: Subject, trial: Trial, variants: Sequence[str]) -> dict[str, Sheet]:
    return {
        split: make_sheet(subject.encoder, records, split, variants)
        for split, records in trial.scored.items()
        if records
    }


def _measure(subject: Subject, sheets: Mapping[str, Sheet]) -> dict[str, Evidence]:
    return {split: score_sheet(subject, sheet) for split, sheet in sheets.items()}


def _merged(parts: Sequence[Mapping[str, Evidence]]) -> dict[str, Evidence]:
    """Evidence of several trials as one, by split."""
    splits = dict.fromkeys(split for part in parts for split in part)
    return {s: Evidence(s, [row for part in parts if s in part for row in part[s]]) for s in splits}


def _summary(runs: Sequence[Mapping[str, Any]], trials: Sequence[Trial]) -> dict[str, Any]:
    """What stands beside the outcomes of one learning rate."""
    about: dict[str, Any] = {"trials": len(trials), "train_records": [len(t.train) for t in trials]}
    if all(runs):
        about["moved_fraction"] = min(run["moved_fraction"] for run in runs)
        about["status"] = next((run["status"] for run in runs if run["status"] != "finished"), "finished")
    return about
