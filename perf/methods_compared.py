"""Every method on the embedded benchmark, brought to the same retained utility, then compared.

    python -m perf.methods_compared [--jobs 2] [--only NAME ...] [--page]

A cell is one configuration with one seed. Finished cells lie in runs/methods-compared and are not repeated;
a killed run goes on where it was. Writes docs/methods-compared.md. `--page` only writes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perf.compared_methods import CONFIGURATIONS, Configuration

CELLS = Path("runs/methods-compared")
TAUS = (0.95, 0.9)
SPLITS = ("forget", "hard", "report", "neighbors")
ATTACKS = ("rtt", "benign")
STEPS = (5, 10, 20)
BATCHES = {"batch": 12, "epochs": 10.0}
"""Half of the forget set a step: in one batch of it all, no seed would change the order of anything."""


@dataclass(frozen=True)
class Task:
    """One candidate of a configuration with one seed; `attacked`: whether the attacks are run as well."""

    name: str
    candidate: int
    seed: int
    attacked: bool

    @property
    def path(self) -> Path:
        kind = "attacked" if self.attacked else "search"
        return CELLS / f"{self.name}-{self.candidate}-{self.seed}-{kind}.json"


def world() -> tuple[Any, Any, Any]:
    """(request with `hard` and `selection`, original, oracle) of personas/tiny.

    The held-out phrasings are divided: even ones choose the candidate, odd ones are reported.
    """
    from dataclasses import replace

    from expunge.benchmarks.personas import Personas

    prepared = Personas("tiny").prepare(Path("runs/.cache/benchmarks"))
    hard = prepared.request["forget_hard"]
    splits = {**prepared.request.splits, "selection": hard[::2], "hard": hard[1::2]}
    return replace(prepared.request, splits=splits), prepared, prepared.oracle


def strengths(subject: Any, request: Any, splits: tuple[str, ...]) -> dict[str, float | None]:
    """Extraction strength by split, teacher-forced."""
    from expunge.measure import EvidencePlan, take_evidence
    from expunge.metrics import make_metric

    plan = EvidencePlan(("gold",), generate=False)
    evidence = take_evidence(subject, {s: request[s] for s in splits}, plan=plan)
    return {s: make_metric("extraction_strength").score(evidence, s).value for s in evidence}


def attacked(subject: Any, request: Any, lrs: Any) -> dict[str, dict[str, float]]:
    """Per attack, mean extraction strength of the records it scores: before, and at its strongest step."""
    from expunge.attacks import Field
    from expunge.audit.attacking import make_attack, run_attack

    found = {}
    for name in ATTACKS:
        field = Field(request, "default", 0, placebo=False, lrs=lrs[1:2], batch=16)
        by_step: dict[int, float] = {}
        for outcome in run_attack(make_attack(name, {"steps": STEPS}), subject, field):
            values = outcome["scores"]["forget"]["extraction_strength"].values()
            by_step[outcome["step"]] = sum(values) / len(values)
        found[name] = {"before": by_step[0], "worst": max(by_step.values()), "curve": by_step}
    return found


def run(task: Task) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    request, prepared, _ = world()
    configuration = CONFIGURATIONS[task.name]
    began = time.monotonic()
    try:
        cell = unlearned(task, configuration, request, prepared)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "expunge":
            raise
        cell = {"failed": f"{type(error).__name__}: {error}"}
    cell |= {"task": asdict(task), "configuration": asdict(configuration), "wall": time.monotonic() - began}
    task.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = task.path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(cell, indent=1), encoding="utf-8")
    temporary.replace(task.path)
    return cell


def unlearned(task: Task, configuration: Configuration, request: Any, prepared: Any) -> dict[str, Any]:
    """Train, calibrate for both bars, measure, attack what ships."""
    import tempfile

    from expunge.controls import Scene, make_control
    from expunge.controls.bar import Bar, Probe, choose_metric
    from expunge.controls.paths import path_of
    from expunge.measure import EvidencePlan, take_evidence
    from expunge.methods import make_method
    from expunge.subjects.subject import load_subject
    from expunge.training import LoraSettings, TrainSettings, Workspace
    from expunge.training.selections import make_selection
    from expunge.training.transforms import make_transform

    candidate = configuration.candidates[task.candidate]
    original = load_subject(prepared.original)
    plan = EvidencePlan(("gold",), generate=False)
    calibration = take_evidence(original, {"calibration": request["calibration"]}, plan=plan)["calibration"]
    metric, score = choose_metric("auto", calibration)
    bar = Bar(metric, TAUS[0], score)
    scene = Scene(bar, request["calibration"], task.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            **prepared.train,
            **BATCHES,
            "seed": task.seed,
            **configuration.train,
            **candidate.get("train", {}),
        }
        workspace = Workspace(
            TrainSettings(**settings),
            folder / "training",
            [make_control("watch").attach(scene)]
            + [make_control(n, **s).attach(scene) for n, s in configuration.controls],
            LoraSettings(**configuration.lora) if configuration.lora is not None else None,
            transforms=[make_transform(n, **s) for n, s in configuration.transforms],
            selections=[make_selection(n, **s) for n, s in configuration.selections],
        )
        hyper = {**configuration.settings, **candidate.get("settings", {})}
        for key, place in configuration.folders.items():
            hyper[key] = {"oracle": str(prepared.oracle), "original": str(prepared.original)}[place]
        began = time.process_time()
        made = make_method(configuration.method, **hyper).unlearn(original, request, workspace)
        cpu = time.process_time() - began
        cell: dict[str, Any] = {"cpu": cpu, "loose": strengths(made, request, SPLITS)}
        if workspace.result is not None:
            cell |= {"tokens": workspace.result.tokens, "steps": workspace.result.steps}
            cell["notes"] = workspace.result.notes
        path = path_of(original, made, folder / "mix", folder / "training" / "adapter")
        probe = Probe(original, request["calibration"], metric)
        uwc = make_control("uwc", taus=TAUS)
        entities = calibration.entities(score.per_record)
        found = uwc.calibrate(bar, lambda alpha: probe(path.at(alpha)), entities, seed=task.seed).found
        cell["held"] = {}
        for tau in TAUS:
            alpha = found[tau].alpha
            subject = path.at(alpha)
            held: dict[str, Any] = {"alpha": alpha, **strengths(subject, request, (*SPLITS, "selection"))}
            if task.attacked:
                held["attacks"] = attacked(subject, request, prepared.attack_lrs)
            cell["held"][str(tau)] = held
    return cell


def yardstick(name: str) -> dict[str, Any]:
    """The original and the oracle, attacked in the same way."""
    from expunge.subjects.subject import load_subject

    path = CELLS / f"{name}.json"
    if not path.is_file():
        request, prepared, _ = world()
        subject = load_subject(getattr(prepared, name))
        cell = {
            **strengths(subject, request, SPLITS),
            "attacks": attacked(subject, request, prepared.attack_lrs),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(cell, indent=1), encoding="utf-8")
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept


HELD = {"graddiff": {"lr": 1e-3}, "ga_kl": {"lr": 1e-3}, "undo": {"alpha": 0.3, "lr": 3e-3, "epochs": 30.0}}


def kept_records() -> dict[str, dict[str, float | None]]:
    """Uncontrolled, seed 0: what a retain term keeps of the records it trains on, and of others."""
    from expunge.methods import make_method
    from expunge.subjects.subject import load_subject
    from expunge.training import TrainSettings, Workspace

    path = CELLS / "kept.json"
    if not path.is_file():
        request, prepared, _ = world()
        original, found = load_subject(prepared.original), {}
        for name, given in HELD.items():
            own = given if name == "undo" else {}
            train = {**prepared.train, **BATCHES, "seed": 0, **({} if own else given)}
            made = make_method(name, **own).unlearn(original, request, Workspace(TrainSettings(**train)))
            found[name] = strengths(made, request, ("forget", "retain", "report"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    kept: dict[str, dict[str, float | None]] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def cells(tasks: list[Task], jobs: int) -> None:
    """Compute what is missing, `jobs` at a time."""
    missing = [task for task in tasks if not task.path.is_file()]
    if not missing:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    done = len(tasks) - len(missing)
    with ProcessPoolExecutor(jobs) as pool:
        for future in as_completed({pool.submit(run, task): task for task in missing}):
            cell, done = future.result(), done + 1
            t = cell["task"]
            what = cell.get("failed") or f"{cell['wall']:.0f} s"
            print(f"[{done}/{len(tasks)}] {t['name']} {t['candidate']} seed {t['seed']}: {what}", flush=True)


def chosen(name: str) -> int:
    """The candidate with the lowest controlled extraction strength on the selection phrasings, seed 0."""
    scores = []
    for i in range(len(CONFIGURATIONS[name].candidates)):
        cell = json.loads(Task(name, i, 0, False).path.read_text(encoding="utf-8"))
        held = cell.get("held", {}).get(str(TAUS[0]))
        scores.append((held["selection"] if held else float("inf"), i))
    return min(scores)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these configurations alone")
    parser.add_argument("--page", action="store_true", help="write the page from the cells that are there")
    options = parser.parse_args()
    names = options.only or list(CONFIGURATIONS)
    if not options.page:
        for model in ("original", "oracle"):
            yardstick(model)
        search = [Task(n, i, 0, False) for n in names for i in range(len(CONFIGURATIONS[n].candidates))]
        cells(search, options.jobs)
        final = [Task(n, chosen(n), seed, True) for n in names for seed in range(CONFIGURATIONS[n].seeds)]
        cells(final, options.jobs)
    from perf.compared_page import write_page

    print(write_page())


if __name__ == "__main__":
    main()
