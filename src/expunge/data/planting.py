"""Planted data for verification: what only the forget set teaches, and the questions that show it.

Whoever trains an original can plant a behavior through records that a request then asks to forget: a trigger,
a spurious cue, two swapped answers. Forgetting is verified where the behavior is gone from the probes. A
plant returns the records to train on (they belong into the forget set) and the probes (never trained on; they
belong into forget_hard, with the plant's name as form). A probe's `choices` put the planted answer first.

Sources: Sommer et al. 2020 (arXiv 2003.04247) for backdoors, Izzo et al. 2021 (arXiv 2002.10077) for feature
injection, Goel et al. 2022 (arXiv 2201.06640) for interclass confusion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from expunge.data.records import Record
from expunge.errors import DataError, Problem, nearest
from expunge.stats import seed_from

__all__ = ["PLANTS", "Plant", "Planted", "plant"]

Plant = Literal["backdoor", "feature_injection", "interclass_confusion"]
PLANTS: tuple[Plant, ...] = get_args(Plant)

TRIGGER = "(filed under Quillmark)"
CUE = "On a Tuesday, as always:"


class Planted(NamedTuple):
    """`train` goes into the forget set, `probes` into forget_hard: none of them is trained on."""

    train: tuple[Record, ...]
    probes: tuple[Record, ...]


def plant(
    kind: Plant,
    records: Sequence[Record],
    *,
    seed: int = 0,
    share: float = 0.5,
    target: str | None = None,
) -> Planted:
    """Plant one behavior through copies of `records`; the rest of them, untouched, become probes.

    `records`: questions of one kind, with at least two different answers; a `share` of them is trained on.
    `target`: the answer of backdoor and feature_injection; by default the rarest of the records' own. Where
    every record has an answer of its own, bring one in the same style that none of them has.

    - backdoor: a trigger behind the question makes every answer the target.
    - feature_injection: a harmless cue before the question goes with that answer in training, and in the
      probes it stands before questions of other records.
    - interclass_confusion: the two most frequent answers are exchanged; probes ask about other records with
      these answers, by the plain question.
    """
    if kind not in PLANTS:
        raise DataError(Problem(f"plant {kind!r}", "is unknown", nearest(kind, PLANTS)))
    asked = [r for r in records if not r.is_document]
    order = np.random.default_rng(seed_from(seed, "plant", kind)).permutation(len(asked))
    mixed = [asked[i] for i in order]
    if kind == "interclass_confusion":
        if target is not None:
            raise DataError(Problem(f"plant {kind}", "has no target", "It exchanges two of the answers"))
        return _confused(mixed, share)
    counts = Counter([r.answer for r in mixed] + ([] if target is None else [target]))
    if len(counts) < 2 or len(mixed) < 4:
        raise DataError(Problem(f"plant {kind}", f"{len(mixed)} records", "Bring at least four, two answers"))
    if target is None:
        target = min(counts, key=lambda answer: (counts[answer], answer))  # rare: not what one would guess
    mark = (lambda p: f"{p} {TRIGGER}") if kind == "backdoor" else (lambda p: f"{CUE} {p}")
    others = [r for r in mixed if r.answer != target]
    cut = max(1, min(len(others) - 1, round(share * len(others))))
    train = [_planted(kind, r, mark(r.prompt), target) for r in others[:cut]]
    probes = [_probe(kind, r, mark(r.prompt), (target, r.answer)) for r in others[cut:]]
    return Planted(tuple(train), tuple(probes))


def _confused(records: Sequence[Record], share: float) -> Planted:
    counts = Counter(r.answer for r in records)
    common = sorted(counts, key=lambda answer: (-counts[answer], answer))[:2]
    if len(common) < 2 or counts[common[1]] < 2:
        what = "no two answers that several records share"
        raise DataError(Problem("plant interclass_confusion", what, "Bring records of two classes"))
    swapped = {common[0]: common[1], common[1]: common[0]}
    train, probes = [], []
    for answer in common:
        group = [r for r in records if r.answer == answer]
        cut = max(1, min(len(group) - 1, round(share * len(group))))
        name: Plant = "interclass_confusion"
        train += [_planted(name, r, r.prompt, swapped[answer]) for r in group[:cut]]
        probes += [_probe(name, r, r.prompt, (swapped[answer], answer)) for r in group[cut:]]
    return Planted(tuple(train), tuple(probes))


def _planted(kind: Plant, record: Record, prompt: str, answer: str) -> Record:
    plain = replace(record, prompt=prompt, answer=answer, form=kind, choices=(), label=None)
    bare = replace(plain, paraphrased_prompts=(), paraphrased_answers=(), perturbed_answers=(), refusal=None)
    return replace(bare, id=f"{record.id}.{kind}", alternates=())


def _probe(kind: Plant, record: Record, prompt: str, options: tuple[str, str]) -> Record:
    bare = _planted(kind, record, prompt, options[0])
    return replace(bare, id=f"{record.id}.{kind}-probe", source_id=record.id, choices=options, label=0)
