"""How alike the model is to one that knows nothing: the same architecture with random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.measure.annotators.distances import jensen_shannon
from expunge.measure.score import per_token
from expunge.stats import seed_from
from expunge.subjects.subject import Subject, quiet

__all__ = ["random_teacher"]


def random_teacher(subject: Subject, seed: int = 0) -> Subject:
    """The subject's architecture with weights drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed_from(seed, "random teacher") % 2**63)
        model: Any = type(subject.unwrapped().model)(subject.config)
    model.to(subject.device).eval()
    return Subject(model, subject.tokenizer, subject.encoder, "random weights")


@ANNOTATORS.register("random_teacher", columns=["js_random"], splits=["forget", "forget_hard"])
@dataclass(frozen=True)
class RandomTeacher(Annotator):
    """Jensen–Shannon divergence from a random model in bits, mean over the answer; its seed is a setting."""

    seed: int = 0

    def missing(self, asked: Asked) -> str | None:
        return None if "weights" in asked.subject.unwrapped().can else "it takes the model's architecture"

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        teacher = random_teacher(asked.subject, self.seed)
        gold = [i for i, line in enumerate(asked.sheet.lines) if line.variant == "gold"]
        part = replace(asked.sheet, lines=tuple(asked.sheet.lines[i] for i in gold))

        def read(batch: Any) -> list[Any]:
            bits = jensen_shannon(asked.subject.logits(batch), teacher.logits(batch)) / math.log(2)
            return [bits.cpu().numpy()]

        rows: list[dict[str, Any]] = [{} for _ in asked.sheet.lines]
        for i, columns in zip(gold, per_token(asked.subject, part, read), strict=True):
            if columns:
                rows[i] = {"js_random": float(columns[0].astype(float).mean())}
        return rows
