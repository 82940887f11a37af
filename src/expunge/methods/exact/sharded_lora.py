"""One adapter per shard over a frozen base; a deletion retrains the adapters that saw the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.data.request import Request
from expunge.methods.base import METHODS
from expunge.methods.exact.sharded import Count, Sharded
from expunge.progress import say
from expunge.subjects.subject import Subject
from expunge.subjects.wrappers.ensemble import together
from expunge.training.exact import Start
from expunge.training.finetune import finetune
from expunge.training.shards import Shards
from expunge.training.workspace import LoraSettings, Workspace


@METHODS.register(
    "sharded_lora",
    family="exact",
    erases="influence",
    targets=["records", "entity", "document", "topic", "attribute"],
    access="weights",
    needs=["training in shards before the request", "a model from before exposure"],
    cost="1/S of retraining the adapters",
    scale="single",
    source="Chowdhury et al. 2024, arXiv 2406.16257",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class ShardedLora(Sharded):
    """One LoRA per shard over a frozen base; those that saw the records train again without them.

    Exact as far as the base is clean. Without a `base` it is fresh weights, taught first the `public` records
    that nobody will ask to forget. `aggregate`: θ = θ_base + Σ_s (α/r)·B_s A_s / S (`mean`), or without the
    division (`sum`: shards know different things): plain weights, which mix and ship like the original's; or
    an ensemble as in `sisa`. The paper's variant, a block of layers per slice, is left out: slices resume.
    """

    splits: tuple[str, ...] = ("retain", "calibration", "report", "neighbors")
    public: tuple[str, ...] = ("utility",)
    rank: Count = 16
    aggregate: Literal["mean", "sum", "logprob", "mixture", "vote"] = "mean"

    def adapter(self) -> LoraSettings:
        return LoraSettings(rank=self.rank, alpha=None)

    def start(self, subject: Subject, request: Request, workspace: Workspace) -> Start:
        start = super().start(subject, request, workspace)
        public = [record for split in self.public for record in request[split]]
        if self.base is not None:
            return start
        if not public:
            say("sharded_lora: no `base` and no public records, adapters over random weights learn little")
            return start
        finetune(start.subject, public, workspace.settings, name="the base, on public records")
        return start._replace(reason=f"{start.reason} and public records ({', '.join(self.public)})")

    def serve(self, shards: Shards) -> Subject:
        if self.aggregate == "mean" or self.aggregate == "sum":
            return shards.merged(self.aggregate)
        return together(shards.members(), self.aggregate)
