"""One benchmark, one file."""

from expunge.benchmarks.base import BENCHMARKS, Benchmark, Prepared

__all__ = ["BENCHMARKS", "Benchmark", "Prepared"]
