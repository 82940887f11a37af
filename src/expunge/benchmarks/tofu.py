"""TOFU: fictitious authors, twenty questions about each (Maini et al. 2024, arXiv 2401.06121)."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from expunge.benchmarks.base import BENCHMARKS, Benchmark, Prepared
from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.data.records import Record
from expunge.data.request import Request, Target, fingerprint_records
from expunge.errors import ConfigError, DataError, Problem, nearest
from expunge.stats import seed_from

__all__ = ["Tofu"]

HUB = "locuslab/TOFU"
FORGET = {"forget01": 40, "forget05": 200, "forget10": 400}
FULL = 4000
ROWS_PER_AUTHOR = 20
NUM_REWORDED = 400
"""Rows at the start of full that have paraphrased and perturbed answers: what may be reported on."""

GENERAL = {"real_authors": 100, "world_facts": 117}

METRICS = (
    ("forget_quality", "forget"),
    ("model_utility", "report"),
    ("truth_ratio_closer_to_1", "forget"),
    *((name, split) for split in ("forget", "report") for name in ("probability", "rougeL_recall")),
    *((name, split) for split in GENERAL for name in ("choice_probability", "rougeL_recall")),
    *(("truth_ratio_true_better", split) for split in ("report", *GENERAL)),
)


@BENCHMARKS.register(
    "tofu",
    parts=["forget01", "forget05", "forget10"],
    data="a folder, or locuslab/TOFU from the hub",
    oracle="exact",
    needs=["a model to fine-tune, or one already fine-tuned"],
    source="Maini et al. 2024, arXiv 2401.06121",
)
@dataclass(frozen=True)
class Tofu(Benchmark):
    """Questions about fictitious authors; original and oracle fine-tuned here, or given.

    `folder`: the data as JSONL, JSON, CSV or parquet, one file per configuration of the hub's dataset;
    default: the environment variable EXPUNGE_TOFU, else the hub. `retain_rows` of the authors that are not to
    be forgotten are used, one third each to retain, to calibrate and to report, cut between authors (default:
    all; at most 400 to calibrate and to report). Give `model`, which is then fine-tuned until it knows the
    forget set to an extraction strength of 0.8, or a fine-tuned `original`, with or without an `oracle`.
    `lr`, `batch` and `epochs` (a limit) are those of the fine-tuning; the default rate is 5e-3 for models
    below ten million parameters, else 1e-5.
    """

    split: str = "forget01"
    folder: str | None = None
    model: str | None = None
    original: str | None = None
    oracle: str | None = None
    retain_rows: int | None = None
    seed: int = 0
    lr: float | None = None
    batch: int = 16
    epochs: int = 30

    CODE_VERSION: ClassVar[int] = 1  # rises when the same options would give other models

    @classmethod
    def from_part(cls, part: str | None, **options: Any) -> Tofu:
        benchmark = cls(part or "forget01", **options)
        problems = []
        if benchmark.split not in FORGET:
            what = f"{benchmark.split!r} is unknown"
            problems.append(Problem("benchmark.part", what, nearest(str(benchmark.split), FORGET)))
        for name, least in (("retain_rows", 3 * ROWS_PER_AUTHOR), ("seed", 0), ("batch", 1), ("epochs", 1)):
            value = getattr(benchmark, name)
            if name == "retain_rows" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                fix = f"Give a whole number from {least} up"
                problems.append(Problem(f"benchmark.{name}", f"is {value!r}", fix))
        lr = benchmark.lr
        if lr is not None and not (isinstance(lr, (int, float)) and lr > 0):
            problems.append(Problem("benchmark.lr", f"is {lr!r}", "Give a positive number, such as 1.0e-5"))
        if problems:
            raise ConfigError(problems)
        return benchmark

    # The data ------------------------------------------------------------------------------------------

    def request(self) -> Request:
        """The splits; DataError with all that is missing, cut off or out of line in any file."""
        data = self._data
        forget = tuple(data["full"][-FORGET[self.split] :])
        splits = {"forget": forget, **self._kept(data["full"][: -len(forget)])}
        splits["forget_hard"] = tuple(_reworded_questions(forget))
        for name in ("holdout", *GENERAL):
            splits[name] = tuple(data[name])
        refusals = tuple(record.answer for record in data.get("idk", ()))
        return Request(splits, Target("entity", "erase_influence"), refusals=refusals)

    def _kept(self, rows: Sequence[Record]) -> dict[str, tuple[Record, ...]]:
        """Retain, calibration and report: no author in two of them; those reported have reworded answers."""
        total = min(self.retain_rows or len(rows), len(rows))
        part = min(total // 3, NUM_REWORDED)
        reworded = self._shuffled(rows[:NUM_REWORDED], "report")
        others = self._shuffled(rows[NUM_REWORDED:], "retain")
        edge = -(-part // ROWS_PER_AUTHOR) * ROWS_PER_AUTHOR  # retain starts with a new author
        return {
            "retain": tuple(others[edge : edge + total - 2 * part]),
            "calibration": tuple(others[:part]),
            "report": tuple(reworded[:part]),
        }

    def _shuffled(self, rows: Sequence[Record], name: str) -> list[Record]:
        authors = [rows[at : at + ROWS_PER_AUTHOR] for at in range(0, len(rows), ROWS_PER_AUTHOR)]
        random.Random(seed_from(self.seed, "tofu", name)).shuffle(authors)
        return [record for author in authors for record in author]

    @cached_property
    def _data(self) -> dict[str, list[Record]]:
        """The files as records: full with its rewordings, holdout, real authors, world facts, refusals."""
        folder = self.folder or os.environ.get("EXPUNGE_TOFU")
        if folder and not Path(folder).expanduser().is_dir():
            fix = f"Give the folder with the files of {HUB} in benchmark.folder or EXPUNGE_TOFU"
            raise DataError(Problem(str(folder), "there is no such folder", fix))
        base = str(Path(folder).expanduser()) if folder else HUB
        number = self.split.removeprefix("forget")
        sizes = {
            "full": FULL,
            "retain_perturbed": NUM_REWORDED,
            **dict.fromkeys((self.split, f"{self.split}_perturbed", f"holdout{number}"), FORGET[self.split]),
            **{name + tail: size for name, size in GENERAL.items() for tail in ("", "_perturbed")},
        }
        if folder:
            sizes["idk"] = 100  # not on the hub
        found = Findings()
        data = {name: read_records(f"{base}:{name}", split=name, findings=found) for name in sizes}
        if not found.problems:
            _check(data, sizes, self.split, base, found)
        found.raise_problems()
        data["full"] = _merged(data["full"], data["retain_perturbed"], data[f"{self.split}_perturbed"])
        for name in GENERAL:
            pairs = zip(data[name], data[f"{name}_perturbed"], strict=True)
            data[name] = [replace(r, perturbed_answers=p.perturbed_answers) for r, p in pairs]
        data["holdout"] = _with_authors(data[f"holdout{number}"], "holdout-")
        return data

    # The models ----------------------------------------------------------------------------------------

    def prepare(self, cache: Path) -> Prepared:
        from expunge.benchmarks.training import train_models

        request = self.request()
        if not (self.model or self.original):
            raise ConfigError(
                Problem(
                    "benchmark.model",
                    "tofu needs a model",
                    "Give model: a folder or hub id to fine-tune, or original: one fine-tuned on TOFU",
                )
            )
        paths = {"original": self.original, "oracle": self.oracle}
        made: dict[str, dict[str, Any]] = {}
        if self.model and not all(paths.values()):
            jobs = {n: job for n, job in self._jobs(request).items() if not paths[n]}
            folder = Path(cache) / f"tofu-{self.split}-{self._fingerprint(jobs)}"
            made = train_models(folder, lambda _: list(jobs.values()), f"tofu/{self.split}")
            paths |= {name: str(folder / name) for name in jobs}
        small = bool(self.model) and self._lr >= 1e-3
        return Prepared(
            request,
            Path(str(paths["original"])),
            Path(paths["oracle"]) if paths["oracle"] else None,
            metrics=METRICS,
            train={"lr": 1e-3 if small else 1e-5, "batch": 16, "epochs": 10.0},
            attack_lrs=(3e-4, 1e-3, 3e-3) if small else (1e-5, 5e-5, 2e-4),
            cost={name: {k: facts[k] for k in ("wall", "tokens", "steps")} for name, facts in made.items()},
            facts={"split": self.split, "model": self.model, "seed": self.seed, **made},
        )

    @cached_property
    def _lr(self) -> float:
        from expunge.benchmarks.training import num_parameters

        assert self.model
        return self.lr or (5e-3 if num_parameters(self.model) < 10_000_000 else 1e-5)

    def _jobs(self, request: Request) -> dict[str, Any]:
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
        goal = Goal(strength=0.8, first=4)
        kept = tuple(r for name in ("retain", "calibration", "report") for r in request[name])
        records = {"original": (*request.forget, *kept), "oracle": kept}
        watched = {"original": request.forget, "oracle": (*request.retain, *request["report"])}
        measured = {name: request[name] for name in ("forget", "retain", "report", "holdout", "real_authors")}
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


def _check(
    data: Mapping[str, list[Record]], sizes: Mapping[str, int], split: str, base: str, found: Findings
) -> None:
    """Every file whole, and those that belong together row by row in line."""
    short = {name for name, size in sizes.items() if len(data[name]) != size}
    for name in sorted(short):
        fix = "The file is cut off or not TOFU's: get it again"
        found.add(f"{base}:{name}", f"has {len(data[name])} rows, expected {sizes[name]}", fix)
    forget = FORGET[split]
    for name, start, stop in (
        (split, FULL - forget, FULL),
        (f"{split}_perturbed", FULL - forget, FULL),
        ("retain_perturbed", 0, NUM_REWORDED),
    ):
        if {name, "full"} & short:
            continue
        for i, (row, whole) in enumerate(zip(data[name], data["full"][start:stop], strict=True)):
            if (row.prompt, row.answer) != (whole.prompt, whole.answer):
                fix = "Bring all files from one release"
                found.add(f"{base}:{name}", f"row {i} is not row {start + i} of full", fix)
                break


def _merged(full: list[Record], first: list[Record], last: list[Record]) -> list[Record]:
    """The full set under ids that name the row, its first and last rows with their rewordings."""
    rows = [*first, *full[len(first) : len(full) - len(last)], *last]
    return _with_authors(rows, "")


def _with_authors(rows: Sequence[Record], prefix: str) -> list[Record]:
    return [
        replace(r, id=f"{prefix}{i:04}", entity=f"{prefix}author-{i // ROWS_PER_AUTHOR}")
        for i, r in enumerate(rows)
    ]


def _reworded_questions(forget: Sequence[Record]) -> Iterator[Record]:
    for record in forget:
        for j, prompt in enumerate(record.paraphrased_prompts):
            yield replace(
                record,
                id=f"{record.id}.paraphrase{j}",
                prompt=prompt,
                paraphrased_prompts=(),
                source_id=record.id,
                form="paraphrase",
            )
