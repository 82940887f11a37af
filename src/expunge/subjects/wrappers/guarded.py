"""Filters before and behind a model, and an instruction in front of every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from expunge.data.batching import Batch
from expunge.data.records import Record
from expunge.subjects.filters import Phrases, PromptClassifier
from expunge.subjects.wrapped import WRAPPERS, Reprompted, answers_of, prompts_of

__all__ = ["EPSILON", "GuardRule", "Guarded"]

EPSILON = 1e-4
"""What a refusal leaves to all other tokens together, so that no log-probability is infinite."""


@dataclass(frozen=True)
class GuardRule:
    """What is refused, and how. None: no such filter."""

    refusal: str = "I do not know."
    instruction: str = ""
    keywords: Phrases | None = None
    classifier: PromptClassifier | None = None
    threshold: float = 0.9
    output: Phrases | None = None


@WRAPPERS.register("guarded")
class Guarded(Reprompted):
    """Refuses a prompt with a keyword or a high score, and an answer with a phrase that must not be said.

    A refused row scores as a refusal whatever answer is forced: at answer position t the distribution is
    1 − ε on the refusal's token t (its end token from there on) and ε/(V − 1) on each other. An answer filter
    reads whole answers: a forced answer that it would stop is refused from its first token. At strength s a
    prompt must score 1 − s·(1 − threshold); a keyword scores 1.
    """

    Rule = GuardRule
    drafts = False

    def reprompt(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        return self.with_text(self.rule.instruction, prompt) if self.rule.instruction else prompt

    @cached_property
    def refusal_ids(self) -> tuple[int, ...]:
        """The refusal as an answer, end token included."""
        return self.encoder.encode(Record("", "", "?", self.rule.refusal)).answer_ids

    def refuses(self, prompt: Sequence[int], answer: Sequence[int] = ()) -> bool:
        """Whether this prompt is refused, or this answer to it."""
        text, rule = self.encoder.decode(prompt), self.rule
        score = rule.classifier.score(text) if rule.classifier else 0.0
        if rule.keywords and rule.keywords.found_in(text):
            score = 1.0
        if score and score >= 1 - self.strength * (1 - rule.threshold):
            return True
        return bool(rule.output and answer and rule.output.found_in(self.encoder.decode(answer)))

    def wrapped_logits(self, batch: Batch) -> Tensor:
        logits = super().wrapped_logits(batch)
        asked = zip(prompts_of(batch), answers_of(batch), strict=True)
        refused = torch.tensor([self.refuses(*row) for row in asked], device=self.device)[batch.row]
        if not refused.any():
            return logits
        starts = batch.attention_mask.sum(1) - batch.num_tokens
        said = torch.tensor(self.refusal_ids, device=self.device)
        places = (batch.col + 1 - starts[batch.row]).clamp(max=len(said) - 1)
        silent = torch.full_like(logits, EPSILON / (logits.shape[1] - 1)).log()
        silent.scatter_(1, said[places][:, None], torch.log1p(torch.tensor(-EPSILON)).item())
        return torch.where(refused[:, None], silent, logits)

    def wrapped_greedy(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int,
        *, stop: Sequence[int], pad_id: int,
    ) -> list[list[int]]:  # fmt: skip
        """The whole answer is made before it is judged; what has been said of it already is then left out."""
        begun = max(map(len, answers), default=0)
        fresh: list[list[int]] = [[] for _ in prompts]
        open_ = [i for i, prompt in enumerate(prompts) if not self.refuses(prompt)]
        while open_:
            room = length + begun - max(len(fresh[i]) for i in open_)
            asked, so_far = [prompts[i] for i in open_], [fresh[i] for i in open_]
            new = super().wrapped_greedy(asked, so_far, room, stop=stop, pad_id=pad_id)
            for i, more in zip(open_, new, strict=True):
                fresh[i] += more
            open_ = [i for i in open_ if len(fresh[i]) < length + begun and not set(fresh[i]) & set(stop)]
        found = []
        for prompt, answer, text in zip(prompts, answers, fresh, strict=True):
            ends = [k for k, token in enumerate(text) if token in stop]
            text = text[: ends[0] + 1] if ends else text
            final = list(self.refusal_ids) if not text or self.refuses(prompt, text) else text
            found.append((final + list(stop[:1]) * (length + begun))[len(answer) : len(answer) + length])
        return found
