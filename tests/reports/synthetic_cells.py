"""Cells made up for the tests of the leaderboard: plausible in shape, true of no model."""

from __future__ import annotations

import random

from expunge.reports.leaderboard_schema import (
    Asked,
    AttackScore,
    Cell,
    CellCost,
    Controlled,
    CurvePoint,
    Measured,
    Scores,
)

METHODS = ("ga", "graddiff", "ga_kl", "idk", "npo", "rmu")
TAUS = (0.95, 0.9, 0.6)
SEEDS = (0, 1, 2)
METRIC = "extraction_strength"
RETAIN, FORGET = 0.80, 0.90  # of the original

# method → retain and forget before control, forget under each of TAUS
NUMBERS = {
    "ga": ((0.0, 0.0), (0.72, 0.60, 0.12)),
    "graddiff": ((0.30, 0.0), (0.40, 0.30, 0.05)),
    "ga_kl": ((0.22, 0.0), (0.30, 0.20, 0.02)),
    "idk": ((0.40, 0.12), (0.62, 0.55, 0.35)),
    "npo": ((0.50, 0.09), (0.45, 0.28, 0.20)),
    "rmu": ((0.0, 0.0), (0.66, 0.50, 0.30)),
}
_FACETS = {
    "forgetting": ("extraction_strength", "forget", "lower"),
    "utility": ("extraction_strength", "utility", "higher"),
    "privacy": ("mia_min_k_plus_plus", "forget", "target"),
    "robustness": ("leak_at_k", "forget", "lower"),
    "efficiency": ("share_of_retraining", "", "lower"),
}


def measured(value: float | None, width: float = 0.05, **more) -> Measured:
    if value is None:
        return Measured(reason="no_paraphrases", **more)
    return Measured(value=value, low=max(0.0, value - width), high=min(1.0, value + width), n=40, **more)


def scores(retain: float, forget: float, paraphrased: bool = True, kind: type[Scores] = Scores, **more):
    share = 0.6 if paraphrased else None
    return kind(
        retain=measured(retain, metric=METRIC, split="report"),
        forget=measured(forget, metric=METRIC, split="forget"),
        retain_paraphrased=measured(share and retain * share, metric=f"{METRIC}_paraphrase"),
        forget_paraphrased=measured(share and forget * share, metric=f"{METRIC}_paraphrase"),
        facets={
            name: measured(forget if name != "utility" else retain, metric=metric, split=split, better=better)
            for name, (metric, split, better) in _FACETS.items()
        },
        **more,
    )  # fmt: skip


def cell(method: str, seed: int, *, part: str = "forget05", noise: float = 0.01, **changes) -> Cell:
    """A finished cell; `noise` is the deviation that the seed adds."""
    chance = random.Random(f"{method} {seed} {part}")
    (retain, forget), held = NUMBERS[method]
    off = [chance.gauss(0, noise) if noise else 0.0 for _ in range(8)]
    controlled = [
        scores(
            min(1.0, RETAIN * tau + abs(off[i])), max(0.0, held[i] + off[i + 3]), kind=Controlled, tau=tau,
            alpha=max(0.0, min(1.0, 0.9 - 0.7 * tau + off[i])), met=True,
            verdict="suppressed" if held[i] < 0.3 else "not unlearned",
            worst_attack=AttackScore(name="relearn" if seed else "quantize", recovery=held[i] + 0.2,
                                     low=held[i], high=held[i] + 0.4),
            cost=CellCost(wall=12.0 + seed),
        )
        for i, tau in enumerate(TAUS)
    ]  # fmt: skip
    known = {
        "benchmark": "tofu", "part": part, "method": method, "seed": seed, "status": "ok",
        "settings": {"beta": 0.1, "train": {"lr": 1e-4, "epochs": 5, "seed": seed}},
        "key": f"{method}{seed}", "taus": list(TAUS), "bar_metric": "extraction_strength", "profile": "quick",
        "created": f"2026-11-27T22:0{seed}:00Z", "expunge_version": "0.1.0",
        "environment": {"torch": "2.13.0", "device": "cpu"}, "original_fingerprint": "a" * 16,
        "oracle_fingerprint": "b" * 16, "calibration_fingerprint": "c" * 16, "wall": 90.0,
        "cost": CellCost(wall=30.0 + seed, tokens=51_200, ratio_to_retraining=0.1, ratio_basis="measured"),
        "original": scores(RETAIN, FORGET), "oracle": scores(0.79, 0.05),
        "uncontrolled": scores(max(0.0, retain + off[6]) if retain else 0.0, forget),
        "controlled": controlled,
        "curve": [
            CurvePoint(alpha=a / 8, retain=RETAIN - (RETAIN - retain) * (a / 8) ** 2,
                       forget=None if a % 2 else FORGET - (FORGET - forget) * (a / 8) ** 0.5)
            for a in range(9)
        ],
    }  # fmt: skip
    return Cell(**{**known, **changes})


def failed(method: str, seed: int, reason: str, **changes) -> Cell:
    """A cell that never got as far as a fingerprint."""
    return Cell(
        benchmark="tofu", part="forget05", method=method, seed=seed, status="failed", reason=reason,
        taus=list(TAUS), profile="quick", expunge_version="0.1.0", attempts=2, **changes,
    )  # fmt: skip


def asked(**changes) -> Asked:
    known = {
        "benchmark": "tofu", "parts": ["forget05"], "methods": list(METHODS), "seeds": list(SEEDS),
        "taus": list(TAUS), "command": "expunge bench tofu --splits forget05 benchmark.folder=/mnt/me/tofu",
    }  # fmt: skip
    return Asked(**{**known, **changes})


def bench(**changes) -> list[Cell]:
    """All cells of six methods and three seeds."""
    return [cell(method, seed, **changes) for method in METHODS for seed in SEEDS]
