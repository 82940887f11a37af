"""Requests one after the other on one model: whose controlled model a run starts from, what went before.

`after: runs/one` makes runs/one's controlled model this run's original. What every earlier run of the chain
forgot is measured again as the split `forget_past`, its records marked by their run ("one/r0"), and may not
stand among the records that stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.data.records import Record
from expunge.data.request import fingerprint_records
from expunge.errors import ConfigError, ModelError, Problem
from expunge.runs.kept import kept
from expunge.runs.lifecycle import current, entry, read_life
from expunge.runs.notes import read_state

__all__ = ["PAST", "Link", "check_start", "earlier", "mark", "names", "past_forget"]

PAST = "forget_past"


@dataclass(frozen=True)
class Link:
    """One finished run of a chain: where it lies, and its recorded life."""

    path: Path
    life: Sequence[Mapping[str, Any]]

    @property
    def model(self) -> Path:
        """The controlled model."""
        return self.path / "control" / "model"

    @property
    def controlled(self) -> str:
        """Its fingerprint."""
        return str(entry(self.life, "unlearned").get("controlled", ""))

    @property
    def start(self) -> Mapping[str, Any]:
        """The model it started from: {model, fingerprint, dtype}."""
        return entry(self.life, "deployed")


def earlier(run: str | Path) -> tuple[Link, ...]:
    """The chain up to and with this run, oldest first. Raises ConfigError where it is broken."""
    links: list[Link] = []
    here: str | None = str(run)
    while here:
        path = Path(here)
        if any(path.absolute() == link.path.absolute() for link in links):
            raise ConfigError(Problem(f"after: {here}", "follows itself", "Choose another run"))
        life = read_life(path, read_state(path))
        state = current(life)
        if state in ("deployed", "requested"):
            what, fix = "is not finished: it has no controlled model yet", "Run its recipe first"
            raise ConfigError(Problem(f"after: {here}", what, fix))
        if state == "rolled back":
            what = "was rolled back: its model is not in use"
            raise ConfigError(Problem(f"after: {here}", what, "Name the run before it"))
        links.append(Link(path, life))
        here = entry(life, "requested").get("after")
    if not links[0].model.is_dir():
        what, fix = "its model was removed", "Run its recipe again"
        raise ConfigError(Problem(f"after: {run}", what, fix))
    return tuple(reversed(links))


def check_start(link: Link, fingerprint: str, dtype: str) -> None:
    """Raise ModelError when the model found is not the one that the run noted."""
    if dtype == link.start.get("dtype") and fingerprint != link.controlled:
        what = f"has the fingerprint {fingerprint}, its run noted {link.controlled}"
        raise ModelError(Problem(str(link.model), what, "Run the recipe of that run again"))


def names(links: Sequence[Link]) -> list[str]:
    """One name per run: its folder's, with its place in the chain before it where two are called alike."""
    count = Counter(link.path.name for link in links)
    return [
        link.path.name if count[link.path.name] == 1 else f"{i}-{link.path.name}"
        for i, link in enumerate(links, start=1)
    ]


def past_forget(links: Sequence[Link]) -> tuple[dict[str, tuple[Record, ...]], list[str]]:
    """The split of what the chain forgot before, marked by its run; a warning for each set that is gone."""
    records: list[Record] = []
    warnings = []
    for name, link in zip(names(links), links, strict=True):
        found = kept(link.path, "forget")
        noted = entry(link.life, "requested").get("forget")
        if found is None or fingerprint_records(found) != noted:
            state = "was purged" if found is None else "was changed"
            warnings.append(f"the forget set of {link.path} {state}: it cannot be measured again")
            continue
        records += mark(name, found)
    return {PAST: tuple(records)} if records else {}, warnings


def mark(name: str, records: Sequence[Record]) -> list[Record]:
    """Forget records of a run under their later ids."""
    return [replace(r, id=f"{name}/{r.id}", source_id=None, form=None) for r in records]
