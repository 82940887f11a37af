"""Cells as Ray tasks: on a local Ray, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from expunge.errors import ConfigError, Problem, require
from expunge.runs.bench.engines import Outcome, Task, perform

__all__ = ["LOST", "Ray"]

LOST = 3
"""How often a task is run again whose worker, or its whole machine, was lost."""


class Ray:
    """One task a cell, with what it needs of CPUs and GPUs; a lost worker's cell runs again elsewhere.

    All machines of a cluster need the same files at the same paths, and expunge.
    """

    def __init__(self, jobs: int | None = None, threads: int = 1, gpus: float = 0):
        self.jobs, self.threads, self.gpus = jobs, threads, gpus
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self.ray = require("ray", "'expunge[ray]'", why="--engine ray")

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        ray = self.ray
        started = not ray.is_initialized()
        if started:
            self._begin()
        try:
            remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=LOST)(perform)
            waiting = {remote.remote(task): task for task in tasks}
            while waiting:
                ready, _ = ray.wait(list(waiting), num_returns=1)
                for ref in ready:
                    task = waiting.pop(ref)
                    try:
                        yield ray.get(ref)
                    except ray.exceptions.RayError as error:
                        said = str(error).strip().splitlines()
                        yield Outcome(task.name, 1 + LOST, None, f"Ray: {said[0] if said else error!r}")
        finally:
            if started:
                ray.shutdown()

    def _begin(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"num_cpus": (self.jobs or os.cpu_count() or 1) * self.threads}
        try:
            self.ray.init(
                include_dashboard=None if address else False, log_to_driver=False, logging_level="ERROR",
                **local,
            )  # fmt: skip
        except Exception as error:
            what = f"Ray cannot be used: {str(error).strip().splitlines()[0]}"
            fix = "Correct RAY_ADDRESS, or leave --engine out"
            raise ConfigError(
                Problem(f"RAY_ADDRESS {address}" if address else "--engine ray", what, fix)
            ) from error
