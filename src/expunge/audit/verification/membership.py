"""Membership: is the forget set told from data nobody saw, in either direction?"""

from __future__ import annotations

from dataclasses import dataclass

from expunge.audit.scorecard import CheckRow
from expunge.audit.verification.base import CHECKS, Check, Seen
from expunge.errors import NotComputable

MARGIN = 0.1


@CHECKS.register("membership", aim="erase_influence", source="Hayes et al. 2024, arXiv 2403.01218")
@dataclass(frozen=True)
class Membership(Check):
    """Does every membership attack see the forget set as it does in the oracle?

    AUC against the oracle's (½ without one), two-sided: below the target is a trace as well. Failed where the
    whole interval of some attack lies farther from the target than the margin; passed where the interval of
    every attack stays within it.
    """

    margin: float = MARGIN

    def verify(self, seen: Seen) -> CheckRow:
        found = {
            name: score
            for (name, split, model), score in seen.scores.items()
            if name.startswith("mia_")
            and split == "forget"
            and model == "controlled"
            and score.value is not None
        }
        if not found:
            raise NotComputable("no membership attack was computed; it takes a holdout")
        far = {name: _nearest(score, self.margin) for name, score in found.items()}
        worst = max(found, key=lambda name: abs(float(found[name].value or 0) - _target(found[name])))
        score, target = found[worst], _target(found[worst])
        within = all(_farthest(s) <= self.margin for s in found.values())
        failed = sorted(name for name, outside in far.items() if outside)
        passed = False if failed else True if within else None
        text = f"{worst} has an AUC of {score.value:.3f}, its target is {target:.3f}"
        text += f"; outside for certain: {', '.join(failed)}." if failed else "."
        rows = [f"{name}/forget/controlled" for name in sorted(found)]
        return self.row(passed, text, rows, value=score.value, bound=target)


def _target(score) -> float:
    return float(score.details.get("target", 0.5))


def _ends(score) -> tuple[float, float]:
    value = float(score.value)
    return (value if score.low is None else score.low, value if score.high is None else score.high)


def _nearest(score, margin: float) -> bool:
    """Whether the whole interval is farther from the target than the margin."""
    low, high = _ends(score)
    return low > _target(score) + margin or high < _target(score) - margin


def _farthest(score) -> float:
    return max(abs(end - _target(score)) for end in _ends(score))
