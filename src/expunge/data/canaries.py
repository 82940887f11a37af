"""Planted canaries: secrets of a known format, to measure how much of them a model remembers.

A canary is a record whose `keywords` name its secret; every digit of the secret stands for any digit, so the
candidates that a model must tell it from can be enumerated, or drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.data.records import Record
from expunge.errors import DataError, Problem
from expunge.stats import seed_from

__all__ = ["FORM", "candidates", "is_canary", "num_candidates", "plant"]

FORM = "canary"


def plant(
    names: Sequence[str],
    *,
    prompt: str = "What is the access number of {name}?",
    answer: str = "{secret}",
    format: str = "###-###",
    seed: int = 0,
) -> list[Record]:
    """One canary per name: `#` in `format` is a digit drawn from the seed, uniformly and independently.

    >>> record = plant(["Wren Hollis"], format="##")[0]
    >>> num_candidates(record), record.form
    (100, 'canary')
    """
    if "#" not in format or "{secret}" not in answer:
        what = "a canary's format needs a # for each digit, its answer the word {secret}"
        raise DataError(Problem("canary", what, 'As in format="###-###", answer="{secret}"'))
    records = []
    for name in names:
        digits = np.random.default_rng(seed_from(seed, "canary", name)).integers(0, 10, format.count("#"))
        secret = _filled(format, digits)
        records.append(
            Record(
                f"canary-{seed_from(seed, name) % 10**8:08d}",
                name,
                prompt.format(name=name),
                answer.format(secret=secret),
                keywords=(secret,),
                form=FORM,
            )
        )
    return records


def is_canary(record: Record) -> bool:
    return record.form == FORM and len(record.keywords) == 1 and _digits(record) > 0


def num_candidates(record: Record) -> int:
    """|C| = 10 to the number of digits of the secret."""
    return 10 ** _digits(record)


def candidates(record: Record, limit: int = 1000, seed: int = 0) -> tuple[list[str], bool]:
    """Answers with other secrets of the same format, and whether they are all there are.

    Up to `limit` are enumerated; above it as many are drawn without replacement.
    """
    secret = record.keywords[0]
    format = "".join("#" if c.isdigit() else c for c in secret)
    own = int("".join(c for c in secret if c.isdigit()))
    size = num_candidates(record)
    if size - 1 <= limit:
        numbers = [n for n in range(size) if n != own]
    else:
        rng = np.random.default_rng(seed_from(seed, "candidates", record.id))
        drawn: dict[int, None] = {}
        while len(drawn) < limit:
            drawn.update(dict.fromkeys(int(n) for n in rng.integers(0, size, limit) if n != own))
        numbers = list(drawn)[:limit]
    width = _digits(record)
    told = [_filled(format, [int(c) for c in f"{n:0{width}d}"]) for n in numbers]
    return [record.answer.replace(secret, other) for other in told], len(numbers) == size - 1


def _digits(record: Record) -> int:
    return sum(c.isdigit() for c in record.keywords[0]) if record.keywords else 0


def _filled(format: str, digits: Sequence[int] | np.ndarray) -> str:
    left = iter(digits)
    return "".join(str(int(next(left))) if c == "#" else c for c in format)
