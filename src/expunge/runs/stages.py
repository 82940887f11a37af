"""The stages of a run, one function each, from folder to folder; none changes what another wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expunge.controls import Control, Scene, make_control
from expunge.controls.bar import Bar, Probe, choose_metric
from expunge.controls.model_mixing import MixingPath, ModelMixing
from expunge.controls.uwc import UWC, Calibration
from expunge.data.records import Record
from expunge.data.request import fingerprint_records
from expunge.errors import ConfigError, NotComputable, Problem
from expunge.evidence import Evidence, read_evidence
from expunge.measure import EvidencePlan, take_evidence
from expunge.methods import make_method
from expunge.metrics import make_metric
from expunge.runs.folder import write_json
from expunge.runs.models import Shelf, model_facts
from expunge.runs.prepare import Job
from expunge.subjects import fingerprint, save_subject
from expunge.training.workspace import Workspace

__all__ = ["bar_of", "baseline", "control", "measure", "read_models", "retrain_oracle", "unlearn"]

CURVE_SPLITS = ("forget", "forget_hard", "report")


def plan_of(job: Job) -> EvidencePlan:
    return EvidencePlan(max_new_tokens=job.recipe.max_new_tokens)


def splits_of(job: Job) -> dict[str, tuple[Record, ...]]:
    return {split: job.request[split] for split in job.request}


def read_models(folders: Mapping[str, Path]) -> dict[str, dict[str, Evidence]]:
    """Model name → split → stored evidence."""
    found = {}
    for model, folder in folders.items():
        evidence = [read_evidence(path) for path in sorted(folder.glob("*.parquet"))]
        found[model] = {e.split: e for e in evidence}
    return found


def retrain_oracle(folder: Path, job: Job, shelf: Shelf) -> dict[str, Any]:
    """`oracle: retrain`: train on everything but the forget set."""
    settings = job.recipe.oracle.train or job.train
    method = make_method("retrain", base=job.recipe.oracle.base)
    workspace = Workspace(settings, folder / "training")
    subject = method.unlearn(shelf.load("original"), job.request, workspace)
    save_subject(subject, folder / "model")
    shutil.rmtree(folder / "training" / "checkpoint", ignore_errors=True)
    assert workspace.result is not None
    return {
        "tokens": workspace.result.tokens,
        "flops": 6 * subject.num_parameters() * workspace.result.tokens,
    }


def baseline(folder: Path, job: Job, shelf: Shelf) -> dict[str, Any]:
    """Evidence of the original and of the oracle, on disk before the first optimizer step of anything."""
    original = shelf.load("original")
    take_evidence(original, splits_of(job), folder / "original", plan=plan_of(job), name="the original")
    facts = {"original": model_facts(original, fingerprint(original.model))}
    if "oracle" in shelf.places:
        oracle = shelf.load("oracle")
        take_evidence(
            oracle,
            splits_of(job),
            folder / "oracle",
            plan=plan_of(job),
            reference=original,
            name="the oracle",
        )
        facts["oracle"] = model_facts(oracle, fingerprint(oracle.model))
    write_json(folder / "facts.json", facts)
    return {}


def bar_of(job: Job, original: Mapping[str, Evidence]) -> Bar:
    """The bar, from the original's stored evidence. Raises ConfigError where no metric can carry it."""
    if "calibration" not in original:
        raise ConfigError(
            Problem(
                "calibration",
                "there are no calibration records",
                "Bring retain (it is cut from there) or calibration",
            )
        )
    try:
        metric, score = choose_metric(job.recipe.bar.metric, original["calibration"])
    except NotComputable as reason:
        raise ConfigError(
            Problem("bar.metric", str(reason), "Choose another metric or other calibration records")
        ) from reason
    return Bar(metric, job.recipe.bar.keep, score)


def make_controls(job: Job) -> list[Control]:
    return [make_control(c.name, **c.settings) for c in job.recipe.control]


def unlearn(folder: Path, job: Job, shelf: Shelf, original: Mapping[str, Evidence]) -> dict[str, Any]:
    """θ_u: what the method returns, under the controls during training."""
    recipe = job.recipe
    scene = Scene(bar_of(job, original), job.request["calibration"], recipe.seed)
    hooks = [h for h in (c.attach(scene) for c in make_controls(job)) if h is not None]
    workspace = Workspace(
        job.train,
        folder / "training",
        hooks,
        recipe.lora if recipe.adapter == "lora" else None,
        recipe.reference,
        int(recipe.reference_budget * 2**30),
    )
    before = shelf.load("original")
    method = make_method(recipe.method.name, **recipe.method.settings)
    subject = method.unlearn(before, job.request, workspace)
    result = workspace.result
    facts = {
        **model_facts(subject, fingerprint(subject.model), workspace.facts),
        "method": recipe.method.name,
        "settings": asdict(method),  # type: ignore[call-overload]
        "status": result.status if result else "finished",
        "steps": result.steps if result else 0,
        "notes": result.notes if result else [],
    }
    save_subject(
        subject,
        folder / "model",
        info={"method": recipe.method.name, "status": "uncontrolled, not for shipping"},
    )
    write_json(folder / "facts.json", facts)
    shutil.rmtree(folder / "training" / "checkpoint", ignore_errors=True)
    tokens = result.tokens if result else 0
    trained = int(workspace.facts.get("trained_parameters", subject.num_parameters()))
    return {"tokens": tokens, "flops": (4 * subject.num_parameters() + 2 * trained) * tokens}


def control(folder: Path, job: Job, shelf: Shelf, original: Mapping[str, Evidence]) -> dict[str, Any]:
    """θ(α*): the model that ships, and the α-curve that led to it."""
    bar = bar_of(job, original)
    after = [c for c in make_controls(job) if c.when == "after"]
    live, unlearned = shelf.load("original"), shelf.load("unlearned")
    marks = {"original": fingerprint(live.model), "unlearned": fingerprint(unlearned.model)}
    probe = Probe(live, job.request["calibration"], bar.metric)
    path = MixingPath(live, unlearned, folder / "work")
    del unlearned
    uwc = next((c for c in after if isinstance(c, UWC)), None)
    records: list[dict[str, Any]] = []
    if uwc is not None:
        entities = original["calibration"].entities(bar.original.per_record)
        calibration = uwc.calibrate(bar, lambda alpha: probe(path.at(alpha)), entities, seed=job.recipe.seed)
        alpha = calibration.found[bar.keep].alpha
        records, sweep = _records(calibration, bar), _sweep(calibration, bar)
        grid = uwc.grid
    else:
        fixed = next((c for c in after if isinstance(c, ModelMixing)), None)
        alpha, sweep, grid = fixed.alpha if fixed else 1.0, [], 8
    curve, sweep = _curve(job, path, probe, bar, grid, sweep)
    subject = path.at(alpha)
    common = {
        "calibration_fingerprint": fingerprint_records(job.request["calibration"]),
        "original_fingerprint": marks["original"],
        "unlearned_fingerprint": marks["unlearned"],
        "dtype": job.recipe.dtype,
    }
    final = probe(subject)
    write_json(
        folder / "control.json",
        {
            "alpha": alpha,
            "metric": bar.metric.name,
            "keep": bar.keep,
            "bar": bar.value,
            "met": bar.met_by(final.value),
            "records": [{**r, **common} for r in records],
            "curve": curve,
            "sweep": sweep,
        },
    )
    info = {
        "method": job.recipe.method.name,
        "alpha": alpha,
        "bar": f"{bar.metric.name} ≥ {bar.keep} of the original's",
        "base": shelf.places["original"],
    }
    save_subject(subject, folder / "model", info=info)
    write_json(
        folder / "facts.json",
        {"controlled": model_facts(subject, fingerprint(subject.model), {"alpha": alpha})},
    )
    shutil.rmtree(folder / "work", ignore_errors=True)
    return {"passes": probe.passes}


def _records(calibration: Calibration, bar: Bar) -> list[dict[str, Any]]:
    found = calibration.found[bar.keep]
    value = calibration.scores[found.alpha].value if found.alpha in calibration.scores else None
    return [
        {
            "control": "uwc",
            "metric": bar.metric.name,
            "better": bar.better,
            "tau": bar.keep,
            "original_value": bar.original.value,
            "unlearned_value": calibration.scores[1.0].value,
            "bar": bar.value,
            "alpha": found.alpha,
            "value": value,
            "bracket": found.bracket,
            "probes": [(a, s.value, s.n) for a, s in calibration.scores.items()],
            "monotone": found.monotone,
            "max_feasible_seen": found.max_feasible_seen,
            "alpha_interval": calibration.interval,
            "warnings": list(calibration.warnings),
            "passes": calibration.passes,
        }
    ]


def _sweep(calibration: Calibration, bar: Bar) -> list[dict[str, Any]]:
    rows = []
    for tau, found in sorted(calibration.found.items()):
        value = calibration.scores[found.alpha].value if found.alpha in calibration.scores else None
        rows.append({"tau": tau, "alpha": found.alpha, "calibration": value})
    return rows


def _curve(
    job: Job, path: MixingPath, probe: Probe, bar: Bar, grid: int, sweep: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The bar's metric on calibration and CURVE_SPLITS along α, and the τ sweep filled from it."""
    splits = {split: job.request[split] for split in CURVE_SPLITS if split in job.request}
    plan = EvidencePlan(variants=tuple(dict.fromkeys(("gold", *bar.metric.reads))), generate=False)
    metric = make_metric(bar.metric.name)
    points: list[dict[str, Any]] = []
    at: dict[float, dict[str, float | None]] = {}
    for alpha in sorted({g / grid for g in range(grid + 1)} | {row["alpha"] for row in sweep}):
        subject = path.at(alpha)
        evidence = take_evidence(subject, splits, plan=plan, name=f"the mix at α = {alpha:.3g}")
        scores = [
            probe(subject),
            *(metric.score(evidence, split, seed=job.recipe.seed) for split in evidence),
        ]
        at[alpha] = {s.split: s.value for s in scores}
        points += [
            {
                "alpha": alpha,
                "metric": s.metric,
                "split": s.split,
                "value": s.value,
                "low": s.low,
                "high": s.high,
                "n": s.n,
            }
            for s in scores
        ]
    return points, [{**row, **{s: at[row["alpha"]].get(s) for s in CURVE_SPLITS}} for row in sweep]


def measure(folder: Path, job: Job, shelf: Shelf) -> dict[str, Any]:
    """Evidence of what the method returned and of the model that ships, with KL to the original."""
    original = shelf.load("original") if "original" in shelf.places else None
    for name in ("unlearned", "controlled"):
        if name in shelf.places:
            label = "the unlearned model" if name == "unlearned" else "the controlled model"
            take_evidence(
                shelf.load(name),
                splits_of(job),
                folder / name,
                plan=plan_of(job),
                reference=original,
                name=label,
            )
    return {}


def measure_one(folder: Path, name: str, job: Job, shelf: Shelf) -> dict[str, Any]:
    """Evidence of one model alone."""
    take_evidence(shelf.load(name), splits_of(job), folder / name, plan=plan_of(job), name=f"the {name}")
    return {}


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
