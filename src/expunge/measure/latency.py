"""How long a token takes to decode, by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from expunge.data.records import Record
from expunge.subjects.subject import Subject

__all__ = ["Latency", "latency_per_token"]


class Latency(NamedTuple):
    """Seconds per token of greedy decoding, one row at a time: the median, the least and the number timed."""

    median: float
    least: float
    tokens: int


def latency_per_token(
    subject: Subject, records: Sequence[Record], *, tokens: int = 32, prompts: int = 5
) -> Latency:
    """Decode `tokens` tokens after each of the first prompts; the first is decoded once more to warm up.

    A measurement, not a result: it depends on the machine and on what else runs there. Compressions are
    simulated in the model's own dtype, so this is what the simulation takes, not what a kernel would.
    """
    encoder = subject.encoder
    asked = [encoder.prompt_ids(record) for record in records[:prompts]]
    room = min(tokens, *(encoder.max_length - len(ids) for ids in asked))
    if room < 1:
        raise ValueError("no prompt leaves room for a token")
    times = []
    for ids in (asked[0], *asked):
        _wait(subject)
        began = time.perf_counter()
        subject.greedy([ids], [[]], room, stop=(), pad_id=encoder.pad_id)
        _wait(subject)
        times.append((time.perf_counter() - began) / room)
    return Latency(statistics.median(times[1:]), min(times[1:]), room * len(asked))


def _wait(subject: Subject) -> None:
    if subject.device.type == "cuda":
        torch.cuda.synchronize(subject.device)
