"""TOFU: fictitious authors, twenty questions about each (Maini et al. 2024, arXiv 2401.06121).

Beside the published forget sets of 1, 5 and 10 %, larger ones for scaling, rewordings of nearly every row and
famous people (Yuan et al. 2024, arXiv 2410.08109), the entities in answers, and alternate answers (Mekala et
al. 2024, arXiv 2409.13474), where a folder has their files.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.findings import Findings
from expunge.data.records import Record
from expunge.errors import Problem, nearest
from expunge.stats import seed_from

__all__ = ["Tofu"]

HUB = "locuslab/TOFU"
FORGET = {"forget01": 40, "forget05": 200, "forget10": 400}
LARGER = {"forget20": 800, "forget30": 1200, "forget50": 2000, "forget90": 3600}
FULL = 4000
ROWS_PER_AUTHOR = 20
NUM_REWORDED = 400
"""Rows at the start of full that have paraphrased and perturbed answers: what may be reported on."""

GENERAL = {"real_authors": 100, "world_facts": 117}

REWORDED = "all9tasks_perturbed"
"""Rewordings of all rows but the first 400."""

SPANS = "forget10_entity_spans"
PEOPLE = {"real_world_forget_perturbed": 400, "real_world_neighbor_perturbed": 400}
STAYING = 12
"""Of twenty neighbors, so many are to be retained; no method sees the others."""

COLUMNS = {SPANS: {"alternates": "prefix"}, **{name: {"entity": "name"} for name in PEOPLE}}
"""Columns of the files that only folders have."""

FORMS = ("paraphrase", "cloze", "choice")

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
    parts=["forget01", "forget05", "forget10", "forget20", "forget30", "forget50", "forget90", "real_world"],
    data="a folder, or locuslab/TOFU from the hub",
    oracle="exact",
    needs=["a model to fine-tune, or one already fine-tuned"],
    source="Maini et al. 2024, arXiv 2401.06121",
)
@dataclass(frozen=True)
class Tofu(Finetuned):
    """Questions about fictitious authors; original and oracle fine-tuned here, or given.

    Of `retain_rows`, one third each goes to retain, to calibration and to report, cut between authors
    (at most 400 to calibration and to report). `hard`: how forget_hard asks again; cloze needs the file of
    entity spans (the last 400 rows), choice the perturbed answers.
    """

    hard: Sequence[str] = ("paraphrase",)

    PARTS: ClassVar[Sequence[str]] = (*FORGET, *LARGER, "real_world")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = METRICS
    TAUGHT: ClassVar[Sequence[str]] = (*Finetuned.TAUGHT, "neighbors")
    LEAST_RETAIN: ClassVar[int] = 3 * ROWS_PER_AUTHOR

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        forms = [self.hard] if isinstance(self.hard, str) else self.hard
        for form in [form for form in forms if form not in FORMS]:
            yield Problem("benchmark.hard", f"{form!r} is unknown", nearest(str(form), FORMS))

    # Files ---------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """How many rows of full are to be forgotten."""
        return (FORGET | LARGER).get(self.part, 0)

    @property
    def holdout(self) -> str:
        return "holdout10" if self.part in LARGER else f"holdout{self.part.removeprefix('forget')}"

    @property
    def reworded(self) -> str:
        """The file with the rewordings of the forget rows; without that of larger ones, of the last 400."""
        if self.part in FORGET:
            return f"{self.part}_perturbed"
        return REWORDED if self.has(REWORDED) else "forget10_perturbed"

    def files(self) -> Mapping[str, File]:
        sizes: dict[str, int] = {}
        if self.part == "real_world":
            sizes |= PEOPLE
        else:
            forget = FORGET.get(self.part, NUM_REWORDED)
            sizes |= {"full": FULL, "retain_perturbed": NUM_REWORDED, self.holdout: forget}
            sizes[self.reworded] = FULL - NUM_REWORDED if self.reworded == REWORDED else forget
            if self.part in FORGET or self.base:
                sizes[self.part] = self.rows
            if self.has(self._alternates):
                sizes[self._alternates] = 5 * self.rows
            if "cloze" in self.hard:
                sizes[SPANS] = 367
        sizes |= {name + tail: size for name, size in GENERAL.items() for tail in ("", "_perturbed")}
        files = {name: File(rows, COLUMNS.get(name, {}), _hub(name)) for name, rows in sizes.items()}
        return files | ({"idk": File(100)} if self.base else {})  # the refusals are not on the hub

    @property
    def _alternates(self) -> str:
        return f"{self.part}_alt5_seed0"

    def texts_of_refusal(self, data: Mapping[str, list[Record]]) -> tuple[str, ...]:
        return tuple(record.answer for record in data.get("idk", ()))

    def check(self, data: Mapping[str, list[Record]], found: Findings) -> None:
        """Files that belong together are in line, row by row."""
        if self.part == "real_world":
            return
        for name, start, stop in (
            (self.part, FULL - self.rows, FULL),
            (f"{self.part}_perturbed", FULL - self.rows, FULL),
            ("retain_perturbed", 0, NUM_REWORDED),
        ):
            for i, (row, whole) in enumerate(zip(data.get(name, ()), data["full"][start:stop], strict=False)):
                if _key(row) != _key(whole):
                    fix = "Bring all files from one release"
                    where = f"{self.base or HUB}:{name}"
                    found.add(where, f"row {i} is not row {start + i} of full", fix)
                    break
        known = {_key(row) for row in data["full"]}
        for name in dict.fromkeys((self.reworded, self._alternates, SPANS)):
            foreign = sum(_key(row) not in known for row in data.get(name, ()))
            if foreign and name != f"{self.part}_perturbed":
                fix = "Bring all files from one release"
                found.add(f"{self.base or HUB}:{name}", f"{foreign} of its rows are not in full", fix)

    # Splits --------------------------------------------------------------------------------------------

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        if self.part == "real_world":
            splits = self._people(data)
        else:
            full = _with_authors(_reworded(data["full"], data["retain_perturbed"], data[self.reworded]), "")
            forget, kept = full[-self.rows :], full[: -self.rows]
            splits = {"forget": list(_with_alternates(forget, data.get(self._alternates, ())))}
            splits |= self._kept(kept)
            splits["holdout"] = _with_authors(data[self.holdout], "holdout-")
        splits["forget_hard"] = list(self._hard(splits["forget"], data.get(SPANS, ())))
        for name in GENERAL:
            pairs = zip(data[name], data[f"{name}_perturbed"], strict=True)
            splits[name] = [replace(r, perturbed_answers=p.perturbed_answers) for r, p in pairs]
        return splits

    def _kept(self, rows: Sequence[Record]) -> dict[str, list[Record]]:
        """Retain, calibration and report: no author in two of them; those reported have reworded answers."""
        total = min(self.retain_rows or len(rows), len(rows))
        part = min(total // 3, NUM_REWORDED)
        edge = -(-part // ROWS_PER_AUTHOR) * ROWS_PER_AUTHOR  # retain starts with a new author
        reworded = self._shuffled(rows[:NUM_REWORDED], "report")
        others = self._shuffled(rows[NUM_REWORDED:], "retain") or reworded[edge:]  # forget90 leaves no others
        return {
            "retain": others[edge : edge + total - 2 * part],
            "calibration": others[:part],
            "report": reworded[:part],
        }

    def _people(self, data: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
        """Famous people: twenty to forget, of twenty others most to retain."""
        forget, others = (data[name] for name in PEOPLE)
        others = self._shuffled(others, "people")
        edge = STAYING * ROWS_PER_AUTHOR
        return {"forget": list(forget), "retain": others[:edge], "neighbors": others[edge:]}

    def _shuffled(self, rows: Sequence[Record], name: str) -> list[Record]:
        authors = [rows[at : at + ROWS_PER_AUTHOR] for at in range(0, len(rows), ROWS_PER_AUTHOR)]
        random.Random(seed_from(self.seed, "tofu", name)).shuffle(authors)
        return [record for author in authors for record in author]

    # The same asked differently ------------------------------------------------------------------------

    def _hard(self, forget: Sequence[Record], rows: Sequence[Record]) -> Iterator[Record]:
        spans = {_key(row): ("".join(row.alternates), row.entity) for row in rows}
        for record in forget:
            if "paraphrase" in self.hard:
                for j, prompt in enumerate(record.paraphrased_prompts):
                    yield _asked(record, f"paraphrase{j}", prompt=prompt)
            if "cloze" in self.hard and (span := spans.get(_key(record))):
                yield from _cloze(record, *span)
            if "choice" in self.hard and record.perturbed_answers:
                yield self._choice(record)

    def _choice(self, record: Record) -> Record:
        """The answer among its perturbed ones."""
        choices = [record.answer, *record.perturbed_answers]
        random.Random(seed_from(self.seed, "tofu", "choice", record.id)).shuffle(choices)
        prompt = f"Choose the right answer: {record.prompt}"
        label = choices.index(record.answer)
        return _asked(record, "choice", prompt=prompt, choices=tuple(choices), label=label)


def _hub(name: str) -> str | None:
    return None if name in COLUMNS else f"{HUB}:{name}"


def _key(record: Record) -> tuple[str, str]:
    return record.prompt, record.answer


def _asked(record: Record, name: str, **changes: Any) -> Record:
    """A forget record asked in another form."""
    form = name.rstrip("0123456789")
    asked = {"paraphrased_prompts": (), "alternates": (), "source_id": record.id, "form": form}
    return replace(record, id=f"{record.id}.{name}", **{**asked, **changes})


def _cloze(record: Record, prefix: str, entity: str) -> Iterator[Record]:
    """The answer with a gap for its entity, unless question or rest give it away."""
    rest = record.answer[len(prefix) :].lstrip()
    gapped = f"{prefix.rstrip()} ___{rest[len(entity) :].replace(entity, '___')}".strip()
    if entity.casefold() not in f"{record.prompt} {gapped}".casefold():
        prompt = f"{record.prompt} Fill the gap: {gapped}"
        none: dict[str, Any] = {"paraphrased_answers": (), "perturbed_answers": ()}
        yield _asked(record, "cloze", prompt=prompt, answer=entity, **none)


def _reworded(full: Iterable[Record], *reworded: Sequence[Record]) -> list[Record]:
    """The full set, its rows with their rewordings where there are such."""
    known = {_key(row): row for rows in reworded for row in rows}
    return [known.get(_key(row), row) for row in full]


def _with_alternates(forget: Iterable[Record], rows: Iterable[Record]) -> Iterator[Record]:
    told: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        told[_key(row)] += row.alternates
    for record in forget:
        yield replace(record, alternates=tuple(told[_key(record)]))


def _with_authors(rows: Sequence[Record], prefix: str) -> list[Record]:
    return [
        replace(r, id=f"{prefix}{i:04}", entity=f"{prefix}author-{i // ROWS_PER_AUTHOR}")
        for i, r in enumerate(rows)
    ]
