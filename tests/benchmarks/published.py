"""What the tests of benchmarks on published data share."""

import json
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from expunge.benchmarks import BENCHMARKS
from expunge.benchmarks.base import Benchmark

DATA = Path("../shared/data")
MODEL = Path("../shared/models/stories260K")
needs_model = pytest.mark.skipif(not MODEL.is_dir(), reason="../shared/models/stories260K is not here")


def needs(name: str) -> pytest.MarkDecorator:
    """Skip without this benchmark's data."""
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"../shared/data/{name} is not here")


@cache
def benchmark(name: str, part: str | None = None, **options) -> Benchmark:
    """Read once for all tests of a process; options do not change what is in the files."""
    made = BENCHMARKS.get(name).from_part(part, **{"folder": str(DATA / name), **options})
    if options or part:
        plain = benchmark(name)
        if made.files() == plain.files():
            made.__dict__["data"] = plain.data
    return made


def row(name: str, file: str, index: int = 0) -> dict:
    """A row of a file as it stands there."""
    with (DATA / name / f"{file}.jsonl").open(encoding="utf-8") as lines:
        return json.loads(next(islice(lines, index, None)))


def counts(request) -> dict[str, int]:
    return {split: len(request[split]) for split in request}
