"""Who has what: a four-layer Llama that knows two dozen facts, and facts planted in one known block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from tests.tiny_models import make_subject, some_words

from expunge.data.records import Record
from expunge.explain.record_gradients import block_parameters
from expunge.subjects import Subject
from expunge.training import TrainSettings, finetune
from expunge.training.gradients import answer_rows, differentiable, row_losses


def fact(i: int, j: int) -> Record:
    return Record(f"r{i}", f"name{i}", f"who has name{i}", f"thing{j}")


KNOWN = [fact(i, (7 * i) % 16) for i in range(16)]
PLANTED = [fact(30 + i, (5 * i + 3) % 16) for i in range(3)]


OTHERWISE = [record.asked(f"it is {record.entity}") for record in KNOWN]
ASKED_OTHERWISE = OTHERWISE[:4]
"""Never taught in these words: the others were."""


def blank(layers: int = 4, seed: int = 0, **config) -> Subject:
    shape = {"hidden_size": 48, "intermediate_size": 96, **config}
    return make_subject(
        tokenizer=some_words(40, 16), num_hidden_layers=layers, seed=seed, spread=0.0, **shape
    )


@cache
def knowing() -> Subject:
    subject = blank()
    settings = TrainSettings(steps=100, lr=5e-3, batch=28, weight_decay=0.0)
    finetune(subject, [*KNOWN, *OTHERWISE[4:]], settings)
    return subject


@cache
def planted(layer: int) -> Subject:
    """The same model, of which one block's MLP alone was taught three more facts."""
    work = knowing().clone()
    names = [name for name in block_parameters(work.model)[layer] if ".mlp." in name]
    rows = answer_rows(work, [*PLANTED, *KNOWN])
    with differentiable(work, names) as chosen:
        weights = list(chosen.values())
        optimizer = torch.optim.Adam(weights, lr=3e-3)
        for _ in range(60):
            loss = row_losses(work, rows).mean()
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
    return work


@torch.no_grad()
def nll(subject: Subject, records: Sequence[Record]) -> float:
    return float(row_losses(subject, answer_rows(subject, records)).mean())
