"""What benchmarks on published data share: files counted, splits completed, models fine-tuned or given."""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

from expunge.benchmarks.base import Benchmark, Prepared
from expunge.data.build import complete_request
from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.data.records import Record
from expunge.data.request import Request, Target, fingerprint_records
from expunge.errors import ConfigError, DataError, Problem, nearest

__all__ = ["File", "Finetuned", "Splits"]

Splits = Mapping[str, Sequence[Record]]

SMALL = 10_000_000
"""Parameters below which a model is trained at rates for tiny ones."""


@dataclass(frozen=True)
class File:
    """One file of a benchmark.

    `rows`: how many were published; another number means it is cut off or another's (None: not known, as of
    a file of one's own). `columns`: field of a record → column of the file. `hub`: where the hub has it
    ("org/name:config:split"); None: in folders only.
    """

    rows: int | None
    columns: Mapping[str, str] = field(default_factory=dict)
    hub: str | None = None


@dataclass(frozen=True)
class Finetuned(Benchmark):
    """Published data; original and oracle are fine-tuned here from `model`, or given.

    `folder`: the data as JSONL, JSON, CSV or parquet, one file per name in `files`; default: the environment
    variable EXPUNGE_<NAME>, else the hub. Give `model`, which is then fine-tuned until it knows the forget
    set to an extraction strength of `GOAL`, or an `original` that knows it, with or without an `oracle`.
    `lr`, `batch` and `epochs` (a limit) are those of the fine-tuning; the default rate is 5e-3 for models
    below ten million parameters, else 1e-5. `retain_rows`: so many of the records that stay are used
    (default: all).
    """

    part: str = ""
    folder: str | None = None
    model: str | None = None
    original: str | None = None
    oracle: str | None = None
    retain_rows: int | None = None
    seed: int = 0
    lr: float | None = None
    batch: int = 16
    epochs: int = 30

    PARTS: ClassVar[Sequence[str]]
    """What may stand behind the slash; the first is the default."""
    TARGET: ClassVar[Target] = Target("entity", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = ()
    TAUGHT: ClassVar[Sequence[str]] = ("retain", "calibration", "report")
    """Splits that original and oracle are fine-tuned on, where there are such."""
    LEARNED: ClassVar[Sequence[str]] = ("forget",)
    """Splits that only the original is fine-tuned on."""
    GOAL: ClassVar[float] = 0.8
    LEAST_RETAIN: ClassVar[int] = 3
    CODE_VERSION: ClassVar[int] = 1  # rises when the same options would give other models

    # What each benchmark says --------------------------------------------------------------------------

    @abstractmethod
    def files(self) -> Mapping[str, File]:
        """The files this part needs, by the names they have in a folder (without the suffix)."""

    @abstractmethod
    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        """The splits, from the records of each file. Calibration, report and forget_hard (from paraphrased
        prompts) are built where they are missing; ids must differ within a split."""

    def cells(self, name: str, cells: dict[str, Any]) -> dict[str, Any]:
        """The cells of a row of this file as a record needs them, where other names do not do."""
        return cells

    def check(self, data: Mapping[str, list[Record]], found: Findings) -> None:
        """Add to `found` what is wrong across files whose counts are right."""

    def target(self) -> Target:
        """What the forget records stand for, if that depends on the options."""
        return self.TARGET

    def metrics(self, request: Request) -> Sequence[tuple[str, str]]:
        """The paper's metrics on the splits that there are."""
        return [(metric, split) for metric, split in self.METRICS if split in request]

    def notes(self) -> Mapping[str, str]:
        """How splits came about that are not simply read: split → a note."""
        return {}

    def texts_of_refusal(self, data: Mapping[str, list[Record]]) -> tuple[str, ...]:
        """The benchmark's own refusals, if it has some."""
        return ()

    # The same for all ----------------------------------------------------------------------------------

    @classmethod
    def from_part(cls, part: str | None, **options: Any) -> Self:
        benchmark = cls(part or cls.PARTS[0], **options)
        problems = list(benchmark.problems())
        if problems:
            raise ConfigError(problems)
        return benchmark

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the options; a benchmark with options of its own adds to it."""
        if self.part not in self.PARTS:
            yield Problem("benchmark.part", f"{self.part!r} is unknown", nearest(str(self.part), self.PARTS))
        for name, least in (("retain_rows", self.LEAST_RETAIN), ("seed", 0), ("batch", 1), ("epochs", 1)):
            value = getattr(self, name)
            if name == "retain_rows" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                fix = f"Give a whole number from {least} up"
                yield Problem(f"benchmark.{name}", f"is {value!r}", fix)
        lr = self.lr
        if lr is not None and not (isinstance(lr, (int, float)) and lr > 0):
            yield Problem("benchmark.lr", f"is {lr!r}", "Give a positive number, such as 1.0e-5")

    def request(self) -> Request:
        """The splits; DataError with all that is missing, cut off or out of line in any file."""
        return self._request

    @cached_property
    def _request(self) -> Request:
        splits = {name: tuple(records) for name, records in self.splits(self.data).items()}
        if self.retain_rows and "calibration" not in splits:
            splits["retain"] = splits["retain"][: self.retain_rows]
        target = self.target()
        request = complete_request(splits, target=target, seed=self.seed)
        built = {**request.built, **self.notes()}
        return Request(request.splits, target, built, self.texts_of_refusal(self.data))

    @cached_property
    def base(self) -> str | None:
        """The folder of the data; None: the hub."""
        variable = f"EXPUNGE_{self.name.upper()}"
        folder = self.folder or os.environ.get(variable)
        if folder and not Path(folder).expanduser().is_dir():
            fix = f"Give the folder with the files of {self.name} in benchmark.folder or {variable}"
            raise DataError(Problem(str(folder), "there is no such folder", fix))
        return str(Path(folder).expanduser()) if folder else None

    @cached_property
    def data(self) -> dict[str, list[Record]]:
        """The records of each file, every one whole."""
        found = Findings()
        data: dict[str, list[Record]] = {}
        files = self.files()
        for name in [name for name, file in files.items() if not (self.base or file.hub)]:
            fix = f"Give a folder that has it in benchmark.folder or EXPUNGE_{self.name.upper()}"
            found.add(name, "is not on the hub", fix)
        found.raise_problems()  # before anything is downloaded
        for name, file in files.items():
            before = len(found.problems)
            data[name] = self.read(name, file, found)
            if len(found.problems) == before and file.rows not in (None, len(data[name])):
                fix = f"The file is cut off or not {self.name}'s: get it again"
                what = f"has {len(data[name])} rows, expected {file.rows}"
                found.add(f"{self.base}:{name}" if self.base else str(file.hub), what, fix)
        if not found.problems:
            self.check(data, found)
        found.raise_problems()
        return data

    def read(self, name: str, file: File, found: Findings) -> list[Record]:
        """The records of one file; what is wrong with them goes to `found`."""
        source = f"{self.base}:{name}" if self.base else str(file.hub)
        cells = partial(self.cells, name)
        return read_records(source, split=name, columns=file.columns, findings=found, cells=cells)

    def has(self, name: str) -> bool:
        """Whether there is a folder and this file in it, for files that one can do without."""
        files = Path(self.base).rglob("*") if self.base else ()
        return any(file.stem == name or file.stem.startswith(f"{name}-") for file in files)

    # The models ----------------------------------------------------------------------------------------

    def prepare(self, cache: Path) -> Prepared:
        from expunge.benchmarks.training import train_models

        request = self.request()
        if not (self.model or self.original):
            fix = "Give model: a folder or hub id to fine-tune, or original: one that knows the forget set"
            raise ConfigError(Problem("benchmark.model", f"{self.name} needs a model", fix))
        paths = {"original": self.original, "oracle": self.oracle}
        made: dict[str, dict[str, Any]] = {}
        if self.model and not all(paths.values()):
            jobs = {n: job for n, job in self.jobs(request).items() if not paths[n]}
            folder = Path(cache) / f"{self.name}-{self.part}-{self._fingerprint(jobs)}"
            made = train_models(folder, lambda _: list(jobs.values()), f"{self.name}/{self.part}")
            paths |= {name: str(folder / name) for name in jobs}
        small = bool(self.model) and self._lr >= 1e-3
        return Prepared(
            request,
            Path(str(paths["original"])),
            Path(paths["oracle"]) if paths["oracle"] else None,
            metrics=self.metrics(request),
            train={"lr": 1e-3 if small else 1e-5, "batch": 16, "epochs": 10.0},
            attack_lrs=(3e-4, 1e-3, 3e-3) if small else (1e-5, 5e-5, 2e-4),
            cost={name: {k: facts[k] for k in ("wall", "tokens", "steps")} for name, facts in made.items()},
            facts={"part": self.part, "model": self.model, "seed": self.seed, **made},
        )

    @cached_property
    def _lr(self) -> float:
        from expunge.benchmarks.training import num_parameters

        assert self.model
        return self.lr or (5e-3 if num_parameters(self.model) < SMALL else 1e-5)

    def taught(self, request: Request) -> tuple[Record, ...]:
        """What both models are fine-tuned on."""
        return tuple(record for name in self.TAUGHT for record in request[name])

    def jobs(self, request: Request) -> dict[str, Any]:
        """The trainings of original and oracle, by name."""
        from expunge.benchmarks.training import Goal, Job
        from expunge.training.settings import TrainSettings

        settings = TrainSettings(
            epochs=self.epochs,
            lr=self._lr,
            batch=self.batch,
            seed=self.seed,
            weight_decay=0.0,
            warmup=0.05,
            log_every=10,
        )
        goal = Goal(strength=self.GOAL, first=4)
        kept = self.taught(request)
        learned = tuple(record for name in self.LEARNED for record in request[name])
        records = {"original": (*learned, *kept), "oracle": kept}
        watched = {"original": request.forget, "oracle": (*request.retain, *request["report"])}
        names = ("forget", "retain", "report", "holdout")
        measured = {name: request[name] for name in names if name in request}
        return {
            name: Job(name, str(self.model), records[name], settings, watched[name], goal, measured, "auto")
            for name in records
        }

    def _fingerprint(self, jobs: Mapping[str, Any]) -> str:
        """A hash of everything the models depend on."""
        from expunge.benchmarks import training

        parts: list[object] = [
            training.fingerprint_source(str(self.model)),
            self.CODE_VERSION,
            training.CODE_VERSION,
        ]
        for name, job in jobs.items():
            parts += [name, fingerprint_records(job.records), fingerprint_records(job.watched)]
            parts += [job.settings.model_dump_json(), str(job.goal)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
