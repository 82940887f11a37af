"""The request: what must go, what must stay, and what nobody may train on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from expunge.data.records import Record

__all__ = ["SPLITS", "Request", "Target", "fingerprint_records"]

SPLITS = (
    "forget",  # what must go; used by the method
    "retain",  # what must stay; used by the method
    "forget_hard",  # the forget knowledge asked differently; rows carry source_id and form
    "neighbors",  # same kind of fact, another entity; out of scope
    "calibration",  # retain-type records no method trains on; the control measures here
    "report",  # retain-type records neither trained on nor calibrated on: the report scores these
    "holdout",  # same kind, never seen by any model: the non-members
    "utility",  # general abilities
)
"""The splits every request may have. A benchmark may add its own (tofu: real_authors, world_facts), and a run
that follows others `forget_past`, what those forgot."""

Kind = Literal["records", "entity", "topic", "capability", "document", "attribute"]
Aim = Literal["erase_influence", "remove_capability"]


@dataclass(frozen=True)
class Target:
    """What the forget records stand for, and what is asked of the model."""

    kind: Kind = "records"
    aim: Aim = "erase_influence"


@dataclass(frozen=True)
class Request:
    """The splits by name, the target, and how each split was built that was not given."""

    splits: Mapping[str, tuple[Record, ...]]
    target: Target = Target()
    built: Mapping[str, str] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()  # texts a refusing method trains on; empty: expunge's own

    def __getitem__(self, split: str) -> tuple[Record, ...]:
        return self.splits.get(split, ())

    def __contains__(self, split: str) -> bool:
        return bool(self.splits.get(split))

    def __iter__(self) -> Iterator[str]:
        return (name for name, records in self.splits.items() if records)

    @property
    def forget(self) -> tuple[Record, ...]:
        return self["forget"]

    @property
    def retain(self) -> tuple[Record, ...]:
        return self["retain"]

    def fingerprint(self) -> str:
        return fingerprint_records([r for name in sorted(self) for r in self[name]])


def fingerprint_records(records: Sequence[Record]) -> str:
    """A hash of the records' content and order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record.as_dict(), sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]
