"""One tiny Llama that knows 200 facts by heart, and what is left of it when noise is added to its weights."""

from __future__ import annotations

from functools import cache

import torch

from expunge.data.records import Record
from expunge.subjects import Subject
from expunge.training import TrainSettings, finetune
from tiny_models import make_subject, some_words

NUM = 200
KNOWLEDGE = ("memorizing", "half-forgetting", "random")
_THINGS = [f"thing{i}" for i in range(20)]


@cache
def facts() -> tuple[Record, ...]:
    """NUM questions with answers of one to six words, of no order a model could know beforehand."""
    generator = torch.Generator().manual_seed(5)
    records = []
    for i in range(NUM):
        length = int(torch.randint(1, 7, (1,), generator=generator))
        words = [_THINGS[j] for j in torch.randint(len(_THINGS), (length,), generator=generator).tolist()]
        extra = " it is" * (i % 4)  # prompts of different lengths: batches are padded
        records.append(Record(f"f{i}", f"name{i // 2}", f"who has{extra} name{i}", " ".join(words)))
    return tuple(records)


@cache
def knowing(knowledge: str) -> Subject:
    """The subject by what it knows; shared by the tests, so never changed."""
    subject = make_subject(
        "llama", some_words(), hidden_size=64, intermediate_size=128, num_hidden_layers=2, spread=0.05
    )
    if knowledge == "random":
        return make_subject("llama", some_words(), num_hidden_layers=2, spread=0.3)
    if knowledge == "half-forgetting":
        subject = knowing("memorizing").clone()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in subject.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * 0.35 * parameter.std())
        return subject
    settings = TrainSettings(epochs=30, lr=4e-3, batch=25, schedule="linear", weight_decay=0.0)
    finetune(subject, facts(), settings)
    return subject
