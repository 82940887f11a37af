"""The detector of excessive unlearning: flags for a model that was damaged rather than taught to forget.

Every threshold is relative to the original model on the same records, or is checked against it, so that the
original itself raises no flag. `utility_below_bar` is not here: the audit knows the bar. The defaults are
our own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from expunge.evidence import Evidence
from expunge.metrics import compute
from expunge.metrics.base import ModelEvidence, Score, nonfinite
from expunge.metrics.token_entropy import token_entropy

__all__ = ["ExcessFlag", "Thresholds", "excessive_unlearning", "is_refusal", "repetition"]


@dataclass(frozen=True)
class ExcessFlag:
    """One raised flag: what was seen, what was allowed, and the records concerned (empty: all)."""

    name: str
    value: float | None
    threshold: float | None
    text: str
    records: tuple[str, ...] = ()


@dataclass(frozen=True)
class Thresholds:
    """How much worse than the original is excessive."""

    perplexity_ratio: float = 1.5
    entropy_ratio: float = 0.5
    repetition_rise: float = 0.2
    refusal_rise: float = 0.05


def repetition(text: str, n: int = 4) -> float:
    """Share of word n-grams that repeat an earlier one; 0 below n words.

    >>> round(repetition("a b a b a b"), 6)
    0.333333
    """
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


_OPENERS = (
    "i don't know", "i do not know", "i'm not sure", "i am not sure", "i'm sorry", "i am sorry", "sorry",
    "i'm afraid", "i am afraid", "i can't", "i cannot", "i can not", "i'm unable", "i am unable",
    "i'm not able", "i am not able", "i won't", "i will not", "i have no information", "i don't have",
    "i do not have", "unfortunately, i", "as an ai",
)  # fmt: skip


def is_refusal(text: str, refusals: Iterable[str] = ()) -> bool:
    """Whether a text is one of the request's own refusals or opens like one (English only)."""
    plain = _plain(text)
    return plain.startswith(_OPENERS) or plain in {_plain(refusal) for refusal in refusals}


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())


def excessive_unlearning(
    model: ModelEvidence,
    original: ModelEvidence,
    oracle: ModelEvidence | None = None,
    *,
    forget: str = "forget",
    keep: str = "report",
    language: str | None = None,
    metric: str = "extraction_strength",
    attack: str = "mia_loss",
    thresholds: Thresholds | None = None,
    seed: int = 0,
) -> list[ExcessFlag]:
    """The flags that `model` raises against `original`, in the order of the table of the metrics page.

    `keep` names the split whose generations are read, `language` the one whose perplexity is (default:
    utility where there is evidence of it, else `keep`), `metric` what is compared with the oracle.
    """
    limits = thresholds or Thresholds()
    broken = _nonfinite(model)
    if broken:
        return [broken]
    language = language or ("utility" if "utility" in model else keep)
    found = [
        _language(model, original, language, limits),
        *_degenerate(model, original, keep, limits),
        _worse_than_uniform(model, original, forget),
        _beyond_oracle(model, original, oracle, forget, metric, seed),
        _auc_below_half(model, original, forget, attack, seed),
        _refuses(model, original, keep, limits),
    ]
    return [flag for flag in found if flag is not None]


def _nonfinite(model: ModelEvidence) -> ExcessFlag | None:
    records = [row.record_id for evidence in model.values() for row in evidence if nonfinite([row])]
    if not records:
        return None
    text = f"{len(records)} rows of evidence hold NaN or infinite numbers: nothing else can be said"
    return ExcessFlag("nonfinite", float(len(records)), 0.0, text, tuple(dict.fromkeys(records)))


def _language(
    model: ModelEvidence, original: ModelEvidence, split: str, limits: Thresholds
) -> ExcessFlag | None:
    ours, before = (compute("perplexity", side, split).value for side in (model, original))
    if ours is None or before is None or not ours > limits.perplexity_ratio * before:
        return None
    limit = limits.perplexity_ratio * before
    return ExcessFlag(
        "language_damaged", ours, limit, f"perplexity on {split} was {before:.4g}, is {ours:.4g}"
    )


def _generated(evidence: Evidence | None) -> dict[str, str]:
    rows = evidence.gold if evidence is not None else {}
    return {record: row.generated for record, row in rows.items() if row.generated is not None}


def _degenerate(
    model: ModelEvidence, original: ModelEvidence, split: str, limits: Thresholds
) -> list[ExcessFlag]:
    ours, before = _generated(model.get(split)), _generated(original.get(split))
    if not ours or not before:
        return []
    flags = []
    entropy, entropy_before = (
        float(np.mean([token_entropy(t) for t in texts.values()])) for texts in (ours, before)
    )
    rep, rep_before = (float(np.mean([repetition(t) for t in texts.values()])) for texts in (ours, before))
    if entropy < limits.entropy_ratio * entropy_before:
        text = f"word entropy of generated text on {split} was {entropy_before:.3f}, is {entropy:.3f}"
        flags.append(ExcessFlag("degenerate_text", entropy, limits.entropy_ratio * entropy_before, text))
    elif rep > rep_before + limits.repetition_rise:
        text = f"share of repeated 4-grams on {split} was {rep_before:.3f}, is {rep:.3f}"
        looping = tuple(r for r, t in ours.items() if repetition(t) > rep_before + limits.repetition_rise)
        flags.append(ExcessFlag("degenerate_text", rep, rep_before + limits.repetition_rise, text, looping))
    return flags


def _worse_than_uniform(model: ModelEvidence, original: ModelEvidence, split: str) -> ExcessFlag | None:
    ours, before = compute("nll", model, split), compute("nll", original, split)
    if ours.value is None or before.value is None:
        return None
    limit = math.log(next(iter(model[split])).vocab_size)
    if not ours.value > limit or before.value > limit:
        return None
    text = f"nll on {split} is {ours.value:.3f}, a uniform guess has {limit:.3f}: pushed away, not forgotten"
    worse = tuple(record for record, loss in ours.per_record.items() if loss > limit)
    return ExcessFlag("worse_than_uniform", ours.value, limit, text, worse)


def _beyond_oracle(
    model: ModelEvidence,
    original: ModelEvidence,
    oracle: ModelEvidence | None,
    split: str,
    metric: str,
    seed: int,
) -> ExcessFlag | None:
    if oracle is None:
        return None
    ours, before, target = (compute(metric, side, split, seed=seed) for side in (model, original, oracle))
    if ours.value is None or before.value is None or target.value is None:
        return None
    downward = before.value > target.value
    limit = target.low if downward else target.high
    if limit is None or not (ours.value < limit if downward else ours.value > limit):
        return None
    text = f"{metric} on {split} is {ours.value:.3f}, the oracle's interval ends at {limit:.3f}"
    return ExcessFlag("beyond_oracle", ours.value, limit, text)


def _auc_below_half(
    model: ModelEvidence, original: ModelEvidence, split: str, attack: str, seed: int
) -> ExcessFlag | None:
    ours, before = (compute(attack, side, split, seed=seed) for side in (model, original))
    # A split on which the original is below one half as well says something about the split only.
    if not _below_half(ours) or _below_half(before):
        return None
    text = f"AUC of {attack} is {ours.value:.3f}: {split} looks less seen than text the model never saw"
    return ExcessFlag("auc_below_half", ours.value, 0.5, text)


def _below_half(score: Score) -> bool:
    return score.high is not None and score.high < 0.5


def _refuses(
    model: ModelEvidence, original: ModelEvidence, split: str, limits: Thresholds
) -> ExcessFlag | None:
    ours, before = _generated(model.get(split)), _generated(original.get(split))
    if not ours or not before:
        return None
    refusals = {row.answer for side in model.values() for rows in side.of("refusal").values() for row in rows}
    refused = tuple(record for record, text in ours.items() if is_refusal(text, refusals))
    rate = len(refused) / len(ours)
    limit = sum(is_refusal(text, refusals) for text in before.values()) / len(before) + limits.refusal_rise
    if not rate > limit:
        return None
    return ExcessFlag(
        "refuses_everything", rate, limit, f"{rate:.1%} of the prompts of {split} are refused", refused
    )
