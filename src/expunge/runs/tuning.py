"""`expunge tune`: search methods, settings and controls under one bar, and rank by what is forgotten there.

Every trial is trained, brought to the bar, and only then measured, on prompts that no report scores
(`expunge.runs.apart`): an uncontrolled wreck never wins. Each method gets the same number of trials from a
sampler with the same seed; the best three trials are repeated with further seeds, calibrated in full, and the
winner has the best mean. A trial is one stage of a run folder: finished ones are never repeated.

Source of the discipline: Wang et al. 2025 (arXiv 2406.09179).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from expunge.controls import make_control
from expunge.controls.bar import MIN_STRENGTH, within_noise
from expunge.controls.uwc import UWC
from expunge.data.request import fingerprint_records
from expunge.errors import ConfigError, Problem
from expunge.metrics import make_metric
from expunge.metrics.base import Metric, Score
from expunge.progress import say
from expunge.reports.files import write_text
from expunge.runs import facts, stages
from expunge.runs.api import as_recipe
from expunge.runs.folder import announce, code_version, write_json
from expunge.runs.pipeline import TRAIN_ROOMS, Pipeline
from expunge.runs.ranking import Finalist, Trial, choose, front, rank, sensitivity
from expunge.runs.recipe import Named, Recipe, TuneSettings
from expunge.runs.trial import SPLIT, Course, run_trial
from expunge.runs.tuning_page import csv_text, line_of, markdown
from expunge.runs.tuning_space import (
    Axis,
    Point,
    apply,
    check_space,
    load_optuna,
    space_of,
    suggest,
    write_journal,
)
from expunge.stats import seed_from

__all__ = ["TuneResult", "tune"]

REDUCED = {"grid": 4, "tol": 1 / 32}
"""Calibration inside the search: at most 1 + 3 + 3 passes."""

BEST = 3
"""Trials that are repeated with further seeds."""


@dataclass(frozen=True)
class TuneResult:
    """`path` holds tuning.json (`data`), trials.csv, tuning.md, optuna.journal; `best` is a recipe to run."""

    path: Path
    data: Mapping[str, Any]
    best: Path | None


def tune(
    recipe: Recipe | str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, new: bool = False
) -> TuneResult:
    """Search as the recipe's `tune` says. Run it again to resume, or with more trials to go on.

    The output is the recipe's with `-tune` behind it, unless `overrides` say otherwise: the folder of a run
    stays its own. Raises ConfigError, DataError or ModelError on bad input, MissingDependency without optuna.
    """
    load_optuna()
    made = as_recipe(recipe, overrides)
    if not any(item.startswith("output=") for item in overrides):
        made = made.model_copy(update={"output": f"{made.output}-tune"})
    return TunePipeline(_checked(made), new=new).search()


def _checked(recipe: Recipe) -> Recipe:
    """The recipe with its search spelled out; every problem that can be seen without the data."""
    settings = recipe.tune or TuneSettings()
    methods = settings.methods or (recipe.method,)
    recipe = recipe.model_copy(update={"tune": settings.model_copy(update={"methods": methods})})
    problems = []
    if recipe.requests is not None:
        problems.append(Problem("requests", "a search is of one request", "Tune one of them: forget: FILE"))
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem("tune.methods", f"{', '.join(twice)} stands there twice", "Name each once"))
    if not any(control.name == "uwc" for control in recipe.control):
        what = "the search ranks what was brought to the bar, and control holds no uwc"
        problems.append(Problem("control", what, "Add uwc"))
    problems += check_space(recipe)
    if problems:
        raise ConfigError(problems)
    return recipe


class TunePipeline(Pipeline):
    """The first two stages of a run, then a stage per trial."""

    def search(self) -> TuneResult:
        settings = self._settings
        announce(1, 4, "prepare: checking the request, finding the models")
        self._prepare()
        self._baseline(2, 4)
        self._set_course()
        spaces = {m.name: space_of(self.recipe, m, self.job.train) for m in settings.methods}
        announce(3, 4, f"search: {settings.trials} trials of {', '.join(spaces)}")
        trials = self._search(spaces)
        announce(4, 4, f"repeat: the best with {settings.seeds} further seeds, calibrated in full")
        finalists = self._repeat(rank(trials, self.course.better))
        return self._write(spaces, trials, finalists)

    # The stages ---------------------------------------------------------------------------------------

    def _requested(self) -> None:
        """A search is no request: it has no life."""

    def _identity(self) -> dict[str, Any]:
        """More trials, methods or seeds go on with the same search."""
        identity = super()._identity()
        for name in ("methods", "trials", "seeds"):
            identity["tune"].pop(name)
        return {**identity, "method": None}

    def _baseline(self, number: int, total: int) -> None:
        announce(number, total, "baseline: what the original knows")
        self._ask("baseline", "original")
        if unknown := facts.not_known(self.evidence):
            self._warn(unknown)

    def _set_course(self) -> None:
        """The bar and the objective, from the original alone, before anything is trained."""
        apart, bar = self.job.apart, stages.bar_of(self.job, self.evidence["original"])
        assert apart is not None
        assert bar is not None
        named = self._settings.metric
        candidates = ("extraction_strength", "probability") if named == "auto" else (named,)

        def work(folder: Path) -> None:
            live = self.shelf.load("original")
            found = {}
            for name in candidates:
                course = Course(bar, _objective(name), apart.selection, 0.0, self.recipe.seed)
                found[name] = {key: getattr(course.forget(live), key) for key in _ORIGINAL}
            write_json(folder / "scores.json", found)

        inputs = {**self._world(), **self._aim(candidates), **_code()}
        scores = stages.load_json(self.folder.stage("baseline/selection", inputs, work) / "scores.json")
        strong = [name for name in candidates if (scores[name]["value"] or 0.0) >= MIN_STRENGTH]
        name = (strong or candidates[-1:])[0]
        self.original_score = scores[name]
        value = scores[name]["value"]
        if not value:
            what = (
                f"the original's {name} on {apart.how} is {value} ({scores[name]['reason'] or 'not known'})"
            )
            raise ConfigError(Problem("tune.metric", what, "Try probability, or bring other paraphrases"))
        if within_noise(Score(name, SPLIT, **scores[name])):
            self._warn(f"the original's {name} on the selection split is within its noise: so is the search")
        self.course = Course(bar, _objective(name), apart.selection, value, self.recipe.seed)

    def _search(self, spaces: Mapping[str, Sequence[Axis]]) -> list[Trial]:
        """One trial of each method in turn, so that budgets are equal whenever it ends."""
        points: dict[str, list[Point]] = {name: [] for name in spaces}
        trials = []
        for number in range(self._settings.trials):
            for method in self._settings.methods:
                axes, done = spaces[method.name], points[method.name]
                if len(done) < number:
                    continue  # its space was exhausted
                params = self._stored(method, number, axes) or suggest(axes, done, self.recipe.seed)
                if params is None:
                    self._warn(f"{method.name}: all {number} points of its space are tried")
                    continue
                trial = self._trial("trial", method, number, params, self.job.train.seed, REDUCED)
                trials.append(trial)
                sign = 1 if self.course.better == "lower" else -1
                done.append(Point(params, None if trial.score is None else sign * trial.score))
                say(f"{len(trials)}: {line_of(trial)}")
        write_journal(self.path / "optuna.journal", {name: (spaces[name], points[name]) for name in spaces})
        return trials

    def _stored(self, method: Named, number: int, axes: Sequence[Axis]) -> dict[str, Any] | None:
        """The parameters of a finished trial: what it tried counts, not what a sampler would say today."""
        name = f"trial/{method.name}-{number:03d}"
        file = self.path / name / "params.json"
        if name not in self.folder.state["stages"] or not file.is_file():
            return None
        params: dict[str, Any] = stages.load_json(file)
        return params if params.keys() == {axis.key for axis in axes} else None

    def _repeat(self, ranked: Sequence[Trial]) -> list[Finalist]:
        """The best trials with seeds the search did not use, calibrated as the recipe says."""
        methods = {m.name: m for m in self._settings.methods}
        full = next(c.settings for c in self.recipe.control if c.name == "uwc")
        finalists = []
        for trial in [t for t in ranked if t.status == "ok"][:BEST]:
            again = []
            for k in range(1, self._settings.seeds + 1):
                seed = seed_from(self.recipe.seed, "tune", k) % 2**31
                name = f"seed-{k}"
                again.append(self._trial(name, methods[trial.method], trial.number, trial.params, seed, full))
                say(f"{name}: {line_of(again[-1])}")
            finalists.append(Finalist(trial, tuple(again)))
        return finalists

    def _trial(
        self,
        kind: str,
        method: Named,
        number: int,
        params: Mapping[str, Any],
        seed: int,
        uwc: Mapping[str, Any],
    ) -> Trial:
        recipe = apply(self.recipe, method, params)
        own = {key.removeprefix("train."): value for key, value in params.items() if key.startswith("train.")}
        train = self.job.train.model_copy(
            update={**({"steps": None} if "epochs" in own else {}), **own, "seed": seed}
        )
        job = replace(self.job, recipe=recipe, train=train)
        calibration = make_control("uwc", **uwc)
        assert isinstance(calibration, UWC)
        inputs = {
            **self._world(),
            **self._aim([self.course.objective.name]),
            "refusals": job.request.refusals,
            "recipe": recipe.model_dump(mode="json", include=_PARTS),
            "first": self._model("first"),
            "train": train.model_dump(mode="json", exclude={"checkpoint_seconds", "report_to", "log_every"}),
            "calibration": [calibration.grid, calibration.tol],
            **_code(),
        }
        original = self.evidence["original"]

        def work(folder: Path) -> Mapping[str, Any]:
            write_json(folder / "params.json", dict(params))
            return run_trial(folder, job, self.shelf, original, self.course, calibration)

        folder = self.folder.stage(f"{kind}/{method.name}-{number:03d}", inputs, work)
        return Trial.read(stages.load_json(folder / "trial.json"), method.name, number, seed, params)

    def _aim(self, metrics: Sequence[str]) -> dict[str, Any]:
        assert self.job.apart is not None
        return {"objective": list(metrics), "selection": fingerprint_records(self.job.apart.selection)}

    @property
    def _settings(self) -> TuneSettings:
        assert self.recipe.tune is not None
        return self.recipe.tune

    # What is written ----------------------------------------------------------------------------------

    def _write(
        self, spaces: Mapping[str, Sequence[Axis]], trials: Sequence[Trial], finalists: Sequence[Finalist]
    ) -> TuneResult:
        name, better, utility = self.course.objective.name, self.course.better, self.course.bar.better
        ranked = rank(trials, better)
        winner, ties = choose(finalists, better)
        means = {f.trial.name: f for f in finalists}
        apart, bar = self.job.apart, self.course.bar
        assert apart is not None
        data = {
            "name": self.recipe.name or self.path.name,
            "recipe": facts.told_recipe(self.recipe),
            "bar": {"metric": bar.metric.name, "keep": bar.keep, "original": bar.original.value},
            "objective": {"metric": name, "better": better, "original": self.original_score},
            "selection": {"how": apart.how, "records": len(apart.selection), "apart": apart.clean},
            "utility": {
                "split": "report" if self.job.request["report"] else "calibration",
                "better": utility,
            },
            "budget": {"trials": self._settings.trials, "seeds": self._settings.seeds},
            "space": {method: {a.key: a.told() for a in axes} for method, axes in spaces.items()},
            "winner": winner.as_dict() if winner else None,
            "ties": [f.trial.name for f in ties],
            "finalists": [f.as_dict() for f in finalists],
            "front": front(ranked, means, better, utility),
            "front_with_cost": front(ranked, means, better, utility, cost=True),
            "sensitivity": [sensitivity(method, trials, better) for method in spaces],
            "trials": [asdict(t) for t in ranked],
            "warnings": self.warnings,
        }
        write_json(self.path / "tuning.json", data)
        write_text(self.path / "trials.csv", csv_text(ranked))
        write_text(self.path / "tuning.md", markdown(data))
        data = json.loads((self.path / "tuning.json").read_text(encoding="utf-8"))
        return TuneResult(self.path, data, self._best(winner) if winner else None)

    def _best(self, winner: Finalist) -> Path:
        """The winner as a recipe; with `tune` in it, its report leaves out what the search selected by."""
        method = next(m for m in self._settings.methods if m.name == winner.trial.method)
        made = apply(self.recipe, method, winner.trial.params)
        told = made.model_dump(mode="json", exclude_unset=True)
        told |= {key: _short(value) for key, value in told.items() if key in ("method", "benchmark")}
        told["control"] = [_short(c) for c in made.model_dump(mode="json")["control"]]
        tuned = made.model_dump(mode="json", exclude_defaults=True)["tune"]
        tuned["methods"] = [_short(m) for m in tuned["methods"]]
        told |= {"tune": tuned, "output": f"{self.recipe.output.removesuffix('-tune')}-best"}
        head = (
            f"# {winner.trial.name} of {self.path}, the best of its search: {self.course.objective.name} "
            f"{winner.mean:.4g} at α*, mean of {len(winner.again)}.\n"
            "# tune: keeps what the search selected by out of the report.\n"
        )
        return write_text(
            self.path / "best.yaml", head + yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
        )


_PARTS = {
    "method", "adapter", "lora", "reference", "reference_budget", "transform", "selection", "control",
    "watch", "bar",
}  # fmt: skip
"""What of a recipe its trials depend on, beside the data, the models and `train`."""

_ORIGINAL = ("value", "low", "high", "n", "reason")


def _objective(name: str) -> Metric:
    metric = make_metric(name)
    plain = set(metric.reads) == {"gold"} and "generated" not in metric.reads["gold"]
    if not plain or metric.better(SPLIT) not in ("lower", "higher"):
        what = f"{name} needs more than likelihoods of the answers, or has no better side on forget"
        raise ConfigError(Problem("tune.metric", what, "Try auto, extraction_strength or probability"))
    return metric


def _short(named: Any) -> Any:
    """{name, settings} as a person writes it."""
    if not isinstance(named, Mapping):
        return named
    more = dict(named.get("settings", {}))
    return {"name": named["name"], **more} if more else named["name"]


def _code() -> dict[str, str]:
    return {"code": code_version(*TRAIN_ROOMS)}
