"""What a training writes down of its steps: JSONL beside the checkpoints, and trackers asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge import ranks
from expunge.errors import require
from expunge.training.settings import TrainSettings

__all__ = ["journal"]

Entry = dict[str, Any]


@contextmanager
def journal(
    folder: Path | None, settings: TrainSettings, history: list[Entry], start: int
) -> Iterator[Callable[[Entry], None]]:
    """Yield what notes an entry, in `history` and on disk; those behind step `start` are dropped.

    Rank 0 writes.
    """
    if folder is None or not ranks.is_first():
        yield history.append
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.jsonl"
    history[:] = [e for e in _read(path) if e["step"] <= start]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(e) + "\n" for e in history), encoding="utf-8")
    os.replace(temporary, path)
    trackers = _trackers(folder, settings) if settings.report_to else None
    with path.open("a", encoding="utf-8") as file:

        def write(entry: Entry) -> None:
            history.append(entry)
            file.write(json.dumps(entry) + "\n")
            file.flush()
            if trackers is not None:
                more = {"lr": entry["lr"], "grad_norm": entry["grad_norm"]}
                trackers.log({**entry["terms"], **more}, step=entry["step"])

        yield write
    if trackers is not None:
        trackers.end_training()


def _trackers(folder: Path, settings: TrainSettings) -> Any:
    from accelerate import Accelerator

    for tracker in settings.report_to:
        require(tracker, why=f"report_to: {tracker}")
    trackers = Accelerator(log_with=settings.report_to, project_dir=str(folder))
    config = settings.model_dump(exclude={"report_to", "betas"}, exclude_none=True)
    trackers.init_trackers("expunge", config=config)
    return trackers


def _read(path: Path) -> list[Entry]:
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # a line cut off by a kill
            break
    return entries
