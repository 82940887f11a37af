"""The splits a recipe says are `auto`, built of those that are there and marked as built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from expunge.data.ability import ability_records
from expunge.data.builders.hard import build_hard
from expunge.data.builders.holdout import build_holdout
from expunge.data.builders.leaks import without_collisions
from expunge.data.builders.neighbors import Encode, Taken, build_neighbors
from expunge.data.builders.translation import Translator
from expunge.data.checks import too_long
from expunge.data.records import Record
from expunge.data.request import Request

if TYPE_CHECKING:
    from expunge.data.encoding import Encoder

__all__ = ["AUTO", "Auto", "Made", "build_auto", "that_fit"]

AUTO = ("utility", "neighbors", "holdout", "forget_hard")
"""In the order they are built: each is checked against those before it."""

Splits = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Auto:
    """Which splits to build, and with what: `encode` (named by `label`) finds neighbors by embedding."""

    splits: tuple[str, ...] = ()
    neighbors: Literal["nearest", "template", "embedding"] = "nearest"
    encode: Encode | None = None
    label: str = ""
    translator: Translator | None = None


class Made(NamedTuple):
    """All splits, a note for each that was built, and what a reader must know of them."""

    splits: dict[str, tuple[Record, ...]]
    built: dict[str, str]
    warnings: list[str]


def build_auto(splits: Splits, auto: Auto, seed: int = 0) -> Made:
    """The splits with those of `auto` built; what is there already is left as it is.

    Neighbors are taken out of retain. A split of which nothing can be built stays away, with a warning.
    """
    made = Made({split: tuple(records) for split, records in splits.items()}, {}, [])
    for split in AUTO:
        if split not in auto.splits or made.splits.get(split):
            continue
        if split == "neighbors":
            taken = _neighbors(made.splits, auto, seed)
            rows, how = taken.neighbors, taken.how
            if rows:
                made.splits["retain"] = taken.retain
        elif split == "utility":
            rows = tuple(without_collisions(ability_records(seed), "utility", made.splits))
            how = f"{len(rows)} general questions with choices that come with expunge"
        elif split == "holdout":
            rows, how = build_holdout(made.splits, seed=seed)
        else:
            rows, how = build_hard(made.splits, seed=seed, translator=auto.translator)
        if rows:
            made.splits[split], made.built[split] = rows, how
            made.warnings.extend(f"{split} is built: {how}. {_MEANS[split]}" for _ in _MEANS.keys() & {split})
        else:
            made.warnings.append(f"{split} could not be built: {_WHY[split]}")
    return made


def that_fit(request: Request, auto: Auto, encoder: Encoder) -> tuple[Request, list[str]]:
    """The request without built rows that are longer than the model's context, and warnings of how many."""
    splits, warnings = dict(request.splits), []
    for split in (split for split in AUTO if split in auto.splits and request.built.get(split)):
        splits[split] = tuple(r for r in request[split] if not too_long(r, encoder))
        if gone := len(request[split]) - len(splits[split]):
            warnings.append(f"{split}: {gone} built rows are longer than the context, and left out")
    return replace(request, splits=splits), warnings


_MEANS = {
    "holdout": "It is weaker than records of the same kind left out of training: its names are rarer "
    "than real ones, so membership attacks may find a difference that is none. Bring such records"
}
_WHY = {
    "forget_hard": "no forget record is a question of which another can be made",
    "neighbors": "no retain record is near the forget records, or there are too few",
    "holdout": "no forget record is a question that names its entity and has an answer to exchange",
    "utility": "other splits have all of the general questions",
}


def _neighbors(splits: Splits, auto: Auto, seed: int) -> Taken:
    """By template; where none asks the same of others (or on demand), by embedding."""
    forget, retain = splits.get("forget", ()), splits.get("retain", ())
    taken = Taken((), tuple(retain), "none")
    if auto.neighbors != "embedding":
        taken = build_neighbors(forget, retain, seed=seed)
    if not taken.neighbors and auto.neighbors != "template" and auto.encode is not None:
        taken = build_neighbors(forget, retain, seed=seed, encode=auto.encode, label=auto.label)
    return taken
