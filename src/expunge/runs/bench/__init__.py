"""`expunge bench`: methods × seeds on a benchmark, each held to every τ, one process a cell."""

from expunge.runs.bench.bench import BenchResult, bench, report
from expunge.runs.bench.grid import Grid, read_grid

__all__ = ["BenchResult", "Grid", "bench", "read_grid", "report"]
