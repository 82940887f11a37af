"""Edits: is the new answer there, there too when asked differently, and nothing else with it?

The new answer is the record's refusal variant: an edit writes the one it makes into the record. Sources: Meng
et al. 2022 (arXiv 2202.05262); token by token as in Kolbeinsson et al. 2024 (arXiv 2407.06483).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from expunge.evidence import Row
from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip, one_of

MODES = ("order", "token")

Mode = Literal["order", "token"]


def written(new: Sequence[Row], old: Sequence[Row], mode: Mode) -> float:
    """Mean over the questions: whether P(new) > P(old) per token, strictly (order); hits of new (token)."""
    if mode == "token":
        return float(np.mean([row.hits[row.answer_span].mean() for row in new]))
    pairs = zip(new, old, strict=True)
    return float(np.mean([_per_token(a) > _per_token(b) for a, b in pairs]))


def _per_token(row: Row) -> float:
    """Mean log-probability of the answer, end token out."""
    if row.num_answer == 0:
        raise Skip("empty_answer")
    return float(row.logprobs[row.answer_span].astype(np.float64).mean())


@METRICS.register("edit_efficacy", facet="forgetting", better="higher/-", unit="", scope="asked")
class EditEfficacy(RecordMetric):
    """Whether the new answer is likelier than the old one on the edited question.

    order: P(new) > P(old), geometric means over the answer, strict. token: share of new tokens that are hits.
    """

    reads: ClassVar = {"gold": ("logprobs",), "refusal": ("logprobs", "hits")}

    def __init__(self, mode: Mode = "order"):
        self.mode: Mode = one_of(self.name, "mode", mode, MODES)  # type: ignore[assignment]

    def value(self, record: RecordRows) -> float:
        return written(record.of("refusal"), [record.gold], self.mode)


@METRICS.register("edit_generalization", facet="forgetting", better="higher/-", unit="", scope="asked")
class EditGeneralization(RecordMetric):
    """Whether the new answer is likelier than the old one on paraphrases of the edited question.

    As edit_efficacy, mean over the record's paraphrased prompts.
    """

    reads: ClassVar = {
        "gold": ("logprobs",),
        "paraphrased_prompt": ("logprobs",),
        "paraphrased_refusal": ("logprobs", "hits"),
    }

    def __init__(self, mode: Mode = "order"):
        self.mode: Mode = one_of(self.name, "mode", mode, MODES)  # type: ignore[assignment]

    def value(self, record: RecordRows) -> float:
        return written(record.of("paraphrased_refusal"), record.of("paraphrased_prompt"), self.mode)


@METRICS.register("edit_locality", facet="utility", better="-/higher", unit="", scope="asked")
class EditLocality(RecordMetric):
    """Share of answer positions where the model picks the token it picked before, on what was not edited.

    Against the original's greedy tokens, right or wrong, not against gold; end token out.
    """

    reads: ClassVar = {"gold": ("greedy_ids",)}

    def value(self, record: RecordRows) -> float:
        after, before = record.gold, record.original
        if before is None:
            raise Skip("no_original")
        if len(before.greedy_ids) != len(after.greedy_ids):
            raise Skip("other_answer_tokens")
        span = after.answer_span
        return float((after.greedy_ids[span] == before.greedy_ids[span]).mean())
