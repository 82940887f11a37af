"""Distances from the original and the oracle, in distributions and in layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, column


@METRICS.register(
    "js_to_reference", facet="utility", better="target/lower", unit="nats", needs="reference",
    scope="everywhere", profile="default",
)  # fmt: skip
class JSToReference(RecordMetric):
    """Mean Jensen–Shannon divergence from the original per answer token, end token in; at most ln 2.

    On the forget side a large value is neither good nor bad alone: the target there is the oracle's.
    """

    range = (0.0, float(np.log(2)) + 1e-6)
    columns: ClassVar = ("js_original",)

    def value(self, record: RecordRows) -> float:
        return float(column(record.gold, "js_original"))


@METRICS.register(
    "activation_distance", facet="forgetting", better="lower/-", unit="", needs="oracle",
    scope="forget", profile="default",
)  # fmt: skip
class ActivationDistance(RecordMetric):
    """Mean ‖p_u − p_r‖₂ of the probabilities of model and oracle per answer token; 0 = like the oracle.

    Of probabilities, not of logits. Source: Golatkar et al. 2021 (arXiv 2012.13431); Nguyen et al. 2022
    (arXiv 2209.02299).
    """

    range = (0.0, float(np.sqrt(2)) + 1e-6)
    columns: ClassVar = ("l2_oracle",)

    def value(self, record: RecordRows) -> float:
        return float(column(record.gold, "l2_oracle"))


class _LayerDistance(RecordMetric):
    range = (0.0, float("inf"))

    def value(self, record: RecordRows) -> float:
        return float(np.mean(column(record.gold, self.columns[0])))

    def details(self, records: Sequence[RecordRows]) -> dict[str, Any]:
        """The profile over the layers, first to last."""
        profile = np.mean([column(r.gold, self.columns[0]) for r in records], axis=0)
        return {"by_layer": {str(layer): float(v) for layer, v in enumerate(profile)}}


@METRICS.register(
    "layer_distance_to_original", facet="utility", better="target/lower", unit="", needs="reference",
    scope="everywhere", profile="deep",
)  # fmt: skip
class LayerDistanceToOriginal(_LayerDistance):
    """Mean over the layers of ‖h_u − h_o‖₂ / ‖h_o‖₂ at the answer tokens; `details` has every layer.

    On the forget side the target is the oracle's distance.
    """

    columns: ClassVar = ("layers_original",)


@METRICS.register(
    "layer_distance_to_oracle", facet="forgetting", better="lower/-", unit="", needs="oracle",
    scope="forget", profile="deep",
)  # fmt: skip
class LayerDistanceToOracle(_LayerDistance):
    """Mean over the layers of ‖h_u − h_r‖₂ / ‖h_r‖₂ at the forget answers; 0 = like the oracle.

    Two models trained apart differ in their layers by chance alone: the original's value stands beside it.
    """

    columns: ClassVar = ("layers_oracle",)
