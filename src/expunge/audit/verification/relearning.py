"""Relearning: does it learn the forgotten facts no faster than a model that never saw them?"""

from __future__ import annotations

from dataclasses import dataclass

from expunge.audit.facts import DORMANT, is_timed
from expunge.audit.scorecard import CheckRow
from expunge.audit.verification.base import CHECKS, Check, Seen
from expunge.errors import NotComputable


@CHECKS.register("relearning", aim="erase_influence", source="Golatkar et al. 2020, arXiv 1911.04933")
@dataclass(frozen=True)
class Relearning(Check):
    """Does it relearn the forget set no faster than the oracle?

    Failed below half of the oracle's steps, or where the area under the curve exceeds the oracle's by more
    than ε (the same line as the verdict's); read at the fastest configuration against the oracle's own.
    """

    def verify(self, seen: Seen) -> CheckRow:
        rows = [r for r in seen.attacks if is_timed(r) and r.worst and r.baseline == "oracle"]
        rows = [r for r in rows if r.ain is not None or r.excess_area is not None]
        if not rows:
            raise NotComputable("no relearning curve beside an oracle's")
        row = rows[0]
        fast = row.ain is not None and row.ain < DORMANT
        more = row.excess_area is not None and row.excess_area > seen.epsilon
        steps = "not comparable" if row.ain is None else f"{row.ain:.2f} of the oracle's"
        area = "" if row.excess_area is None else f", area {row.excess_area:+.3f} beside the oracle's"
        name = f"attack {row.attack}/forget/controlled"
        return self.row(not (fast or more), f"Steps to half recovery: {steps}{area}.", [name],
                        value=row.ain, bound=DORMANT)  # fmt: skip
