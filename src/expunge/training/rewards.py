"""Rewards of sampled answers, each in [0, 1]: silent about what must go, right about what must stay, fluent.

Two ways to win such a game without learning it are closed: an answer that says nothing earns nothing, and one
that repeats itself or never ends earns less (`fluency`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.data.near import words
from expunge.data.records import Record
from expunge.data.vague import proper_names
from expunge.metrics.rouge import rouge

__all__ = [
    "Grade", "Match", "Phrase", "advantages", "clipped_gain", "correctness", "count_leaks", "fluency",
    "forget_words", "k3", "quantile_levels", "silence", "word_facts",
]  # fmt: skip

Match = Literal["words", "rouge"]
Grade = Literal["graded", "binary"]
Phrase = tuple[str, ...]
"""One forget word, or several that stand together, as `data.near.words` spells them."""

RARE = 0.1
"""Words in at most this share of all answers are rare (two answers always are)."""

ROUGE_LEAK = 0.5
"""ROUGE-L recall from which an answer counts as a leak where rewards are binary."""


# What must not be said --------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def forget_words(
    forget: tuple[Record, ...], retain: tuple[Record, ...] = ()
) -> Mapping[str, tuple[Phrase, ...]]:
    """By record id, what gives its fact away: its `keywords`, else the content words of its answer.

    Content words: capitalized within a sentence, with a digit in them, or rare among all answers (and of four
    letters at least). A word of the question is none: whoever asks has said it. Where nothing is left, every
    word of the answer that the question lacks counts, and at last every word.
    """
    spread = Counter(word for r in (*forget, *retain) for word in set(words(r.answer)))
    rare = max(2.0, RARE * (len(forget) + len(retain)))
    found = {}
    for record in forget:
        listed = [tuple(words(keyword)) for keyword in record.keywords]
        found[record.id] = tuple(
            dict.fromkeys(p for p in listed if p) or ((w,) for w in _content(record, spread, rare))
        )
    return found


def _content(record: Record, spread: Mapping[str, int], rare: float) -> Iterable[str]:
    names = {w for name in proper_names(record.answer) for w in words(name)}
    asked = set(words(record.prompt))
    every = dict.fromkeys(words(record.answer))
    new = [w for w in every if w not in asked]
    telling = [
        w for w in new if w in names or any(c.isdigit() for c in w) or (len(w) > 3 and spread[w] <= rare)
    ]
    return telling or new or every


def word_facts(found: Mapping[str, Sequence[Phrase]], forget: Sequence[Record]) -> dict[str, Any]:
    """Of the forget words, what a report may show: how many, and a mark that tells two lists apart.

    The mark hashes the lists together with the records they are from: nobody can test single words on it.
    """
    content = json.dumps([[r.as_dict() for r in forget], sorted(found.items())], sort_keys=True)
    mark = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {"records": len(found), "words": sum(map(len, found.values())), "mark": mark}


def count_leaks(text: str, phrases: Iterable[Phrase]) -> int:
    """How often a text says one of the phrases, in whole words and in any case.

    >>> count_leaks("TARN, not Tarnish: old mill.", [("tarn",), ("old", "mill")])
    2
    """
    said = words(text)
    return sum(tuple(said[i : i + len(p)]) == p for p in phrases for i in range(len(said)))


# Rewards ----------------------------------------------------------------------------------------------


def silence(
    text: str,
    record: Record,
    phrases: Sequence[Phrase],
    *,
    match: Match = "words",
    grade: Grade = "graded",
    tau: float = 1.0,
) -> float:
    """1 without a leak. `words`: exp(−count/τ); `rouge`: 1 − ROUGE-L recall; `binary`: 0 for any leak."""
    if match == "rouge":
        overlap = float(rouge("rougeL", record.answer, text).recall)
        return 1 - overlap if grade == "graded" else float(overlap < ROUGE_LEAK)
    count = count_leaks(text, phrases)
    return math.exp(-count / tau) if grade == "graded" else float(count == 0)


def correctness(text: str, record: Record) -> float:
    """ROUGE-L F of the text and the answer: neither leaving out nor talking on is right."""
    return float(rouge("rougeL", record.answer, text).fmeasure)


def fluency(ids: Sequence[int], text: str, *, ended: bool) -> float:
    """0 without a word; else the share of distinct runs of four tokens, half of it if the answer never ended.

    Repetition as in Welleck et al. 2019 (arXiv 1908.04319), seq-rep-4; the half is ours.
    """
    if not words(text):
        return 0.0
    runs = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    distinct = len(set(runs)) / len(runs) if runs else 1.0
    return distinct if ended else distinct / 2


# What to make of them ---------------------------------------------------------------------------------


def advantages(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """(r − mean)/(std + ε) within each group, [..., G], std the *population's*; exactly 0 for equal rewards.

    >>> [round(a, 6) for a in advantages(torch.tensor([1.0, 0.0, 1.0, 1.0])).tolist()]
    [0.577217, -1.731651, 0.577217, 0.577217]
    """
    from_first = rewards.double() - rewards[..., :1].double()  # equal rewards: zeros before any rounding
    centered = from_first - from_first.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True).sqrt() + eps)


def clipped_gain(logp: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(ρ A, clip(ρ, 1−ε, 1+ε) A) per token with ρ = p/p_old (Schulman et al. 2017, arXiv 1707.06347)."""
    ratio = (logp - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """p_ref/p − log(p_ref/p) − 1 per token: never negative, its mean over samples of p is KL(p‖p_ref)."""
    gap = reference - logp
    return gap.exp() - gap - 1


def quantile_levels(rewards: Tensor, count: int) -> Tensor:
    """The quantile of each reward among all of them, 0 (worst) to count − 1; NaN, not yet drawn: 0.

    Equal rewards share the best quantile any of them reaches; the lowest reward is always in quantile 0, so
    that answers that do not differ are not called good.
    """
    flat = rewards.flatten().double()
    drawn = flat[~flat.isnan()].sort().values
    if not len(drawn):
        return torch.zeros_like(rewards, dtype=torch.long)
    below = torch.searchsorted(drawn, flat.nan_to_num(-math.inf), right=True)
    level = -(-count * below // len(drawn)) - 1
    return torch.where(flat > drawn[0], level, torch.zeros_like(level)).reshape(rewards.shape)
