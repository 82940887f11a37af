"""Noise on the embeddings of flagged prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.data.batching import Batch
from expunge.stats import seed_from
from expunge.subjects.filters import PromptClassifier
from expunge.subjects.wrapped import WRAPPERS, Wrapped, prompts_of

__all__ = ["CorruptRule", "Corrupted"]


@dataclass(frozen=True)
class CorruptRule:
    """The noise's deviation `sigma` and `dims`; the classifier, and the probability from which it acts."""

    classifier: PromptClassifier
    sigma: float
    dims: int = 1
    threshold: float = 0.99
    seed: int = 0


@WRAPPERS.register("corrupted")
class Corrupted(Wrapped):
    """e + N(0, s²) in the first d dimensions of a flagged prompt's token embeddings; answers stay clean.

    The noise is a function of (seed, prompt), the same for scoring and generation. Strength scales s.
    """

    Rule = CorruptRule

    def noise(self, prompt: Sequence[int]) -> Tensor | None:
        """[P, d], or None for a prompt that is not flagged."""
        rule = self.rule
        if rule.classifier.score(self.encoder.decode(prompt)) < rule.threshold:
            return None
        draw = torch.Generator().manual_seed(seed_from(rule.seed, "eco", *prompt) % 2**63)
        return self.strength * rule.sigma * torch.randn(len(prompt), rule.dims, generator=draw)

    def wrapped_logits(self, batch: Batch) -> Tensor:
        noise = [self.noise(prompt) for prompt in prompts_of(batch)]
        with self._added(noise, batch.input_ids.shape[1], [0] * len(batch)):
            return self.base.logits(batch)

    def wrapped_greedy(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int,
        *, stop: Sequence[int], pad_id: int,
    ) -> list[list[int]]:  # fmt: skip
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        width = max(lengths)
        with self._added([self.noise(p) for p in prompts], width, [width - n for n in lengths]):
            return self.base.greedy(prompts, answers, length, stop=stop, pad_id=pad_id)

    @contextmanager
    def _added(self, noise: Sequence[Tensor | None], width: int, starts: Sequence[int]) -> Iterator[None]:
        """Add each row's noise from its start on, in the embeddings' first call: it holds the prompts."""
        embeddings = self.model.get_input_embeddings()  # type: ignore[operator]
        shift = torch.zeros(len(noise), width, embeddings.weight.shape[1])
        for row, (values, start) in enumerate(zip(noise, starts, strict=True)):
            if values is not None:
                shift[row, start : start + len(values), : values.shape[1]] = values

        def add(_: Any, __: Any, output: Tensor) -> Tensor:
            handle.remove()
            return output + shift.to(output)

        handle = embeddings.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()
