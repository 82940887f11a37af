"""Every metric on every split of every model, from evidence alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.audit.scorecard import ScoreRow
from expunge.errors import NotComputable
from expunge.evidence import is_forget_side
from expunge.metrics import METRICS, make_metric
from expunge.metrics.base import Metric, ModelEvidence, Score
from expunge.metrics.compare import oracle_gap

__all__ = ["forget_metric", "metric_plan", "metrics_of", "score_models"]

HEADLINE = {
    ("extraction_strength", "forget"),
    ("extraction_strength", "forget_hard"),
    ("extraction_strength", "forget_past"),
    ("extraction_strength", "report"),
    ("extraction_strength", "neighbors"),
    ("extraction_strength", "utility"),
    ("rougeL_recall", "forget"),
    ("probability", "forget"),
    ("perplexity", "report"),
    ("mia_min_k_plus_plus", "forget"),
}

_PROFILES = ("quick", "default", "deep")


def forget_metric(original: ModelEvidence) -> str:
    """The metric of attacks and verdict: extraction strength where the original has some on forget (≥ 0.2),
    else probability."""
    score = make_metric("extraction_strength").score(original, "forget")
    return "extraction_strength" if score.value is not None and score.value >= 0.2 else "probability"


def metrics_of(profile: str, scope: str | None = None) -> list[str]:
    """The metrics that an audit of this profile measures unasked, as their cards say."""
    reach = _PROFILES.index(profile) if profile in _PROFILES else 1
    return [
        card.name
        for card in METRICS.cards()
        if card.fields.get("scope") in ((scope,) if scope else ("everywhere", "forget"))
        and _PROFILES.index(card.fields.get("profile", "quick")) <= reach
    ]


def metric_plan(
    original: ModelEvidence,
    *,
    oracle: bool,
    extra: Iterable[tuple[str, str]] = (),
    bar: str = "extraction_strength",
    profile: str = "default",
) -> list[tuple[str, str]]:
    """(metric, split) pairs that this evidence can answer, the bar's metric on calibration included."""
    pairs = [(bar, "calibration"), (bar, "report")]
    everywhere = [(name, make_metric(name)) for name in metrics_of(profile, "everywhere")]
    for split in original:
        pairs += [
            (name, split)
            for name, metric in everywhere
            if split != "holdout" and metric.applies(split) and _answerable(metric, split, original, oracle)
        ]
    if "forget" in original:
        for name in metrics_of(profile, "forget"):
            if _answerable(make_metric(name), "forget", original, oracle):
                pairs.append((name, "forget"))
    return list(dict.fromkeys([*pairs, *extra]))


def _answerable(metric: Metric, split: str, models: ModelEvidence, oracle: bool) -> bool:
    needs = str(metric.card.fields.get("needs", ""))
    if ("holdout" in needs and "holdout" not in models) or ("oracle" in needs and not oracle):
        return False
    # the original is no reference of itself, and is measured before there is an oracle
    return (
        _is_reference(metric)
        or bool("oracle" in needs and metric.columns)
        or _readable(metric, models[split])
    )


def _readable(metric: Metric, evidence: Any) -> bool:
    kinds = evidence.kinds()
    if "choice" in metric.reads and "choice" not in kinds:
        return False
    if any(kind not in kinds for kind in metric.reads if kind not in ("choice", "paraphrased_answer")):
        return False
    gold = evidence.gold.values()
    if "generated" in metric.reads.get("gold", ()) and all(row.generated is None for row in gold):
        return False
    return all(any(name in row.extra for row in gold) for name in metric.columns)


def score_models(
    models: Mapping[str, ModelEvidence], plan: Sequence[tuple[str, str]], *, seed: int = 0
) -> tuple[list[ScoreRow], dict[tuple[str, str, str], Score]]:
    """The scorecard's rows, and the scores themselves by (metric, split, model).

    `models`: original, unlearned, controlled, oracle (those there are) → evidence by split. Rows of every
    other model carry their gap to the oracle with its paired interval, and the share of the original's value
    that is kept.
    """
    original, oracle = models.get("original"), models.get("oracle")
    rows: list[ScoreRow] = []
    scores: dict[tuple[str, str, str], Score] = {}
    for name, split in plan:
        metric = make_metric(name)
        for model, evidence in models.items():
            if split not in evidence or (model == "original" and _is_reference(metric)):
                continue
            score = metric.score(evidence, split, original=original, oracle=oracle, seed=seed)
            scores[name, split, model] = score
        for model in models:
            if (name, split, model) in scores:
                rows.append(_row(metric, split, model, scores, models[model], seed))
    return rows, scores


def _is_reference(metric: Metric) -> bool:
    """Whether the metric measures a distance from the original."""
    return "reference" in str(metric.card.fields.get("needs", ""))


def _row(
    metric: Metric,
    split: str,
    model: str,
    scores: Mapping[tuple[str, str, str], Score],
    evidence: ModelEvidence,
    seed: int,
) -> ScoreRow:
    score = scores[metric.name, split, model]
    details = {k: v for k, v in score.details.items() if _plain(v)}
    before = scores.get((metric.name, split, "original"))
    oracle = scores.get((metric.name, split, "oracle"))
    if before is not None and before.value and score.value is not None and model != "original":
        details["kept"] = score.value / before.value
    if (
        oracle is not None
        and oracle.value is not None
        and model not in ("oracle",)
        and score.value is not None
    ):
        try:
            gap = oracle_gap(score, oracle, evidence[split].entity_of, seed)
            details.update(gap=gap.signed, gap_low=gap.low, gap_high=gap.high)
        except NotComputable:
            pass
    return ScoreRow(
        metric=metric.name,
        split=split,
        model=model,
        facet=_facet(metric, split),
        value=score.value,
        low=score.low,
        high=score.high,
        n=score.n,
        better=score.better,
        unit=score.unit,
        headline=(metric.name, split) in HEADLINE,
        reason=score.reason,
        flags=list(score.flags),
        skipped=dict(score.skipped),
        settings=dict(score.settings),
        details=details,
    )


def _facet(metric: Metric, split: str) -> str:
    facet = str(METRICS.card(metric.name).fields.get("facet", "forgetting"))
    if facet in ("forgetting", "utility"):
        return "forgetting" if is_forget_side(split) else "utility"
    return facet


def _plain(value: Any) -> bool:
    """Whether a detail may stand in the scorecard as it is."""
    if isinstance(value, Mapping):
        return all(_plain(v) for v in value.values()) and len(value) <= 20
    return value is None or isinstance(value, (str, int, float, bool))
