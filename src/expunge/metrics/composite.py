"""Several metrics in one number, drawn together for its interval."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from expunge.metrics.base import Metric, ModelEvidence, RecordMetric, Score
from expunge.stats import Clusters, seed_from

__all__ = ["Composite"]


class Composite(Metric):
    """A number made of others, which stay visible; not computable where one of them is not."""

    @abstractmethod
    def components(self, split: str) -> list[tuple[str, RecordMetric]]:
        """(split, metric) of each component."""

    @abstractmethod
    def combine(self, values: np.ndarray) -> np.ndarray:
        """[C, …] → […]: the number from the components' values, and its bootstrap draws."""

    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        scores = [m.score(model, name, original=original, seed=seed) for name, m in self.components(split)]
        missing = [f"{s.split}.{s.metric} ({s.reason})" for s in scores if s.value is None]
        if missing:
            return self.not_computable(split, "component " + ", ".join(missing))
        values = {f"{s.split}.{s.metric}": float(s.value or 0.0) for s in scores}
        details: dict[str, Any] = {
            "components": values,
            "arithmetic_mean": float(np.mean(list(values.values()))),
            "zero_components": [name for name, value in values.items() if value == 0],
        }
        low = high = None
        clusters = [self._clusters(model, s, seed) for s in scores]
        if all(c.count > 1 for c in clusters):
            draws = [self._draws(model, s, c) for s, c in zip(scores, clusters, strict=True)]
            fewest = min(clusters, key=lambda c: c.effective)
            with np.errstate(divide="ignore"):
                low, high = fewest.ends(self.combine(np.array(draws)))
        with np.errstate(divide="ignore"):
            # A harmonic mean of float sums may leave [0, 1] by a rounding.
            value = min(max(float(self.combine(np.array(list(values.values())))), 0.0), 1.0)
        flags = tuple(dict.fromkeys(flag for s in scores for flag in s.flags))
        records = {(s.split, record) for s in scores for record in s.per_record}
        readers = {k: v for s in scores for k, v in s.settings.items() if k in ("encoder", "judge")}
        return Score(
            self.name, split, value, low, high, len(records), self.better(split), self.unit,
            flags=flags, settings={**self.settings, **readers}, details=details,
        )  # fmt: skip

    def _clusters(self, model: ModelEvidence, score: Score, seed: int) -> Clusters:
        """The entities of one component's split; the same are drawn for all components of it."""
        evidence = model[score.split]
        return Clusters(evidence.entities(sorted(evidence.gold)), seed_from(seed, self.name, score.split))

    def _draws(self, model: ModelEvidence, score: Score, clusters: Clusters) -> np.ndarray:
        ids = sorted(model[score.split].gold)
        present = np.array([i in score.per_record for i in ids], dtype=float)
        return clusters.ratio(np.array([score.per_record.get(i, 0.0) for i in ids]), present)
