"""TOFU: fictitious authors, twenty questions about each (Maini et al. 2024, arXiv 2401.06121)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.findings import Findings
from expunge.data.records import Record
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
class Tofu(Finetuned):
    """Questions about fictitious authors; original and oracle fine-tuned here, or given.

    Of `retain_rows`, one third each goes to retain, to calibration and to report, cut between authors
    (at most 400 to calibration and to report).
    """

    PARTS: ClassVar[Sequence[str]] = tuple(FORGET)
    METRICS: ClassVar[Sequence[tuple[str, str]]] = METRICS
    LEAST_RETAIN: ClassVar[int] = 3 * ROWS_PER_AUTHOR

    def files(self) -> Mapping[str, File]:
        number = self.part.removeprefix("forget")
        sizes = {
            "full": FULL,
            "retain_perturbed": NUM_REWORDED,
            **dict.fromkeys((self.part, f"{self.part}_perturbed", f"holdout{number}"), FORGET[self.part]),
            **{name + tail: size for name, size in GENERAL.items() for tail in ("", "_perturbed")},
        }
        files = {name: File(rows, hub=f"{HUB}:{name}") for name, rows in sizes.items()}
        return files | ({"idk": File(100)} if self.base else {})  # the refusals are not on the hub

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        full = _merged(data["full"], data["retain_perturbed"], data[f"{self.part}_perturbed"])
        forget = full[-FORGET[self.part] :]
        number = self.part.removeprefix("forget")
        splits = {"forget": forget, **self._kept(full[: -len(forget)])}
        splits["forget_hard"] = list(_reworded_questions(forget))
        splits["holdout"] = _with_authors(data[f"holdout{number}"], "holdout-")
        for name in GENERAL:
            pairs = zip(data[name], data[f"{name}_perturbed"], strict=True)
            splits[name] = [replace(r, perturbed_answers=p.perturbed_answers) for r, p in pairs]
        return splits

    def texts_of_refusal(self, data: Mapping[str, list[Record]]) -> tuple[str, ...]:
        return tuple(record.answer for record in data.get("idk", ()))

    def _kept(self, rows: Sequence[Record]) -> dict[str, list[Record]]:
        """Retain, calibration and report: no author in two of them; those reported have reworded answers."""
        total = min(self.retain_rows or len(rows), len(rows))
        part = min(total // 3, NUM_REWORDED)
        reworded = self._shuffled(rows[:NUM_REWORDED], "report")
        others = self._shuffled(rows[NUM_REWORDED:], "retain")
        edge = -(-part // ROWS_PER_AUTHOR) * ROWS_PER_AUTHOR  # retain starts with a new author
        return {
            "retain": others[edge : edge + total - 2 * part],
            "calibration": others[:part],
            "report": reworded[:part],
        }

    def _shuffled(self, rows: Sequence[Record], name: str) -> list[Record]:
        authors = [rows[at : at + ROWS_PER_AUTHOR] for at in range(0, len(rows), ROWS_PER_AUTHOR)]
        random.Random(seed_from(self.seed, "tofu", name)).shuffle(authors)
        return [record for author in authors for record in author]

    def check(self, data: Mapping[str, list[Record]], found: Findings) -> None:
        """Files that belong together are in line, row by row."""
        forget = FORGET[self.part]
        for name, start, stop in (
            (self.part, FULL - forget, FULL),
            (f"{self.part}_perturbed", FULL - forget, FULL),
            ("retain_perturbed", 0, NUM_REWORDED),
        ):
            for i, (row, whole) in enumerate(zip(data[name], data["full"][start:stop], strict=True)):
                if (row.prompt, row.answer) != (whole.prompt, whole.answer):
                    fix = "Bring all files from one release"
                    where = f"{self.base or HUB}:{name}"
                    found.add(where, f"row {i} is not row {start + i} of full", fix)
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
