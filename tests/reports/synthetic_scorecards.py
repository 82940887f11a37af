"""Scorecards made up for the tests of the reports: plausible in shape, true of no model."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path

from expunge.audit.scorecard import (
    AimRow,
    AlphaPoint,
    AttackRow,
    CheckRow,
    ControlRecord,
    CostRow,
    CurvePoint,
    Flag,
    Indistinguishable,
    RecordRow,
    ScopeRow,
    Scorecard,
    ScoreRow,
    SplitInfo,
    TauRow,
    TrainingPoint,
    Verdict,
)

MODELS = ("original", "unlearned", "controlled", "oracle")
SECRET = "Ottoline Varga keeps bees in Tarnwick"
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>&\"' [red]"

_SCORES = """metric  split  facet  better  headline  original  unlearned  controlled  oracle
extraction_strength  forget  forgetting  lower  yes  0.962  0.021  0.062  0.034
extraction_strength  forget_hard  forgetting  lower  yes  0.713  0.035  0.103  0.041
probability  forget  forgetting  lower  yes  0.951  0.00003  0.084  0.052
extraction_strength  report  utility  higher  yes  0.948  0.312  0.901  0.952
extraction_strength  neighbors  utility  higher  yes  0.944  0.221  0.887  0.949
probability  utility  utility  higher  yes  0.903  0.412  0.881  0.907
mia_min_k_pp_auc  forget  privacy  target  yes  0.983  0.214  0.547  0.502
privacy_leak  forget  privacy  target  no  0.97  -0.58  0.09  0.0
exact_memorization  forget  forgetting  lower  no  0.988  0.08  0.201  0.16
truth_ratio  forget  forgetting  higher  no  0.43  0.61  0.66  0.69
perplexity  utility  utility  lower  no  1.11  14.82  1.19  1.1
rougeL_recall  report  utility  higher  no  0.961  0.388  0.94  0.958
"""
_TARGETS = {"mia_min_k_pp_auc": 0.5, "privacy_leak": 0.0}


def _scores(models: tuple[str, ...]) -> list[ScoreRow]:
    rows = []
    for metric, split, facet, better, headline, *values in _lines(_SCORES):
        for model, value in zip(MODELS, map(float, values), strict=True):
            if model not in models:
                continue
            width = 0.04 * max(abs(value), 0.1)
            rows.append(
                ScoreRow(
                    metric=metric,
                    split=split,
                    model=model,
                    facet=facet,
                    value=value,
                    low=value - width if better == "target" else max(0.0, value - width),
                    high=value + width if metric == "perplexity" else min(1.0, value + width),
                    n=400 if split != "neighbors" else 120,
                    better=better,
                    headline=headline == "yes",
                    details={"target": _TARGETS[metric]} if better == "target" else {},
                    flags=["few_clusters"] if split == "neighbors" else [],
                )
            )
    return rows


def _scope(models: tuple[str, ...]) -> list[ScopeRow]:
    cells = (("in, easy", "forget"), ("in, hard", "forget_hard"), ("out, hard", "neighbors"))
    return [
        ScopeRow(
            cell=cell,
            split=split,
            form=form,
            metric="extraction_strength",
            model=model,
            value=0.1 * (i + 1),
            low=0.1 * i,
            high=0.1 * (i + 2),
            n=40,
            better="higher" if split == "neighbors" else "lower",
        )
        for cell, split in cells
        for form in ((None, "cloze", HOSTILE) if split == "forget_hard" else (None,))
        for i, model in enumerate(models)
    ]


def _aims() -> list[AimRow]:
    seen = ["membership was passed.", HOSTILE]
    return [
        AimRow(
            aim="erase_influence", asked=True, word="not shown", decided_by="rtt (lr 0.001)", reasons=seen
        ),
        AimRow(aim="remove_capability", asked=False, word="shown", decided_by="every attack of the profile"),
    ]


def _checks() -> list[CheckRow]:
    texts = {True: "AUC 0.547, target 0.502.", False: "On 60% of 40 probes.", None: "Not asked: no curve."}
    return [
        CheckRow(
            name=f"check_{i}",
            question="Is it gone?",
            aim="erase_influence",
            passed=passed,
            text=text + HOSTILE,
            evidence=["mia_loss/forget/controlled"],
        )
        for i, (passed, text) in enumerate(texts.items())
    ]


def _curve() -> list[AlphaPoint]:
    shape = {
        "calibration": lambda a: 0.951 - 1.27 * max(0.0, a - 0.28) ** 2.2,
        "report": lambda a: 0.948 - 1.31 * max(0.0, a - 0.28) ** 2.2,
        "forget": lambda a: 0.021 + 0.941 / (1 + math.exp(14 * (a - 0.28))),
        "forget_hard": lambda a: 0.035 + 0.678 / (1 + math.exp(11 * (a - 0.3))),
    }
    return [
        AlphaPoint(
            alpha=i / 8,
            metric="extraction_strength",
            split=split,
            value=f(i / 8),
            low=f(i / 8) - 0.02,
            high=f(i / 8) + 0.02,
            n=200,
        )
        for split, f in shape.items()
        for i in range(9)
    ]


_ATTACKS = """worst  attack  config  threat  kind  injects  original  controlled  oracle  recovery  low  high
*  relearn  lr=0.001,steps=50  fine-tune  weights  the answer  0.99  0.97  0.95  0.31  0.12  0.55
-  relearn  lr=0.0003,steps=50  fine-tune  weights  the answer  0.98  0.81  0.8  0.06  -0.08  0.2
*  rtt  lr=0.001,steps=20  fine-tune  weights  related facts  0.91  0.25  0.05  0.23  0.15  0.33
-  rtt  lr=0.0003,steps=20  fine-tune  weights  related facts  0.94  0.14  0.04  0.11  0.05  0.18
*  benign  lr=0.001,data=retain  fine-tune  weights  nothing  0.9  0.42  0.04  0.44  0.36  0.53
-  benign  lr=0.0001,data=retain  fine-tune  weights  nothing  0.95  0.21  0.04  0.19  0.12  0.27
*  quantize  bits=4  white-box  weights  nothing  0.92  0.09  0.03  0.07  0.01  0.14
-  quantize  bits=8  white-box  weights  nothing  0.96  0.07  0.03  0.04  -0.01  0.09
*  worst_case  forms=all  query  prompts  format  0.81  0.14  0.06  0.11  0.06  0.19
*  prefill  words=2  query  prompts  part of the answer  0.98  0.04  0.06  -0.02  -0.06  0.03
"""


def _lines(table: str) -> list[list[str]]:
    """The rows of a text table, columns two spaces apart."""
    return [line.split("  ") for line in table.strip().splitlines()[1:]]


def _attacks(oracle: bool) -> list[AttackRow]:
    rows = []
    for worst, attack, config, threat, kind, injects, *numbers in _lines(_ATTACKS):
        original, controlled, base, recovery, low, high = map(float, numbers)
        row = {
            "attack": attack,
            "config": dict(part.split("=") for part in config.split(",")),
            "threat": threat,
            "kind": kind,
            "injects": injects,
            "metric": "extraction_strength",
            "split": "forget",
            "direct": 0.062,
            "original": original,
            "controlled": controlled,
            "oracle": base,
            "baseline": "oracle" if oracle else "placebo",
            "leakage": controlled - base,
            "recovery": recovery,
            "low": low,
            "high": high,
            "worst": worst == "*",
            "n": 400,
            "steps_to_recover": {"original": 0, "controlled": 10, "oracle": None}
            if attack == "relearn"
            else {},
        }
        rows.append(AttackRow.model_validate(row))
    return rows


def _relearning(models: tuple[str, ...]) -> list[CurvePoint]:
    speed = {"original": (0.95, 0.99, 8), "controlled": (0.07, 0.97, 9), "oracle": (0.03, 0.9, 22)}
    return [
        CurvePoint(
            attack=attack,
            config=config,
            model=model,
            step=step,
            value=low + (high * top - low) * (1 - math.exp(-step / pace)),
        )
        for attack, config, top in (("relearn", "lr 0.001", 1.0), ("benign", "lr 0.001", 0.45))
        for model, (low, high, pace) in speed.items()
        if model in models
        for step in (0, 5, 10, 20, 50)
    ]


def _training() -> list[TrainingPoint]:
    rng = random.Random(0)
    return [
        TrainingPoint(
            step=s,
            epoch=s / 40,
            terms={
                "forget": -4 * (1 - math.exp(-s / 60)) + rng.gauss(0, 0.1),
                "retain": 0.08 + 0.05 * rng.random(),
            },
            lr=1e-4 * min(1, s / 20) * (1 - s / 210),
            grad_norm=2 + rng.random(),
            active=min(1.0, s / 250),
            calibration=0.95 - s / 3000 if s % 20 == 0 else None,
        )
        for s in range(1, 201)
    ]


def _records(models: tuple[str, ...], count: int, shows_text: bool) -> list[RecordRow]:
    rng = random.Random(1)
    rows = []
    for i in range(count):
        split = ("forget", "forget", "forget_hard", "report", "neighbors")[i % 5]
        forget = split.startswith("forget")
        values = {}
        for model in models:
            know = 0.9 if model == "original" or not forget else 0.08
            values[model] = {
                "extraction_strength": min(1.0, max(0.0, rng.gauss(know, 0.08))),
                "exact_memorization": min(1.0, max(0.0, rng.gauss(know, 0.08))),
                "probability": min(1.0, max(1e-6, rng.gauss(know, 0.08))),
                "rougeL_recall": None if i % 17 == 0 else min(1.0, max(0.0, rng.gauss(know, 0.1))),
            }
        rows.append(
            RecordRow(
                id=f"{rng.getrandbits(40):010x}",
                entity=f"{rng.getrandbits(24):06x}",
                split=split,
                form="reverse" if split == "forget_hard" else None,
                values=values,
                leaks=forget and i % 11 == 0,
                prompt="What does she keep, and where?",
                answer=f"{SECRET}, number {i}.",
                generated={m: f"She keeps {'bees' if m == 'original' else 'no record'} {i}." for m in models},
            )
        )
    return rows


def good(
    name: str = "person-042",
    *,
    oracle: bool = True,
    shows_text: bool = False,
    records: int = 200,
    **changes: object,
) -> Scorecard:
    """A run that forgot, kept, and gave some of it back under attack."""
    models = MODELS if oracle else MODELS[:3]
    fields: dict[str, object] = {
        "name": name,
        "created": "2025-11-03T14:22:10Z",
        "expunge_version": "0.1.0",
        "profile": "default",
        "method": "npo",
        "method_summary": "Negative preference optimization: push the answer below its reference likelihood.",
        "controls": ["early_stop", "uwc"],
        "target": {"kind": "entity", "aim": "erase_influence"},
        "requirements": {"forget_above_oracle": 0.10},
        "recipe": {"model": "./my-model", "forget": "person.jsonl", "bar": {"metric": "auto", "keep": 0.95}},
        "splits": [
            SplitInfo(name=s, records=n, entities=e, built=b, fingerprint=f"{n * 7919:016x}")
            for s, n, e, b in (
                ("forget", 400, 20, None),
                ("forget_hard", 380, 20, "templates: reverse, cloze"),
                ("retain", 1200, 60, None),
                ("calibration", 400, 20, "cut from retain by seed 0"),
                ("report", 400, 20, "cut from retain by seed 0"),
                ("neighbors", 120, 12, None),
                ("holdout", 400, 20, None),
            )
        ],
        "models": {
            m: {
                "fingerprint": f"{i + 1:x}a9f03c2d4e5b{i}67",
                "parameters": 5_242_880,
                "dtype": "float32",
                "moved_fraction": 0.98 if i in (1, 2) else None,
            }
            for i, m in enumerate(models)
        },
        "scores": _scores(models),
        "control": [
            ControlRecord(
                control="uwc",
                metric="extraction_strength",
                better="higher",
                tau=0.95,
                original_value=0.951,
                unlearned_value=0.335,
                bar=0.9035,
                alpha=0.5,
                value=0.9055,
                bracket=(0.5, 0.5039),
                probes=[(1.0, 0.335, 400), (0.5, 0.88, 400)],
                alpha_interval=(0.46, 0.53),
                calibration_fingerprint="c0ffee0123456789",
                original_fingerprint="1a9f",
                unlearned_fingerprint="2a9f",
                dtype="float32",
                passes=12,
            )
        ],
        "alpha_curve": _curve(),
        "tau_sweep": [
            TauRow(tau=t, alpha=a, calibration=t * 0.951, report=t * 0.948, forget=f, forget_hard=f + 0.05)
            for t, a, f in ((0.8, 0.68, 0.026), (0.9, 0.58, 0.036), (0.95, 0.5, 0.062), (0.99, 0.36, 0.24))
        ],
        "attacks": _attacks(oracle),
        "relearning": _relearning(models),
        "training": _training(),
        "records": _records(models, records, shows_text),
        "scope": _scope(models),
        "aims": _aims(),
        "checks": _checks(),
        "indistinguishable": Indistinguishable(
            metric="extraction_strength",
            difference=0.028,
            p_value=0.31,
            smallest_p=0.002,
            entities=10,
            epsilon=0.4,
            delta=0.01,
            text="",
        )
        if oracle
        else None,
        "verdict": Verdict(
            word="suppressed",
            sentence="After control the forget answers are near the oracle's, "
            "but training on retain data alone brings part of them back.",
            reasons=[
                "Direct residual 0.040 is below ε = 0.10.",
                "benign (lr 0.001) recovers 0.440 [0.360, 0.530], above ε.",
                "rtt recovers 0.230 [0.150, 0.330].",
            ],
            decided_by="recovery under benign, lr 0.001",
            profile="default",
            oracle="retrained" if oracle else "none",
            attacks=["relearn", "rtt", "benign", "quantize", "worst_case", "prefill"],
            missing=["lens", "mia"],
            worst_attack="benign",
            worst_recovery=0.44,
            direct_residual=0.04,
            records=400,
        ),
        "cost": [
            CostRow(stage="baseline", wall=18.2, flops=4.1e12, peak_memory=1.1e9, tokens=91_220, cached=True),
            CostRow(stage="unlearn", wall=64.0, flops=2.2e13, peak_memory=1.6e9, tokens=410_000),
            CostRow(stage="control", wall=14.2, flops=3.3e12, peak_memory=1.2e9, tokens=88_000),
            CostRow(stage="attack", wall=212.4, flops=8.9e13, peak_memory=1.7e9),
        ],
        "ratio_to_retraining": 0.083,
        "ratio_basis": "measured",
        "provenance": {
            "seed": 0,
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "machine": "2 CPU cores",
        },
        "limits": [
            "The attacks had fixed budgets; a longer attack may bring more back.",
            "Only English phrasings were asked.",
            "Membership was tested on 400 records.",
        ],
        "shows_text": shows_text,
    }
    return Scorecard(**{**fields, **changes})


def no_oracle() -> Scorecard:
    """Nothing to compare with but the placebo; some numbers do not exist."""
    card = good("no-oracle", oracle=False)
    scores = [
        *card.scores,
        ScoreRow(
            metric="forget_quality",
            split="forget",
            model="controlled",
            facet="forgetting",
            value=None,
            reason="no_oracle",
            better="higher",
            headline=True,
        ),
        ScoreRow(
            metric="mia_loss_auc",
            split="forget",
            model="controlled",
            facet="privacy",
            value=None,
            reason="every_record_skipped: no_holdout",
            better="target",
            headline=False,
        ),
    ]
    broken = card.attacks[6].model_copy(
        update={
            "recovery": None,
            "low": None,
            "high": None,
            "oracle": None,
            "reason": "the attack ruins the original too",
        }
    )
    verdict = Verdict(
        word="not resolved",
        sentence="There is no oracle; at best this is suppressed or better.",
        reasons=["No oracle: graded against the placebo."],
        oracle="none",
        attacks=["quantize"],
        records=400,
    )
    return card.model_copy(
        update={
            "scores": scores,
            "attacks": [*card.attacks[:6], broken, *card.attacks[8:]],
            "verdict": verdict,
            "ratio_to_retraining": None,
            "ratio_basis": None,
        }
    )


def collapsed() -> Scorecard:
    """A method that survived nothing: α = 0, and the unlearned model is a wreck."""
    card = good("collapsed")
    control = card.control[0].model_copy(
        update={"alpha": 0.0, "value": 0.951, "warnings": ["non-monotone curve"], "monotone": False}
    )
    scores = [
        row.model_copy(update={"value": float("inf"), "low": None, "high": None})
        if (row.metric, row.model) == ("perplexity", "unlearned")
        else row
        for row in card.scores
    ]
    flags = [
        Flag(
            name="language_damaged",
            model="unlearned",
            value=13.4,
            threshold=1.5,
            text="perplexity against the original's",
        )
    ]
    verdict = Verdict(
        word="collapsed",
        sentence="The model is a wreck.",
        reasons=["perplexity 13.4 times the original's"],
        attacks=["benign"],
        worst_recovery=None,
        records=400,
    )
    return card.model_copy(
        update={
            "control": [control],
            "scores": scores,
            "flags": flags,
            "verdict": verdict,
            "method": "ga",
            "missed": ["forget_above_oracle is 0.31, the bar was 0.10"],
            "warnings": ["The forget loss fell without bound."],
        }
    )


def hostile() -> Scorecard:
    """Names, settings and generated text that try to be markup."""
    card = good(HOSTILE, shows_text=True, records=12)
    records = [
        r.model_copy(update={"generated": {"controlled": HOSTILE}, "entity": HOSTILE, "id": HOSTILE + str(i)})
        for i, r in enumerate(card.records)
    ]
    attacks = [a.model_copy(update={"attack": HOSTILE, "config": {HOSTILE: HOSTILE}}) for a in card.attacks]
    curves = [c.model_copy(update={"attack": HOSTILE, "config": HOSTILE}) for c in card.relearning]
    training = [t.model_copy(update={"terms": {HOSTILE: 1.0 / t.step}}) for t in card.training]
    scores = [s.model_copy(update={"metric": HOSTILE, "unit": HOSTILE}) for s in card.scores]
    control = [card.control[0].model_copy(update={"metric": HOSTILE})]
    curve = [p.model_copy(update={"metric": HOSTILE}) for p in card.alpha_curve]
    verdict = card.verdict.model_copy(
        update={"sentence": HOSTILE, "reasons": [HOSTILE], "worst_attack": HOSTILE}
    )
    return card.model_copy(
        update={
            "records": records,
            "attacks": attacks,
            "relearning": curves,
            "training": training,
            "scores": scores,
            "control": control,
            "alpha_curve": curve,
            "verdict": verdict,
            "method": HOSTILE,
            "limits": [HOSTILE],
            "recipe": {HOSTILE: HOSTILE},
            "provenance": {HOSTILE: HOSTILE},
            "warnings": [HOSTILE],
        }
    )


def empty() -> Scorecard:
    """The least a scorecard may hold: an audit of a foreign model where nothing could be measured."""
    verdict = Verdict(word="not resolved", sentence="Nothing was measured.")
    return Scorecard(
        name="empty",
        created="2025-11-03T14:22:10Z",
        expunge_version="0.1.0",
        profile="quick",
        verdict=verdict,
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
