"""forget_hard of a bare forget set: every form that can be built for a record, checked for leaks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from expunge.data.builders.base import Seen
from expunge.data.builders.choice import choice, open_question
from expunge.data.builders.cloze import cloze
from expunge.data.builders.fact import is_person
from expunge.data.builders.leaks import leak_free
from expunge.data.builders.multi_hop import multi_hop
from expunge.data.builders.paraphrase import paraphrase
from expunge.data.builders.reverse import reverse, told_of
from expunge.data.builders.translation import Translator, translation
from expunge.data.builders.wording import named
from expunge.data.records import Record
from expunge.stats import seed_from

__all__ = ["FORMS", "build_hard"]

FORMS = ("paraphrase", "reverse", "cloze", "multi_hop", "choice", "open", "translation")


PEERS = 32
"""Records that ask the same of others, at most: more would tell no more of what differs."""


def build_hard(
    splits: Mapping[str, Sequence[Record]], *, seed: int = 0, translator: Translator | None = None
) -> tuple[tuple[Record, ...], str]:
    """The rows, in order of the forget records, and a note on what was built.

    A function of seed and records: their order changes the order of the rows alone.
    """
    forget = [_with_name(r) for r in splits.get("forget", ())]
    known = {name: found for name, found in splits.items() if name not in ("forget", "holdout")}
    others = [_with_name(r) for found in known.values() for r in found]  # no model was told the holdout
    seen = Seen(forget, others, seed)
    about: dict[str, list[Record]] = defaultdict(list)
    for record in seen.all:
        about[record.entity].append(record)
    told = told_of(seen.all)
    peers = {r.id: list(islice(seen.peers(r), PEERS)) for r in forget}
    choices = _choices(forget, peers, seed)
    rows: list[Record] = []
    for record in forget:
        person = bool(record.entity) and is_person(about[record.entity])
        same = peers[record.id]
        rows += [*paraphrase(record, seed), *reverse(record, same, told, person=person), *cloze(record, same)]
        rows += multi_hop(record, forget, told, lambda r: peers[r.id], seed) if person else []
        rows += [*choices[record.id], *open_question(record)]
    rows += translation(forget, translator) if translator else []
    entity = {r.id: r.entity for r in splits.get("forget", ())}
    rows = [replace(row, entity=entity[row.source_id or ""]) for row in rows]
    kept = leak_free(rows, "forget_hard", splits)
    return tuple(kept), _note(kept, len(rows) - len(kept), translated=translator is not None)


def _choices(
    forget: Sequence[Record], peers: Mapping[str, Sequence[Record]], seed: int
) -> Mapping[str, list[Record]]:
    """The choice questions by forget record; the right answer stands at every place about as often."""
    made: dict[str, list[Record]] = {}
    position = 0
    for record in sorted(forget, key=lambda r: (seed_from(seed, "position", r.id), r.id)):
        made[record.id] = choice(record, peers[record.id], position, seed)
        position += len(made[record.id])
    return made


def _with_name(record: Record) -> Record:
    """The record with the name it is about, where it does not say."""
    return record if record.entity else replace(record, entity=named(record))


def _note(rows: Sequence[Record], dropped: int, *, translated: bool) -> str:
    counts = Counter(row.form for row in rows)
    told = ", ".join(f"{counts[form]} {form.replace('_', '-')}" for form in FORMS if counts[form])
    left = f"; {dropped} left out that gave the answer away or stand elsewhere" if dropped else ""
    other = "" if translated else "; none in another language, for want of a translator"
    return f"{told or 'nothing'}, made of the forget records by templates{left}{other}"
