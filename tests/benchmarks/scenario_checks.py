"""What every embedded scenario is held to."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

import expunge
from expunge.benchmarks.scenario import Scenario
from expunge.data.checks import check_encoded, check_request
from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.data.request import SPLITS
from expunge.metrics import METRICS
from expunge.runs.pipeline import RunResult


def check_world(scenario: Scenario, untrained: Collection[str] = ()) -> None:
    """In order as a request and for its tokenizer, deterministic, and with an oracle that is exact.

    `untrained`: splits besides the holdout that no model is trained on.
    """
    world, request = scenario.world, scenario.request()
    assert set(SPLITS) <= set(world.splits)
    encoder = Encoder(scenario.make_tokenizer(), max_length=scenario.build.context)
    for found in (check_request(request), check_encoded(request, encoder)):
        assert not found.problems
        assert not found.warnings
    assert type(scenario)(scenario.size, scenario.seed).world == world
    assert type(scenario)(scenario.size, scenario.seed + 1).world.splits["forget"] != world.splits["forget"]
    assert {name for name, _ in scenario.METRICS} <= set(METRICS.names())
    corpora = {name: world.corpus(name) for name in ("original", "oracle")}
    for corpus in corpora.values():
        assert len({record.id for record in corpus}) == len(corpus)
    assert texts(world.splits["forget"]) <= texts(corpora["original"])
    assert not texts(world.splits["forget"]) & texts(corpora["oracle"])
    for corpus in corpora.values():
        for split in ("holdout", *untrained):
            assert not texts(world.splits[split]) & texts(corpus)
        for split in {"retain", "neighbors", "calibration", "report", "utility"} - {*untrained}:
            assert texts(world.splits[split]) <= texts(corpus)


def texts(records: Iterable[Record]) -> set[tuple[str, str]]:
    return {(record.prompt, record.answer) for record in records}


def words(records: Iterable[Record]) -> set[str]:
    """Words of the answers."""
    return {word for record in records for word in re.findall(r"\w+", record.answer)}


def run_quick(part: str, cache: Path, output: Path, patch: pytest.MonkeyPatch, **more: Any) -> RunResult:
    """The default method from models that are there to a report."""
    patch.setenv("EXPUNGE_CACHE", str(cache))
    recipe = {"benchmark": part, "audit": "quick", "max_new_tokens": 24, "output": str(output), **more}
    return expunge.run(recipe)


def value(result: RunResult, metric: str, split: str, model: str) -> float:
    scores = result.scorecard.scores
    (found,) = [s for s in scores if (s.metric, s.split, s.model) == (metric, split, model)]
    assert found.value is not None
    return found.value
