"""The linear probe: what a classifier reads from the states of a layer."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from expunge.data.records import Record
from expunge.errors import NotComputable
from expunge.explain.readout.logistic import choose_ridge, fit_logistic
from expunge.explain.states import all_layers, check_layers, row_states
from expunge.stats import seed_from
from expunge.subjects.subject import Subject

__all__ = ["ProbeScore", "probe_scores"]

Ask = Literal["auto", "answer", "token"]


class _Example(NamedTuple):
    record: Record
    row: int  # the record's row of states
    place: int  # which of the row's states
    relation: str
    label: str


@dataclass(frozen=True)
class ProbeScore:
    """`selectivity` = accuracy − control, the control being the same probe taught permuted labels."""

    ask: Ask  # answer or token
    accuracy: float
    control: float
    chance: float  # the best constant guess within each relation
    count: int  # examples tested
    unseen: int  # examples whose label no training record has: not tested
    per_record: dict[str, float]  # record id → share of its examples that were right

    @property
    def selectivity(self) -> float:
        return self.accuracy - self.control


def probe_scores(
    subject: Subject,
    train: Sequence[Record],
    test: Sequence[Record],
    layers: Collection[int] | None = None,
    *,
    ask: Ask = "auto",
    seed: int = 0,
    controls: int = 3,
) -> dict[int, ProbeScore]:
    """{layer: how well a multinomial logistic regression fitted on `train` answers `test`}; −1: embeddings.

    `answer`: from the state at the last prompt token to the answer (its entity's name taken out), among those
    of the same relation (the prompt without the entity). `token`: from each state that predicts an answer
    token to that token, for answers that no other record has. `auto`: the answer where training records have
    those of at least half of the tested ones. Entities that are tested are never trained on; the ridge
    constant is chosen by five folds of entities. Control task: Hewitt and Liang 2019 (arXiv 1909.03368),
    here labels permuted within their relation, mean of `controls` probes. On unlearned models: Łucki et al.
    2024 (arXiv 2409.18025). Raises NotComputable where no tested label is known from training.
    """
    chosen = all_layers(subject, embeddings=True) if layers is None else check_layers(subject, layers)
    tested = {record.entity for record in test if record.entity}
    train = [r for r in train if r.entity not in tested and not r.is_document]
    test = [r for r in test if not r.is_document]
    ask = _asked(train, test) if ask == "auto" else ask
    known, held = _examples(subject, train, ask), _examples(subject, test, ask)
    labels = {e.label for e in known}
    usable = [e for e in held if e.label in labels]
    if not usable or len(labels) < 2:
        raise NotComputable("training records of other entities share no answer with the tested ones")
    at: Literal["prompt", "answer"] = "prompt" if ask == "answer" else "answer"
    states = [
        row_states(subject, [subject.encoder.encode(r) for r in some], chosen, at) for some in (train, test)
    ]
    found = {}
    for layer in chosen:
        x, probed = (
            np.stack([rows[e.row][layer][e.place].double().cpu().numpy() for e in examples])
            for rows, examples in zip(states, (known, usable), strict=True)
        )
        hits, control = _probed(x, known, probed, usable, seed, controls)
        found[layer] = ProbeScore(
            ask, float(hits.mean()), control, _chance(known, usable), len(usable),
            len(held) - len(usable), _by_record(usable, hits),
        )  # fmt: skip
    return found


def _probed(
    x: np.ndarray, known: list[_Example], probed: np.ndarray, usable: list[_Example], seed: int, controls: int
) -> tuple[np.ndarray, float]:
    """(which tested examples a probe gets right, the mean accuracy of probes taught permuted labels)"""
    labels, truth = np.array([e.label for e in known]), np.array([e.label for e in usable])
    ridge = choose_ridge(x, labels, [e.record.entity or e.record.id for e in known], seed)
    hits = fit_logistic(x, labels, ridge)(probed) == truth
    relations = np.array([e.relation for e in known])
    means = []
    for nth in range(controls):
        permuted = labels.copy()
        draw = np.random.default_rng(seed_from(seed, "probe control", nth))
        for relation in np.unique(relations):
            places = np.flatnonzero(relations == relation)
            permuted[places] = labels[draw.permutation(places)]
        means.append((fit_logistic(x, permuted, ridge)(probed) == truth).mean())
    return hits, float(np.mean(means))


def _relation(record: Record) -> str:
    """What a prompt asks, without whom it asks about."""
    return _without(record.prompt, record.entity)


def _without(text: str, entity: str) -> str:
    """Lower case, single blanks, the entity's name left out."""
    text = re.sub(re.escape(entity.strip()), " ", text, flags=re.IGNORECASE) if entity.strip() else text
    return " ".join(text.casefold().split())


def _label(record: Record) -> str:
    return f"{_relation(record)} = {_without(record.answer, record.entity)}"


def _asked(train: Sequence[Record], test: Sequence[Record]) -> Literal["answer", "token"]:
    known = {_label(record) for record in train}
    return "answer" if 2 * sum(_label(record) in known for record in test) >= len(test) else "token"


def _examples(subject: Subject, records: Sequence[Record], ask: Ask) -> list[_Example]:
    if ask == "answer":
        return [_Example(r, i, 0, _relation(r), _label(r)) for i, r in enumerate(records)]
    return [
        _Example(record, i, place, "", str(token))
        for i, record in enumerate(records)
        for place, token in enumerate(subject.encoder.encode(record).answer_ids)
    ]


def _chance(known: Sequence[_Example], usable: Sequence[_Example]) -> float:
    """Accuracy of the commonest training label of each relation."""
    best: dict[str, str] = {}
    for relation in {e.relation for e in known}:
        labels = [e.label for e in known if e.relation == relation]
        best[relation] = max(sorted(set(labels)), key=labels.count)
    return float(np.mean([best[e.relation] == e.label for e in usable]))


def _by_record(usable: Sequence[_Example], hits: np.ndarray) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for example, hit in zip(usable, hits, strict=True):
        found.setdefault(example.record.id, []).append(float(hit))
    return {record: float(np.mean(values)) for record, values in found.items()}
