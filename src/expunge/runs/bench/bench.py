"""The verb: the grid checked, its missing cells computed, everything there is written as one leaderboard."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import expunge
from expunge.errors import ConfigError, Problem
from expunge.progress import say
from expunge.reports.files import write_text
from expunge.reports.formatting import number
from expunge.reports.leaderboard import read_results, write_page
from expunge.reports.leaderboard_schema import Asked, Cell
from expunge.reports.leaderboard_table import aggregate, csv_text
from expunge.reports.leaderboard_words import without_paths
from expunge.runs.bench.engines import Engine, Outcome, Task, make_engine
from expunge.runs.bench.grid import Grid, Spec, cells, overrides_told, profile_of
from expunge.runs.folder import now, write_json

__all__ = ["BenchResult", "bench", "report"]

WORKER = "expunge.runs.bench.cell"


@dataclass(frozen=True)
class BenchResult:
    """`path` holds cells/, bench.json, index.html, leaderboard.md, leaderboard.json and table.csv."""

    path: Path
    cells: Sequence[Cell]
    asked: Sequence[Asked]
    data: Mapping[str, Any]

    @property
    def failed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.status == "failed"]

    def failure(self) -> str:
        """What did not finish, in one sentence."""
        names = ", ".join(cell.name for cell in self.failed)
        count = f"{len(self.failed)} of {len(self.cells)} cells failed: {names}"
        return f"{count}. The same command tries them again and leaves the others"


def bench(
    grid: Grid,
    output: Path,
    *,
    engine: str = "pool",
    jobs: int | None = None,
    gpus: float | None = None,
    retries: int = 1,
    worker: str = WORKER,
) -> BenchResult:
    """Compute the cells that are missing, and write the leaderboard. Run it again to resume.

    `jobs`: cells at a time, by default one a core, or one a GPU. `gpus`: what a cell needs of them on Ray.
    Raises ConfigError or DataError with all problems before any cell starts.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(Problem("--jobs", f"is {jobs}", "Give 1 or more"))
    specs = cells(grid)
    have = _gpus(grid)
    made = _engine(engine, jobs, have, gpus)
    asked = _asked(grid, specs)
    output = Path(output)
    _open(output, asked)
    missing = [spec for spec in specs if not finished(output, spec)]
    if done := len(specs) - len(missing):
        say(f"{done} of {len(specs)} cells are finished")
    _run(made, missing, output, retries, worker, _threads(jobs, have))
    write_json(output / "bench.json", asked.model_dump(mode="json"))
    return report([output])


def report(folders: Sequence[Path], output: Path | None = None) -> BenchResult:
    """The leaderboard of one or more results folders, written into the first (or `output`)."""
    found, asked = read_results(folders)
    path = Path(output or folders[0])
    data = aggregate(found, asked)
    write_json(path / "leaderboard.json", data)
    write_text(path / "table.csv", csv_text(data))
    write_page(found, path, asked)
    return BenchResult(path, found, asked, data)


def finished(output: Path, spec: Spec) -> bool:
    """Whether the cell's file is there, finished, and made from the same settings, records and code."""
    try:
        cell = Cell.read(_file(output, spec))
    except (OSError, ValueError):
        return False
    if cell.status == "ok" and cell.key != spec.key:
        say(f"{spec.name}: settings, records or code have changed, so it is computed again")
    return cell.status == "ok" and cell.key == spec.key


def _file(output: Path, spec: Spec) -> Path:
    return output / "cells" / f"{spec.name}.json"


def _open(output: Path, asked: Asked) -> None:
    """Note what is asked for; a folder that is something else is left alone."""
    try:
        strange = output.exists() and any(output.iterdir()) and not (output / "bench.json").is_file()
        if strange and not (output / "cells").is_dir():
            raise ConfigError(
                Problem(str(output), "holds something else than a bench", "Choose another --output")
            )
        write_json(output / "bench.json", asked.model_dump(mode="json"))
    except OSError as error:
        raise ConfigError(
            Problem(str(output), f"cannot be written ({error.strerror})", "Choose another --output")
        ) from error


def _run(
    engine: Engine, specs: Sequence[Spec], output: Path, retries: int, worker: str, threads: int | None
) -> None:
    env = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    log = lambda spec: str(output / "logs" / f"{spec.name}.log")  # noqa: E731
    tasks = [
        Task(
            spec.name, worker, (spec.dumped(), str(output)), os.getcwd(), log(spec), str(_file(output, spec)),
            retries, env,
        )
        for spec in specs
    ]  # fmt: skip
    for spec in specs:
        _file(output, spec).unlink(missing_ok=True)  # of an earlier failure, or of other settings
    by_name = {spec.name: spec for spec in specs}
    began = time.monotonic()
    for count, outcome in enumerate(engine.run(tasks), start=1):
        cell = _settled(outcome, by_name[outcome.name], output)
        left = (time.monotonic() - began) / count * (len(tasks) - count)
        say(f"[{count}/{len(tasks)}] {_line(cell)}" + (f" · about {left / 60:.0f} min left" if left else ""))


def _settled(outcome: Outcome, spec: Spec, output: Path) -> Cell:
    """The cell as its process wrote it, also where that was on another disk; else a failed one."""
    path = _file(output, spec)
    if outcome.text is not None:
        if not path.is_file():
            write_text(path, outcome.text)
        return Cell.model_validate_json(outcome.text)
    where = f"see logs/{spec.name}.log"
    cell = Cell(
        benchmark=spec.benchmark, part=spec.part, method=spec.method, seed=spec.seed, key=spec.key,
        status="failed", reason=f"{outcome.reason} ({where})", taus=list(spec.taus), created=now(),
        profile=profile_of(spec.recipe(spec.taus[0])), expunge_version=expunge.__version__,
        attempts=max(1, outcome.attempts),
    )  # fmt: skip
    write_text(path, cell.model_dump_json(indent=1) + "\n")
    return cell


def _line(cell: Cell) -> str:
    name = f"{cell.part or cell.benchmark} {cell.method} seed {cell.seed}"
    if cell.status == "failed":
        return f"{name}: failed, {cell.reason}"
    rows = ", ".join(f"{number(row.forget.value)} at τ {row.tau:g}" for row in cell.controlled)
    return f"{name}: {cell.wall:.0f} s, forget {rows}"


# What a cell needs ------------------------------------------------------------------------------------


def _gpus(grid: Grid) -> int:
    import torch

    device = str((grid.recipe or {}).get("device", "auto"))
    device = next((o.partition("=")[2] for o in reversed(grid.overrides) if o.startswith("device=")), device)
    return torch.cuda.device_count() if device.startswith(("auto", "cuda")) else 0


def _threads(jobs: int | None, gpus: int) -> int | None:
    """OpenMP threads of a cell; None: it chooses itself. More than one only where few cells run."""
    if "OMP_NUM_THREADS" in os.environ or gpus or jobs == 1:
        return None
    return max(1, (os.cpu_count() or 1) // jobs) if jobs else 1


def _engine(name: str, jobs: int | None, have: int, gpus: float | None) -> Engine:
    own = int(os.environ.get("OMP_NUM_THREADS") or 0)
    threads = _threads(jobs, have) or own or 1
    if name == "pool":
        jobs = jobs or have or max(1, (os.cpu_count() or 1) // threads)
    need = gpus if gpus is not None else float(bool(have))
    return make_engine(name, jobs, threads=threads, gpus=need)


def _asked(grid: Grid, specs: Sequence[Spec]) -> Asked:
    told = [without_paths(item) for item in overrides_told(grid)]
    words = [
        "expunge", "bench", grid.benchmark, *(["--splits", ",".join(grid.parts)] if any(grid.parts) else []),
        "--methods", ",".join(grid.methods), "--seeds", str(grid.seeds),
        "--tau", ",".join(f"{tau:g}" for tau in grid.taus), *told,
    ]  # fmt: skip
    return Asked(
        benchmark=grid.benchmark, parts=list(grid.parts), methods=list(grid.methods),
        seeds=list(range(grid.seeds)), taus=list(grid.taus), overrides=told, command=shlex.join(words),
        profile=profile_of(specs[0].recipe(grid.taus[0])),
    )  # fmt: skip
