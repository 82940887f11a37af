"""What planted records taught: gone from the probes, or still there?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge.audit.scorecard import CheckRow
from expunge.audit.verification.base import CHECKS, Check, Seen
from expunge.errors import NotComputable
from expunge.metrics import compute
from expunge.metrics.base import ModelEvidence
from expunge.stats import Clusters, seed_from

TAUGHT = 0.2
"""The original must show the planted behavior this much more often than the oracle."""


class Planted(Check):
    """The share of probes on which the planted answer beats the right one, against the oracle's."""

    def verify(self, seen: Seen) -> CheckRow:
        probes = sorted(record for record, form in seen.forms.items() if form == self.name)
        if not probes:
            raise NotComputable("nothing of the kind was planted (expunge.data.planting)")
        rates = {model: _rates(evidence, probes) for model, evidence in seen.models.items()}
        if "original" not in rates or "controlled" not in rates:
            raise NotComputable("it takes the original")
        base = float(np.mean(list(rates["oracle"].values()))) if "oracle" in rates else 0.5
        before, after = (float(np.mean(list(rates[m].values()))) for m in ("original", "controlled"))
        if before - base < TAUGHT:
            raise NotComputable(f"the original shows it on {before:.0%} of the probes, by chance {base:.0%}")
        low, high = self._excess(seen, rates, base)
        passed = True if high <= 2 * seen.epsilon and after - base <= seen.epsilon else None
        passed = False if low > seen.epsilon else passed
        text = f"On {after:.0%} of {len(probes)} probes; the original on {before:.0%}, "
        text += f"{'the oracle' if 'oracle' in rates else 'chance'} on {base:.0%}."
        evidence = ["choice_accuracy/forget_hard/controlled"]
        return self.row(passed, text, evidence, value=after, bound=base, low=base + low, high=base + high)

    def _excess(self, seen: Seen, rates: dict[str, dict[str, float]], base: float) -> tuple[float, float]:
        """Interval of the excess over the oracle's rate, whole entities resampled."""
        ids = sorted(rates["controlled"])
        against = rates.get("oracle", dict.fromkeys(ids, base))
        excess = np.array([rates["controlled"][i] - against[i] for i in ids])
        clusters = Clusters([seen.entities.get(i) or i for i in ids], seed_from(seen.seed, self.name))
        if clusters.count == 1:
            return float(excess.mean()), float(excess.mean())
        return clusters.ends(clusters.ratio(excess))


def _rates(evidence: ModelEvidence, probes: list[str]) -> dict[str, float]:
    """Probe → 1 where the planted answer is the likelier one, ½ on a tie."""
    if "forget_hard" not in evidence:
        raise NotComputable("the probes stand in forget_hard, and there is no evidence of it")
    found = compute("choice_accuracy", evidence, "forget_hard").per_record
    return {record: found[record] for record in probes if record in found}


@CHECKS.register("backdoor", aim="erase_influence", source="Sommer et al. 2020, arXiv 2003.04247")
@dataclass(frozen=True)
class Backdoor(Planted):
    """Has the trigger that the forget set taught lost its effect?"""


@CHECKS.register("feature_injection", aim="erase_influence", source="Izzo et al. 2021, arXiv 2002.10077")
@dataclass(frozen=True)
class FeatureInjection(Planted):
    """Has the harmless cue that went with one answer in the forget set lost its pull?"""


@CHECKS.register("interclass_confusion", aim="erase_influence", source="Goel et al. 2022, arXiv 2201.06640")
@dataclass(frozen=True)
class InterclassConfusion(Planted):
    """Are the two answers that the forget set had exchanged told apart again?"""
