"""SISA: isolated models that answer together; a deletion retrains those that saw the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.methods.base import METHODS
from expunge.methods.exact.sharded import Sharded
from expunge.subjects.subject import Subject
from expunge.subjects.wrappers.ensemble import together
from expunge.training.shards import Shards


@METHODS.register(
    "sisa",
    family="exact",
    erases="influence",
    targets=["records", "entity", "document", "topic", "attribute"],
    access="weights",
    needs=["training in shards before the request"],
    cost="1/S of retraining",
    scale="single",
    source="Bourtoule et al. 2019, arXiv 1912.03817",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class SISA(Sharded):
    """Isolated models on disjoint shards answer together; those that saw the records train again.

    A shard learns R slices, slice r for 2e/(R+1) epochs together with those before it, and after a deletion
    goes on from its weights before the first slice that changed: about 1/S of retraining, two thirds of that
    with many slices. `aggregate`: `mixture` (the paper's mean of prediction vectors: what one shard knows
    outweighs what the others guess), `logprob` (mean log-probability) or majority `vote`.
    """

    aggregate: Literal["mixture", "logprob", "vote"] = "mixture"

    def serve(self, shards: Shards) -> Subject:
        return together(shards.members(), self.aggregate)
