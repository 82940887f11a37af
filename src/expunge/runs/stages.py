"""The stages of a run, one function each, from folder to folder; none changes what another wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from expunge import ranks
from expunge.audit.scores import metrics_of
from expunge.controls import Control, NoBar, Scene, make_control
from expunge.controls.bar import Bar, Probe, choose_metric
from expunge.controls.lora_scaling import LoraScaling
from expunge.controls.model_mixing import ModelMixing
from expunge.controls.paths import ModelPath, path_of
from expunge.controls.uwc import UWC, Calibration
from expunge.data.builders import whole_target
from expunge.data.request import fingerprint_records
from expunge.errors import ConfigError, NotComputable, Problem
from expunge.evidence import Evidence, read_evidence
from expunge.measure import EvidencePlan, take_evidence
from expunge.measure.annotators import annotators_of, described
from expunge.methods import make_method
from expunge.metrics import make_metric
from expunge.metrics.base import Score
from expunge.runs.folder import write_json
from expunge.runs.models import Shelf, model_facts
from expunge.runs.prepare import Job
from expunge.runs.recipe import Recipe
from expunge.subjects import Subject, save_subject
from expunge.subjects.serving import pick_engine, served
from expunge.subjects.subject import pick_device
from expunge.training.selections import make_selection
from expunge.training.transforms import make_transform
from expunge.training.workspace import LoraSettings, Workspace
from expunge.training.zero import read_config

__all__ = [
    "control", "load_json", "measure", "plant", "read_splits", "retrain_oracle", "training_controls",
    "unlearn",
]  # fmt: skip

CURVE_SPLITS = ("forget", "forget_hard", "report")

PEERS: tuple[str, ...] = ("original", "oracle")
"""Models that others are compared with."""

ASKED = ("gold", "paraphrased_prompt", "choice")
"""Every split is asked in these variants; false answers only where a metric compares with them."""


def measure(folder: Path, name: str, job: Job, shelf: Shelf) -> dict[str, Any]:
    """Evidence of one model on every split, with KL to the original where there is one; what it cost.

    Tokens are those of the teacher-forced pass, padding and generation apart; a forward takes 2·N·tokens.
    """
    reference = shelf.load("original") if name != "original" and "original" in shelf.places else None
    splits = {split: job.request[split] for split in job.request}
    asked = annotators(job)
    plan = EvidencePlan(
        ASKED,
        _more_kinds(job),
        max_new_tokens=job.recipe.max_new_tokens,
        annotators=list(asked),
        settings={name: about["settings"] for name, about in asked.items()},
    )
    peers = {m: partial(shelf.load, m) for m in PEERS if m in shelf.places}
    engine = pick_engine(job.recipe.engine, job.recipe.device)
    with served(shelf.load(name), shelf.places[name], engine) as subject:
        found = take_evidence(
            subject, splits, folder, plan=plan, reference=reference, peers=peers, name=f"the {name} model"
        )
    tokens = sum(r.num_prompt_tokens + len(r.logprobs) for evidence in found.values() for r in evidence)
    return {"tokens": tokens, "flops": 2 * subject.num_parameters() * tokens}


def annotators(job: Job) -> dict[str, dict[str, Any]]:
    """What the metrics of this audit read beyond the forward pass and generation, with its settings."""
    names = {*metrics_of(job.recipe.profile), *(name for name, _ in job.metrics)}
    wanted = annotators_of(column for name in names for column in make_metric(name).columns)
    given = {named.name: named.settings for named in job.recipe.annotators}
    return described(wanted, given)


def _more_kinds(job: Job) -> dict[str, tuple[str, ...]]:
    """Kinds of variant by split that the benchmark's metrics and the truth ratio on forget read."""
    more: dict[str, set[str]] = {"forget": {"paraphrased_answer", "perturbed"}}
    for name, split in job.metrics:
        metric = make_metric(name)
        for part in (split, *getattr(metric, "others", ())):
            more.setdefault(part, set()).update(metric.reads)
    return {split: tuple(sorted(kinds - set(ASKED))) for split, kinds in more.items()}


def read_splits(folder: Path) -> dict[str, Evidence]:
    """Stored evidence by split."""
    evidence = [read_evidence(path) for path in sorted(folder.glob("*.parquet"))]
    return {e.split: e for e in evidence}


def retrain_oracle(folder: Path, job: Job, shelf: Shelf) -> dict[str, Any]:
    """`oracle: retrain`: train on everything but the forget set, and what belongs to it but is not listed."""
    workspace = Workspace(job.recipe.oracle.train or job.train, folder / "training")
    method = make_method("retrain", base=job.recipe.oracle.base)
    subject = method.unlearn(shelf.load("original"), whole_target(job.request), workspace)
    assert workspace.result is not None
    _keep(subject, folder)
    tokens = workspace.result.tokens
    return {"tokens": tokens, "flops": 6 * subject.num_parameters() * tokens}


def plant(folder: Path, job: Job, shelf: Shelf) -> None:
    """The original taught to refuse the forget set: knowledge hidden on purpose."""
    epochs = max(3.0, job.train.epochs)
    settings = job.train.model_copy(update={"steps": None, "epochs": epochs, "report_to": []})
    workspace = Workspace(settings, lora=LoraSettings(rank=8))
    _keep(make_method("idk").unlearn(shelf.load("original"), job.request, workspace), folder)


def _keep(subject: Subject, folder: Path, info: Mapping[str, Any] | None = None, **facts: Any) -> None:
    """Save a model and what is known of it; the checkpoints of its training have done their work."""
    if not ranks.is_first():
        return
    save_subject(subject, folder / "model", info=dict(info or {}))
    storage = sum(file.stat().st_size for file in (folder / "model").rglob("*") if file.is_file())
    write_json(folder / "facts.json", {**model_facts(subject), "storage": storage, **facts})
    shutil.rmtree(folder / "training" / "checkpoint", ignore_errors=True)


def bar_of(job: Job, original: Mapping[str, Evidence]) -> Bar | None:
    """The bar, from the original's stored evidence; None without calibration records.

    Raises ConfigError where no metric can carry it.
    """
    if "calibration" not in original:
        return None
    try:
        metric, score = choose_metric(job.recipe.bar.metric, original["calibration"])
    except NotComputable as reason:
        fix = "Choose another metric or other calibration records"
        raise ConfigError(Problem("bar.metric", str(reason), fix)) from reason
    return Bar(metric, job.recipe.bar.keep, score)


def make_controls(job: Job) -> list[Control]:
    return [make_control(c.name, **c.settings) for c in job.recipe.control]


def training_controls(recipe: Recipe) -> list[Control]:
    """The controls that act during training, `watch` first: what guarantees a bar has the last word."""
    during = [c for c in (make_control(n.name, **n.settings) for n in recipe.control) if c.when == "during"]
    if recipe.watch and recipe.control and not any(c.name == "watch" for c in during):
        during.insert(0, make_control("watch"))
    return during


def unlearn(folder: Path, job: Job, shelf: Shelf, original: Mapping[str, Evidence]) -> dict[str, Any]:
    """θ_u: what the method returns, under the controls during training."""
    recipe, bar = job.recipe, bar_of(job, original)
    hooks = []
    if bar is not None:
        scene = Scene(bar, job.request["calibration"], recipe.seed)
        blind = replace(scene, bar=cast(Bar, NoBar()))
        given = [c.attach(scene if c.reads_bar else blind) for c in training_controls(recipe)]
        hooks = [hook for hook in given if hook is not None]
    workspace = Workspace(
        job.train,
        folder / "training",
        hooks,
        recipe.lora if recipe.adapter == "lora" else None,
        recipe.reference,
        int(recipe.reference_budget * 2**30),
        transforms=[make_transform(t.name, **t.settings) for t in recipe.transform],
        selections=[make_selection(s.name, **s.settings) for s in recipe.selection],
        reference_subject=shelf.load("first") if job.first else None,
        divide=pick_device(recipe.device).type if recipe.strategy == "fsdp2" else None,
        deepspeed=read_config(recipe.deepspeed, job.train) if recipe.deepspeed else None,
    )
    method = make_method(recipe.method.name, **recipe.method.settings)
    start = shelf.load("original", device="cpu" if workspace.divide else None)  # no GPU may hold it whole
    subject = method.unlearn(start, job.request, workspace)
    result = workspace.result
    _keep(
        subject,
        folder,
        {"method": method.name, "status": "uncontrolled, not for shipping"},
        **workspace.facts,
        method=method.name,
        settings=asdict(method),  # type: ignore[call-overload]
        status=result.status if result else "finished",
        steps=result.steps if result else 0,
        notes=result.notes if result else [],
    )
    tokens = result.tokens if result else 0
    trained = int(workspace.facts.get("trained_parameters", subject.num_parameters()))
    return {"tokens": tokens, "flops": (4 * subject.num_parameters() + 2 * trained) * tokens}


def control(folder: Path, job: Job, shelf: Shelf, original: Mapping[str, Evidence]) -> None:
    """θ(α*): the model that ships, and the α-curve that led to it."""
    bar = bar_of(job, original)
    live, unlearned = shelf.load("original"), shelf.load("unlearned")
    if bar is None:
        made: dict[str, Any] = {"alpha": 1.0, "metric": None, "met": None}
        subject = unlearned
    else:
        marks = {"original": live.fingerprint(), "unlearned": unlearned.fingerprint()}
        adapter = Path(shelf.places["unlearned"]).parent / "training" / "adapter"
        path = path_of(live, unlearned, folder / "work", adapter)
        probe = Probe(live, job.request["calibration"], bar.metric)
        measure = cache(lambda alpha: probe(path.at(alpha)))
        made = _calibrate(job, path, measure, bar, original, marks)
        subject = path.settled(made["alpha"])
    if ranks.is_first():
        write_json(folder / "control.json", made)
    stated = (
        f"{bar.metric.name}: keep {bar.keep:g} of the original's"
        if bar
        else "none: nothing to hold it against"
    )
    info = {"method": job.recipe.method.name, "alpha": made["alpha"], "bar": stated}
    _keep(subject, folder, {**info, "base": shelf.places["original"]}, alpha=made["alpha"])
    ranks.on_first(lambda: shutil.rmtree(folder / "work", ignore_errors=True))


def _calibrate(
    job: Job,
    path: ModelPath,
    measure: Callable[[float], Score],
    bar: Bar,
    original: Mapping[str, Evidence],
    marks: Mapping[str, str],
) -> dict[str, Any]:
    """α* and how it was found, the curve of the bar's metric along α, and the sweep of τ."""
    after = [c for c in make_controls(job) if c.when == "after"]
    uwc = next((c for c in after if isinstance(c, UWC)), None)
    fixed = next((c for c in after if isinstance(c, ModelMixing | LoraScaling)), None)
    alpha, grid, records, sweep = fixed.alpha if fixed else 1.0, 8, [], []
    if uwc is not None:
        entities = original["calibration"].entities(bar.original.per_record)
        found = uwc.calibrate(bar, measure, entities, seed=job.recipe.seed)
        alpha, grid, sweep = found.found[bar.keep].alpha, uwc.grid, _sweep(found)
        common = {
            "calibration_fingerprint": fingerprint_records(job.request["calibration"]),
            "original_fingerprint": marks["original"],
            "unlearned_fingerprint": marks["unlearned"],
            "dtype": job.recipe.dtype,
        }
        records = [{**_record(found, bar), **common}]
    curve, sweep = _curve(job, path, measure, bar, grid, sweep)
    met = bar.met_by(measure(alpha).value)
    about = {"alpha": alpha, "metric": bar.metric.name, "bar": bar.value, "met": met}
    return {**about, "records": records, "curve": curve, "sweep": sweep}


def _record(calibration: Calibration, bar: Bar) -> dict[str, Any]:
    found = calibration.found[bar.keep]
    value = calibration.scores[found.alpha].value if found.alpha in calibration.scores else None
    return {
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


def _sweep(calibration: Calibration) -> list[dict[str, Any]]:
    rows = []
    for tau, found in sorted(calibration.found.items()):
        value = calibration.scores[found.alpha].value if found.alpha in calibration.scores else None
        rows.append({"tau": tau, "alpha": found.alpha, "calibration": value})
    return rows


def _curve(
    job: Job,
    path: ModelPath,
    measure: Callable[[float], Score],
    bar: Bar,
    grid: int,
    sweep: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The bar's metric on calibration and CURVE_SPLITS along α, and the τ sweep filled from it."""
    splits = {split: job.request[split] for split in CURVE_SPLITS if split in job.request}
    plan = EvidencePlan(variants=tuple(dict.fromkeys(("gold", *bar.metric.reads))), generate=False)
    metric = make_metric(bar.metric.name)
    points: list[dict[str, Any]] = []
    at: dict[float, dict[str, float | None]] = {}
    for alpha in sorted({g / grid for g in range(grid + 1)} | {row["alpha"] for row in sweep}):
        evidence = take_evidence(path.at(alpha), splits, plan=plan, name=f"the mix at α = {alpha:.3g}")
        scores = [
            measure(alpha),
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


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
