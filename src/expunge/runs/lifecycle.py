"""The life of a request: deployed → requested → unlearned → audited → released | rolled back.

Each transition stands in the run's `run.json` under `life`, with its time and fingerprints. The first four
are entered as stages finish, and again when a stage is computed anew; the last two by `expunge release` and
`expunge rollback`. A released run and one rolled back are closed: no stage of theirs is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from expunge.errors import ConfigError, Problem

__all__ = ["CLOSED", "Life", "State", "advance", "check_open", "current", "entry", "read_life"]

State = Literal["deployed", "requested", "unlearned", "audited", "released", "rolled back"]

STATES: tuple[State, ...] = get_args(State)
CLOSED: tuple[State, ...] = STATES[-2:]
"""The run is then the evidence for what was shipped."""

_COMPUTED = STATES[:4]

Life = Sequence[Mapping[str, Any]]


def current(life: Life) -> str:
    """The state a run is in; an empty text where nothing is recorded.

    >>> current([{"state": "deployed"}, {"state": "requested"}])
    'requested'
    """
    return str(life[-1]["state"]) if life else ""


def entry(life: Life, state: State) -> Mapping[str, Any]:
    """The last transition into a state; empty where there was none."""
    return next((e for e in reversed(life) if e["state"] == state), {})


def advance(life: Life, state: State, at: str, *, run: object, **facts: Any) -> list[dict[str, Any]]:
    """The life with one more transition; the same where nothing has changed since that state was entered.

    `run` is named in errors: ConfigError on an illegal transition. A computed state may be entered again from
    any later one: data or code changed, and what followed no longer holds.
    """
    now = current(life)
    rank = STATES.index(state)
    later = [STATES.index(e["state"]) for e in life]
    last = max((i for i, e in enumerate(life) if e["state"] == state), default=None)
    if last is not None and min(later[last + 1 :], default=rank + 1) > rank:
        stored = {k: v for k, v in life[last].items() if k not in ("state", "at")}
        if stored == facts:
            return [dict(e) for e in life]
    if not _legal(now, state):
        what = f"is {now}, and only {_before(state)} one becomes {state}" if now else "has no recorded life"
        raise ConfigError(Problem(str(run), what, _WAY[now] if now else "Run its recipe again"))
    return [*(dict(e) for e in life), {"state": state, "at": at, **facts}]


def _legal(now: str, then: State) -> bool:
    if then not in _COMPUTED:
        return (now, then) in (("audited", "released"), ("released", "rolled back"))
    reached = _COMPUTED.index(now) if now in _COMPUTED else -1
    return (not now or reached >= 0) and _COMPUTED.index(then) <= reached + 1


def _before(state: State) -> str:
    name = STATES[max(0, STATES.index(state) - 1)]
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


_WAY = {
    "deployed": "Run its recipe to the end",
    "requested": "Run its recipe to the end",
    "unlearned": "Run its recipe to the end: its audit is missing",
    "audited": "First: expunge release",
    "released": "Take it back with expunge rollback, or choose another output",
    "rolled back": "Run the recipe into another output",
}
"""What can be done from each state."""


def read_life(folder: Path, state: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The life in a run's notes; ConfigError where the folder is no run, or one of an older version."""
    if not state:
        what = "is no run folder" if state is None else "its notes are damaged"
        raise ConfigError(Problem(str(folder), what, "See: expunge list runs"))
    life = state.get("life", [])
    if not life:
        what = "records no states: it is an audit, or was made by an older version"
        raise ConfigError(Problem(str(folder), what, "Run its recipe again"))
    return list(life)


def check_open(folder: Path, life: Life, what: str) -> None:
    """Raise ConfigError when a closed run is to be computed again."""
    if (now := current(life)) in CLOSED:
        raise ConfigError(Problem(str(folder), f"is {now}: {what}", "Choose another output"))
