"""The controlled model beside the oracle on the forget set: can the two be told apart at all?"""

from __future__ import annotations

from collections.abc import Mapping

from expunge.audit.epsilon import epsilon_estimate
from expunge.audit.permutation import permutation_test
from expunge.audit.scorecard import Indistinguishable
from expunge.errors import NotComputable
from expunge.metrics import compute
from expunge.metrics.base import ModelEvidence

__all__ = ["beside_the_oracle"]

DELTA = 0.01


def beside_the_oracle(
    models: Mapping[str, ModelEvidence], metric: str, entities: Mapping[str, str], seed: int = 0
) -> Indistinguishable | None:
    """A permutation test on `metric`, and a lower bound on ε from the loss; None without an oracle."""
    if "oracle" not in models:
        return None
    ours, theirs = (dict(compute(metric, models[m], "forget").per_record) for m in ("controlled", "oracle"))
    try:
        found = permutation_test(ours, theirs, entities, seed)
    except NotComputable:
        return None
    words = "" if found.can_reject(two_sided=True) else "With so few entities the test cannot reject at 5 %."
    made = Indistinguishable(
        metric=metric, difference=found.statistic, p_value=found.p, entities=found.entities,
        smallest_p=found.smallest_two_sided, text=words,
    )  # fmt: skip
    ours, theirs = (dict(compute("nll", models[m], "forget").per_record) for m in ("controlled", "oracle"))
    try:
        bound = epsilon_estimate(ours, theirs, DELTA, entities=entities, seed=seed)
    except NotComputable:
        return made
    return made.model_copy(update={"epsilon": bound.value, "limit": bound.limit, "delta": bound.delta})
