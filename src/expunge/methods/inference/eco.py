"""Embedding-corrupted prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Lt

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods.base import METHODS, Positive, Wrapper
from expunge.subjects.filters import fit_classifier
from expunge.subjects.subject import Subject
from expunge.subjects.wrappers.corrupted import Corrupted, CorruptRule
from expunge.training.workspace import Workspace


@METHODS.register(
    "eco",
    family="inference",
    erases="output",
    targets=["records", "entity", "topic"],
    access="logits",
    needs=["retain", "the embeddings"],
    cost="some 20F on forget, once; 1F per token",
    scale="single",
    source="Liu et al. 2024, arXiv 2406.07933",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class ECO(Wrapper):
    """Corrupt the embeddings of flagged prompts, so that the answer no longer comes.

    A flagged prompt's embeddings get N(0, s²) in their first d dimensions. A prompt is flagged by a logistic
    regression on its words with probability ≥ 0.99 (paper: TOFU; WMDP 0.999); all its tokens are corrupted,
    where the official code picks those that a second classifier labels (and, with none labeled, all but the
    last). s is searched without gradients, by doubling and halving, until the mean NLL of the forget answers
    is `target`: the paper takes an oracle's or a retain-level value; by default it is what these answers get
    under retain prompts, where nothing leads to them. d = 1 as in the official TOFU configuration.
    """

    threshold: Annotated[float, Gt(0), Lt(1)] = 0.99
    dims: Annotated[int, Gt(0)] = 1
    sigma: Annotated[float, Ge(0)] | None = None  # s; None: searched
    target: Positive | None = None  # nats per token
    rounds: Annotated[int, Gt(0)] = 8

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        subject.need("hidden", what="eco, which corrupts embeddings,")
        encoder = subject.encoder
        forget, retain = ([r for r in request[s] if not r.is_document] for s in ("forget", "retain"))
        if not forget or not retain:
            what = "eco tells forget prompts from retain prompts, and one side has none"
            raise DataError(Problem("forget, retain", what, "Bring questions for both"))
        prompts = [[encoder.decode(encoder.prompt_ids(r)) for r in side] for side in (forget, retain)]
        rule = CorruptRule(fit_classifier(*prompts), 1.0, self.dims, self.threshold, workspace.settings.seed)

        def nll(sigma: float) -> float:
            return _nll(Corrupted(subject, replace(rule, sigma=sigma)), forget)

        sigma = self.sigma
        if sigma is None:
            asked = [r.asked(retain[i % len(retain)].prompt) for i, r in enumerate(forget)]
            target = self.target or _nll(subject, asked)
            embeddings: Any = subject.model.get_input_embeddings()  # type: ignore[operator]
            scale = float(embeddings.weight.detach().float().square().mean().sqrt())
            sigma, reached = search(nll, target, scale, self.rounds)
            workspace.facts |= {"target": target, "reached": reached}
        flagged = [rule.classifier.score(text) >= self.threshold for text in prompts[0]]
        workspace.facts |= {"sigma": sigma, "true_positive_rate": sum(flagged) / len(flagged)}
        return Corrupted(subject, replace(rule, sigma=sigma))


def search(value: Callable[[float], float], target: float, scale: float, rounds: int) -> tuple[float, float]:
    """(s, value(s)): double s from `scale`/4 until the target is passed, then halve the bracket (of log s).

    Where twelve doublings do not pass it, the s with the largest value.
    """
    tried: dict[float, float] = {}
    for power in range(-2, 11):
        s = scale * 2.0**power
        tried[s] = value(s)
        if tried[s] >= target:
            break
    else:
        best = max(tried, key=tried.__getitem__)
        return best, tried[best]
    low, high = s / 2, s
    for _ in range(rounds):
        middle = (low * high) ** 0.5
        tried[middle] = value(middle)
        low, high = (low, middle) if tried[middle] >= target else (middle, high)
    return high, tried[high]


def _nll(subject: Subject, records: list[Record]) -> float:
    """Mean NLL per token over records."""
    evidence = score_sheet(subject, make_sheet(subject.encoder, records, "forget"))
    return float(np.mean([-row.logprobs.mean() for row in evidence if len(row.logprobs)]))
