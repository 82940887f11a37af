"""The cell of a leaderboard: a method with one seed on one part of a benchmark, held to every τ.

A results folder holds `bench.json` (what was asked for) and `cells/<part>--<method>--<seed>.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Asked", "AttackScore", "Cell", "CellCost", "Controlled", "CurvePoint", "Measured", "Scores"]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class Measured(Part):
    """A number with its interval over entities; None with the reason where there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""
    metric: str = ""
    split: str = ""
    better: str = Field("", description="lower, higher or target")


class Scores(Part):
    """What one model knows. Retain is the `report` split: neither trained on nor calibrated on."""

    retain: Measured = Measured()
    retain_paraphrased: Measured = Measured()
    forget: Measured = Measured()
    forget_paraphrased: Measured = Measured()
    facets: dict[str, Measured] = Field(
        {}, description="forgetting, utility, privacy, robustness, efficiency → its main score"
    )


class AttackScore(Part):
    """Recovery of an attack: 0 is the oracle (or placebo), 1 the original."""

    name: str
    recovery: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


class CellCost(Part):
    wall: float | None = Field(None, description="seconds")
    tokens: int | None = None
    flops: float | None = None
    ratio_to_retraining: float | None = None
    ratio_basis: Literal["measured", "estimated"] | None = None


class Controlled(Scores):
    """The model that ships under the bar τ."""

    tau: float
    alpha: float | None = None
    met: bool | None = Field(None, description="whether the bar held on calibration; None: no bar")
    verdict: str = ""
    worst_attack: AttackScore | None = None
    cost: CellCost = Field(CellCost(), description="of control, measuring and attacks under this τ")
    flags: list[str] = []


class CurvePoint(Part):
    """One point of the α-curve: 0 is the original, 1 what the method returned."""

    alpha: float
    retain: float | None = Field(None, description="the bar metric on calibration")
    forget: float | None = None


class Cell(Part):
    """`schema_version` rises when a field changes its meaning."""

    schema_version: Literal[1] = 1
    benchmark: str
    part: str = ""
    method: str
    settings: dict[str, Any] = Field({}, description="the method's own and train's, as they were in force")
    seed: int
    key: str = Field("", description="hash of all that decides the cell")
    status: Literal["ok", "failed"]
    reason: str = Field("", description="why it failed")
    taus: list[float] = Field([], description="asked for; `controlled` holds those that were reached")
    bar_metric: str = ""
    profile: str = Field("", description="of the audit")
    created: str = Field("", description="UTC, ISO 8601")
    expunge_version: str = ""
    environment: dict[str, str] = Field({}, description="torch, device, cpu, …")
    original_fingerprint: str = ""
    oracle_fingerprint: str = ""
    calibration_fingerprint: str = ""
    wall: float = Field(0.0, description="seconds, everything")
    attempts: int = 1
    cost: CellCost = Field(CellCost(), description="of the training alone")
    original: Scores | None = None
    oracle: Scores | None = None
    uncontrolled: Scores | None = None
    controlled: list[Controlled] = []
    curve: list[CurvePoint] = []

    def at(self, tau: float) -> Controlled | None:
        """The row of this bar, or None."""
        return next((row for row in self.controlled if row.tau == tau), None)

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.part or 'all'}--{self.method}--{self.seed}"

    @classmethod
    def read(cls, path: Path) -> Cell:
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))


class Asked(Part):
    """`bench.json`: the grid that a bench was asked for, so that what is missing can be told."""

    schema_version: Literal[1] = 1
    benchmark: str
    parts: list[str]
    methods: list[str]
    seeds: list[int]
    taus: list[float]
    profile: str = "quick"
    overrides: list[str] = []
    command: str = Field("", description="reproduces it, without paths of a machine")
