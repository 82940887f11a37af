"""Progress on stderr: a bar with the time left on a terminal, one line per task elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from expunge import ranks

__all__ = ["say", "track"]


def say(message: str) -> None:
    """One line for the person who watches, of rank 0; data goes to stdout, never here."""
    if ranks.is_first():
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def track(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Yield `advance(n=1, note="")` for a task of `total` units.

    >>> with track("counting", 2) as advance:
    ...     advance()
    ...     advance()
    """
    if total and ranks.is_first() and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<28.28}"),
            BarColumn(24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=total, note="")
            yield lambda n=1, note="": progress.update(task, advance=n, note=note)
        return
    start = time.monotonic()
    yield lambda n=1, note="": None
    if time.monotonic() - start > 5:
        say(f"{what}: {time.monotonic() - start:.0f} s")
