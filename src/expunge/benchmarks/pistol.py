"""PISTOL: contracts between companies as a graph, one edge of which is forgotten (Qiu et al. 2024, arXiv
2406.16810).

A company stands in several contracts. Neighbors are the contracts that share a company with the forgotten
one; retain, calibration and report are those that do not: damage by distance in the graph.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.findings import Findings
from expunge.data.records import Record
from expunge.errors import nearest

__all__ = ["Pistol"]

EDGES = {"sample1": 20, "sample2": 75}
QUESTIONS = 20
"""About each contract."""

GENERAL = 169

_COMPANIES = re.compile(r"contract between (.+) and (.+)\?")


@BENCHMARKS.register(
    "pistol",
    parts=["sample1", "sample2"],
    data="a folder, or xinchiqiu/PISTOL from the hub",
    oracle="exact",
    needs=["a model to fine-tune, or one already fine-tuned"],
    source="Qiu et al. 2024, arXiv 2406.16810",
)
@dataclass(frozen=True)
class Pistol(Finetuned):
    """A contract to forget. `edge`: which, by its name in the data; default: the first, as in the paper.

    `retain_neighbors`: the method is given the neighbors as well, as in the paper; by default they show what
    it does to facts it was never told to keep.
    """

    edge: str | None = None
    retain_neighbors: bool = False

    PARTS: ClassVar[Sequence[str]] = tuple(EDGES)
    METRICS: ClassVar[Sequence[tuple[str, str]]] = tuple(
        (metric, split)
        for split in ("forget", "neighbors", "report", "utility")
        for metric in ("rouge1_recall", "probability")
    )
    TAUGHT: ClassVar[Sequence[str]] = (*Finetuned.TAUGHT, "neighbors")

    def files(self) -> Mapping[str, File]:
        hub = f"xinchiqiu/PISTOL:pistol_data_{self.part.removeprefix('sample')}:train"
        files = {f"pistol_{self.part}": File(EDGES[self.part] * QUESTIONS, {"entity": "edge"}, hub)}
        return files | ({"factual_data": File(GENERAL)} if self.base else {})

    def check(self, data: Mapping[str, list[Record]], found: Findings) -> None:
        contracts = _contracts(data[f"pistol_{self.part}"])
        where = f"{self.base}:pistol_{self.part}" if self.base else "xinchiqiu/PISTOL"
        for edge, rows in contracts.items():
            if len(rows) != QUESTIONS or len(_companies(rows)) != 2:
                what = f"edge {edge} has {len(rows)} questions about {len(_companies(rows))} companies"
                found.add(where, what, f"Expected {QUESTIONS} about 2: get the file again")
        if self.edge is not None and self.edge not in contracts:
            found.add("benchmark.edge", f"{self.edge!r} is unknown", nearest(self.edge, contracts))

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        contracts = _contracts(data[f"pistol_{self.part}"])
        gone = self.edge or next(iter(contracts))
        forget = contracts.pop(gone)
        near = [edge for edge, rows in contracts.items() if _companies(rows) & _companies(forget)]
        splits = {
            "forget": forget,
            "neighbors": [r for edge in near for r in contracts[edge]],
            "retain": [r for edge, rows in contracts.items() if edge not in near for r in rows],
            "utility": [replace(r, entity="") for r in data.get("factual_data", ())],
        }
        if self.retain_neighbors:
            splits["retain"] = splits.pop("neighbors") + splits["retain"]
        return splits


def _contracts(rows: Sequence[Record]) -> dict[str, list[Record]]:
    contracts: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        contracts[row.entity].append(row)
    return dict(contracts)


def _companies(rows: Sequence[Record]) -> frozenset[str]:
    """The two companies of a contract."""
    return frozenset(name for row in rows for pair in _COMPANIES.findall(row.prompt) for name in pair)
