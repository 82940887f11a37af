"""The scorecard: everything a report shows, and the documented schema of `scorecard.json`.

Written once by the `score` stage; the reports compute nothing, they only draw it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AimRow",
    "AlphaPoint",
    "AttackRow",
    "CheckRow",
    "ControlRecord",
    "CostRow",
    "CurvePoint",
    "Flag",
    "Indistinguishable",
    "RecordRow",
    "ScopeRow",
    "ScoreRow",
    "Scorecard",
    "SplitInfo",
    "TauRow",
    "TrainingPoint",
    "Verdict",
]

Facet = Literal["forgetting", "utility", "privacy", "robustness", "efficiency"]
ModelName = Literal["original", "unlearned", "controlled", "oracle"]
"""`unlearned` is what the method returned, before control; `controlled` is the model that ships."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class SplitInfo(Part):
    """One split of the request."""

    name: str
    records: int
    entities: int
    built: str | None = Field(None, description="how it was built, where the user did not bring it")
    fingerprint: str


class ScoreRow(Part):
    """One metric on one split of one model."""

    metric: str
    split: str
    model: ModelName
    facet: Facet
    value: float | None = Field(description="None: not computable, see `reason`")
    low: float | None = None
    high: float | None = None
    n: int = 0
    better: str = Field(description="lower, higher or target (details.target)")
    unit: str = ""
    headline: bool = Field(False, description="shown on the first page")
    reason: str = ""
    flags: list[str] = []
    skipped: dict[str, int] = {}
    settings: dict[str, Any] = {}
    evidence: str = Field("", description="the file in the run folder that it was computed from")
    details: dict[str, Any] = {}


class ScopeRow(Part):
    """One cell of the scope, by one metric: inside or outside the request, easy or hard to tell."""

    cell: Literal["in, easy", "in, hard", "out, hard", "out, easy"]
    split: str
    form: str | None = Field(None, description="of forget_hard; None: all of the split")
    metric: str
    model: ModelName
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    better: str
    reason: str = ""


class AlphaPoint(Part):
    """One point of the α-curve: α = 0 is the original, 1 what the method returned."""

    alpha: float
    metric: str
    split: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0


class TauRow(Part):
    tau: float
    alpha: float | None
    calibration: float | None = None
    report: float | None = None
    forget: float | None = None
    forget_hard: float | None = None


class ControlRecord(Part):
    """How the shipped α was found (one per run and metric)."""

    control: str
    metric: str
    better: str
    tau: float
    original_value: float | None
    unlearned_value: float | None = None
    bar: float | None
    alpha: float | None
    value: float | None = Field(None, description="the metric on calibration at the shipped α")
    bracket: tuple[float, float] | None = None
    probes: list[tuple[float, float | None, int]] = Field([], description="(α, value, number of records)")
    monotone: bool = True
    max_feasible_seen: float | None = None
    alpha_interval: tuple[float, float] | None = None
    warnings: list[str] = []
    calibration_fingerprint: str = ""
    original_fingerprint: str = ""
    unlearned_fingerprint: str = ""
    dtype: str = ""
    passes: int = 0


class AttackRow(Part):
    """One configuration of one attack, on the same metric and split for every model."""

    attack: str
    config: dict[str, Any] = {}
    threat: Literal["query", "logprob", "fine-tune", "white-box"]
    kind: Literal["weights", "prompts", "decoding", "read-out"]
    injects: str = Field(description="nothing, format, related facts or the answer")
    line: float | None = Field(None, description="recovery above it counts as a leak; None: ε")
    metric: str
    split: str
    direct: float | None = Field(None, description="the controlled model before the attack")
    original: float | None = None
    controlled: float | None = None
    oracle: float | None = None
    baseline: Literal["oracle", "placebo"] = "oracle"
    leakage: float | None = Field(None, description="controlled − oracle (or placebo), both attacked")
    recovery: float | None = Field(
        None, description="leakage / (original − oracle), all attacked; 1 = all came back"
    )
    low: float | None = Field(None, description="95 % interval of `recovery`")
    high: float | None = None
    worst: bool = Field(False, description="the worst configuration of its attack")
    steps_to_recover: dict[str, int | None] = Field(
        {}, description="model → first measured step halfway to the original; None: not within the budget"
    )
    excess_area: float | None = Field(None, description="relearn_area minus the oracle's")
    ain: float | None = None
    n: int = 0
    reason: str = Field("", description="why `recovery` is not computable")
    evidence: str = Field("", description="the file in the run folder that it was computed from")
    details: dict[str, Any] = {}


class CurvePoint(Part):
    """The attacked metric after some steps of a relearning attack."""

    attack: str
    config: str
    model: ModelName
    step: int
    value: float | None


class TrainingPoint(Part):
    """One logged optimizer step; `terms` are the losses by name."""

    step: int
    epoch: float
    terms: dict[str, float] = {}
    lr: float
    grad_norm: float | None = None
    active: float | None = Field(None, description="share of forget rows or tokens where a control binds")
    calibration: float | None = None


class RecordRow(Part):
    """One record before and after. `entity` is a keyed hash unless `show_text`."""

    id: str
    entity: str
    split: str
    form: str | None = None
    values: dict[str, dict[str, float | None]] = Field(
        description="model → {extraction_strength, exact_memorization, probability, rougeL_recall}"
    )
    leaks: bool = Field(False, description="the controlled model still gives more of it away than the oracle")
    prompt: str | None = None
    answer: str | None = None
    generated: dict[str, str] | None = Field(None, description="model → what it says")


class Flag(Part):
    """One flag of the excessive-unlearning detector."""

    name: str
    model: ModelName
    value: float | None = None
    threshold: float | None = None
    text: str = ""


class CheckRow(Part):
    """One verification: a question about the forgetting, answered yes, no or not at all."""

    name: str
    question: str
    aim: str = Field(description="what it speaks for: erase_influence or remove_capability")
    passed: bool | None = Field(description="None: not asked, or not resolved; `text` says why")
    text: str
    value: float | None = None
    bound: float | None = Field(None, description="what `value` is held against")
    low: float | None = None
    high: float | None = None
    evidence: list[str] = Field([], description="the rows it rests on: metric/split/model, or the attack")


class AimRow(Part):
    """One of the two things an unlearning may be for, judged apart from the other."""

    aim: Literal["erase_influence", "remove_capability"]
    asked: bool = Field(description="whether the request asked for it")
    word: Literal["shown", "not shown", "not resolved"]
    decided_by: str
    reasons: list[str] = []


class Indistinguishable(Part):
    """How far the controlled model is from the oracle on the forget set, by tests over whole entities."""

    metric: str
    difference: float = Field(description="controlled − oracle, mean over records")
    p_value: float = Field(description="two-sided, entities' signs flipped")
    smallest_p: float = Field(description="the least p that this many entities can give")
    entities: int
    epsilon: float | None = Field(None, description="a lower bound on ε, from a threshold on the loss")
    limit: float | None = Field(None, description="the ε that perfect separation would show here")
    delta: float | None = None
    text: str = ""


class Verdict(Part):
    """One word with its reasons, from the worst case over the attacks of a named profile, after control."""

    word: Literal[
        "exact",
        "robust under audit",
        "suppressed",
        "output-only",
        "collapsed",
        "not unlearned",
        "not resolved",
    ]
    sentence: str
    reasons: list[str] = []
    modifiers: list[str] = Field([], description="over-unlearned, neighbor damage, over-refusal, …")
    decided_by: str = Field("", description="the measurement that decided")
    epsilon: float = 0.10
    tau: float = 0.95
    profile: str = "default"
    oracle: str = Field("none", description="retrained, given, none (placebo)")
    attacks: list[str] = []
    missing: list[str] = Field([], description="attacks of the full tier-1 list that were not run")
    worst_attack: str | None = None
    worst_recovery: float | None = None
    direct_residual: float | None = None
    records: int = 0


class CostRow(Part):
    stage: str
    wall: float = Field(description="seconds")
    flops: float | None = Field(None, description="estimate, see the metrics page")
    peak_memory: float | None = Field(None, description="bytes, resident set")
    tokens: int | None = None
    cached: bool = False


class Scorecard(Part):
    """Everything a report shows. `schema_version` rises when a field changes its meaning."""

    schema_version: Literal[1] = 1
    name: str = Field(description="name of the run")
    created: str = Field(description="UTC, ISO 8601")
    expunge_version: str
    profile: str
    method: str | None = Field(None, description="None: an audit of a foreign model")
    method_summary: str = ""
    controls: list[str] = []
    target: dict[str, str] = {}
    requirements: dict[str, float] = Field(
        {}, description="name → bar the user set, e.g. forget_above_oracle"
    )
    missed: list[str] = Field([], description="requirements that were not met, in words")
    recipe: dict[str, Any] = {}
    splits: list[SplitInfo] = []
    models: dict[str, dict[str, Any]] = Field(
        {},
        description="original, unlearned, controlled, oracle → "
        "{fingerprint, parameters, dtype, moved_fraction, …}",
    )
    scores: list[ScoreRow] = []
    scope: list[ScopeRow] = Field([], description="the four cells, scored apart")
    control: list[ControlRecord] = []
    alpha_curve: list[AlphaPoint] = []
    tau_sweep: list[TauRow] = []
    attacks: list[AttackRow] = []
    relearning: list[CurvePoint] = []
    training: list[TrainingPoint] = []
    records: list[RecordRow] = []
    flags: list[Flag] = []
    verdict: Verdict
    aims: list[AimRow] = Field([], description="influence erasure and capability removal, apart")
    checks: list[CheckRow] = Field([], description="the verification suite")
    indistinguishable: Indistinguishable | None = Field(None, description="None: there is no oracle")
    cost: list[CostRow] = []
    ratio_to_retraining: float | None = None
    ratio_basis: Literal["measured", "estimated"] | None = None
    ratio_of_flops: float | None = Field(
        None, description="arithmetic of unlearning over retraining's, estimated"
    )
    provenance: dict[str, Any] = Field({}, description="versions, seeds, fingerprints, machine kind")
    limits: list[str] = Field([], description="what this result does not show")
    warnings: list[str] = []
    shows_text: bool = False

    def score(self, metric: str, split: str, model: str) -> ScoreRow | None:
        """The row of this metric, split and model, or None."""
        for row in self.scores:
            if (row.metric, row.split, row.model) == (metric, split, model):
                return row
        return None

    @classmethod
    def read(cls, path: Path) -> Scorecard:
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
