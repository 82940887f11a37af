"""The words a report uses for the names in a scorecard, for readers who do not know them."""

from __future__ import annotations

from typing import Literal

from expunge.attacks import ATTACKS
from expunge.audit.scorecard import Scorecard, ScoreRow
from expunge.metrics.base import METRICS

__all__ = [
    "FACETS",
    "MODELS",
    "metric_summary",
    "model_meaning",
    "plain",
    "reason",
    "split_meaning",
    "verdict_meaning",
]

MODELS = ("original", "unlearned", "controlled", "oracle")
FACETS = ("forgetting", "utility", "privacy", "robustness", "efficiency")

Tone = Literal["good", "caution", "bad"]
_VERDICTS: dict[str, tuple[Tone, str]] = {
    "exact": ("good", "The forget records never influenced these weights, and this was checked by replay."),
    "robust under audit": ("good", "Nothing that this audit tried brought the knowledge back."),
    "suppressed": (
        "caution",
        "The model no longer says it, but a small change to its weights brings some of it back.",
    ),
    "output-only": (
        "caution",
        "The knowledge is still in the model; only what it says by default has changed.",
    ),
    "collapsed": ("bad", "The model is too damaged for its silence to count as forgetting."),
    "not unlearned": ("bad", "The model that would ship still gives away what it should have forgotten."),
    "not resolved": ("caution", "This audit could not decide; the reasons stand below."),
}

_SPLITS = {
    "forget": "what must go",
    "forget_hard": "what must go, asked differently",
    "forget_held_out": "held-out queries: the same entities, asked what no method was given",
    "forget_hidden": "hidden forget data: target that nobody listed, among what is kept",
    "forget_past": "what earlier requests forgot",
    "retain": "what must stay; used in training",
    "report": "what must stay; never trained or calibrated on",
    "calibration": "what must stay; the control measures here",
    "neighbors": "near the border, out of scope",
    "holdout": "same kind, never seen by any model",
    "utility": "general abilities",
    "real_authors": "facts about real authors",
    "world_facts": "general world facts",
}

_MODELS = {
    "original": "before unlearning",
    "unlearned": "what the method returned, before control",
    "controlled": "after control; this one ships",
    "oracle": "never saw the forget set",
}

_REASONS = {
    "empty_split": "the split has no records",
    "nonfinite_evidence": "the model gave values that are not numbers",
    "no_oracle": "there is no oracle to compare with",
    "no_holdout": "there are no holdout records",
    "few_clusters": "fewer than 40 entities: the interval is widened for it, and rough",
    "one_cluster": "one entity only: no interval",
    "lexical_encoder": "compared by shared letters, not by meaning: no encoder was given",
    "lexical_judge": "judged by shared words, not by meaning: no judge of entailment was given",
    "truncated": "some answers were longer than the context and were cut",
    "no_effect": "the method changed nothing that this metric sees",
    "excessive_unlearning": "damaged beyond what was asked",
    "calibration_did_not_generalize": "the bar holds on calibration but not on the report records",
}

AIMS = {
    "erase_influence": "As if the model had never seen the records: more than the oracle knows and less are "
    "both traces.",
    "remove_capability": "The model can no longer tell or do it, whichever records taught it.",
}

_ACRONYMS = {name.lower(): name for name in ("MIA", "AUC", "KL", "TPR", "FPR", "KS")}

THREATS = {
    "query": "text in, text out",
    "logprob": "text in, text and probabilities out",
    "fine-tune": "may train the model further",
    "white-box": "has the weights",
}


def verdict_meaning(word: str) -> tuple[Tone, str]:
    """Tone and one plain sentence for a verdict."""
    return _VERDICTS[word]


def split_meaning(split: str) -> str:
    return _SPLITS.get(split, "")


def model_meaning(model: str) -> str:
    return _MODELS[model]


def plain(name: str) -> str:
    """A registered name as words.

    >>> plain("extraction_strength"), plain("mia_loss_auc")
    ('extraction strength', 'MIA loss AUC')
    """
    return " ".join(_ACRONYMS.get(word, word) for word in name.split("_"))


def reason(code: str) -> str:
    """Why a number is missing or marked, in words; unknown codes are shown as they are, made readable.

    >>> reason("empty_split"), reason("every_record_skipped: no_choice, empty_answer")
    ('the split has no records', 'every record was skipped: no choice, empty answer')
    """
    if not code:
        return "not measured"
    head, separator, rest = code.partition(": ")
    if head == "every_record_skipped":
        head = "every record was skipped"
    return f"{_REASONS.get(head, head if ' ' in head else plain(head))}{separator}{plain(rest)}"


def metric_summary(name: str) -> str:
    """First docstring line of a registered metric, or nothing."""
    return next((card.summary for card in METRICS.cards() if card.name == name), "")


def attack_budget(name: str) -> str:
    """What an attack spends, in the words of its card, or nothing."""
    return next((str(c.fields.get("budget", "")) for c in ATTACKS.cards() if c.name == name), "")


def direction(row: ScoreRow) -> tuple[str, str]:
    """Sign and words for the better direction of a row: ("↓", "lower is better")."""
    if row.better == "target":
        target = row.details.get("target")
        return ("→", "best at a target") if target is None else (f"→ {target:.3f}", f"best at {target:.3f}")
    return ("↓", "lower is better") if row.better == "lower" else ("↑", "higher is better")


def bar_sentence(scorecard: Scorecard) -> str:
    """What the user asked to keep, in one sentence."""
    if not scorecard.control:
        return "No bar was stated: nothing was controlled."
    first = scorecard.control[0]
    side = "at least" if first.better == "higher" else "no worse than"
    return f"Keep {side} {first.tau:.0%} of the original's {plain(first.metric)} on calibration records."
