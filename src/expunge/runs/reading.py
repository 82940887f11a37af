"""Reading a recipe: YAML and overrides in, a Recipe out, or every problem at once with its line."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from expunge.attacks import ATTACKS
from expunge.benchmarks import BENCHMARKS
from expunge.controls import CONTROLS
from expunge.data.request import SPLITS
from expunge.errors import ConfigError, Problem, nearest
from expunge.interventions import INTERVENTIONS
from expunge.measure.annotators import ANNOTATORS
from expunge.methods import METHODS
from expunge.metrics import METRICS, make_metric
from expunge.registry import Registry
from expunge.runs.recipe import AXES, PROFILES, Named, OracleSettings, Recipe
from expunge.runs.yamlfile import parse_value, read_recipe_file, set_path
from expunge.training.retain import RETAIN_LOSSES
from expunge.training.selections import SELECTIONS
from expunge.training.transforms import TRANSFORMS

__all__ = ["load_recipe", "make_recipe"]

Path_ = tuple[str, ...]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe file with `key=value` overrides; every problem at once, as ConfigError.

    Paths in the file are relative to the working directory.
    """
    data, lines = read_recipe_file(path)
    return make_recipe(data, overrides, lines=lines, file=str(path))


def make_recipe(
    data: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    lines: Mapping[Path_, int] | None = None,
    file: str = "",
) -> Recipe:
    """A Recipe from a mapping; `lines` say where in `file` each key stands. Raises ConfigError."""
    values = copy.deepcopy({str(key): value for key, value in data.items()})
    problems: list[Problem] = []
    said: list[Path_] = []
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not all(key.strip().split(".")):
            problems.append(Problem(item, "is not an override", "Write key=value, as in train.lr=1e-4"))
            continue
        try:
            set_path(values, key.strip(), parse_value(text))
        except ConfigError as error:
            problems += [Problem(f"{item} {p.where}", p.what, p.fix) for p in error.problems]
        said.append(tuple(key.strip().split(".")))
    places = _Places(file, lines or {}, said)
    recipe, found = _validated(values, places)
    problems += found
    if recipe is not None:
        problems += _check_names(recipe, places)
        problems += [*_check_device(recipe, places), *_check_bar(recipe, places)]
        if not found:
            problems += _check_sources(recipe, places)
    if problems or recipe is None:
        raise ConfigError(problems)
    return recipe


@dataclass
class _Places:
    """Where a key was said: a line of the file, or the command line."""

    file: str
    lines: Mapping[Path_, int]
    overridden: Sequence[Path_] = field(default_factory=list)

    def __call__(self, *path: str) -> str:
        name = ".".join(path)
        if any(path[: len(said)] == said or said[: len(path)] == path for said in self.overridden):
            return name
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.file}:{self.lines[path[:end]]} {name}"
        return name or self.file or "recipe"


def _validated(values: dict[str, Any], places: _Places) -> tuple[Recipe | None, list[Problem]]:
    """The recipe and no problems, or what of it is sound (None where nothing is) and the problems."""
    try:
        return Recipe.model_validate(values), []
    except ValidationError as error:
        problems = _problems(error, values, places)
        broken = {str(e["loc"][0]) for e in error.errors() if e["loc"]}
    try:
        return Recipe.model_validate({k: v for k, v in values.items() if k not in broken}), problems
    except ValidationError:  # a method's own mapping named a bad axis
        return None, problems


def _problems(error: ValidationError, values: Mapping[str, Any], places: _Places) -> list[Problem]:
    """One problem per key; the branches of a union that were tried in vain are joined."""
    by_place: dict[Path_, list[Any]] = {}
    for e in error.errors():
        path = _in_data(e["loc"], values, missing=e["type"] == "missing")
        by_place.setdefault(path, []).append(e)
    found = []
    for path, errors in by_place.items():
        first = errors[0]
        if first["type"] == "extra_forbidden":
            model = _model_at(path[:-1])
            fix = nearest(path[-1], model.model_fields) if model else ""
            found.append(Problem(places(*path), "unknown key", fix))
            continue
        what = " or ".join(dict.fromkeys(_in_words(e["msg"]) for e in errors))
        value = first.get("input")
        shown = f" (it is {value!r})" if isinstance(value, (str, int, float, bool)) else ""
        found.append(Problem(places(*path), what + shown))
    return found


def _in_words(message: str) -> str:
    """What pydantic says, in the words of YAML."""
    text = message.removeprefix("Value error, ").replace("valid tuple", "list")
    text = re.sub(r"valid dictionary( or instance of \w+)?", "mapping of keys to values", text)
    return text[:1].lower() + text[1:]


def _in_data(location: Iterable[Any], values: Any, *, missing: bool) -> Path_:
    """The part of an error's location that stands in the data; pydantic also names the branches it tried."""
    path: list[str] = []
    here = values
    location = tuple(location)
    if location and location[0] not in values and location[0] in AXES:
        location = ("method", *location)  # where it was named beside the method's own settings
    for part in location:
        if (isinstance(here, Mapping) and part in here) or (
            isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        ):
            here = here[part]
        elif not (missing and isinstance(here, Mapping)):
            continue
        path.append(str(part))
    return tuple(path)


def _model_at(path: Path_) -> type[BaseModel] | None:
    """The part of the schema at a key."""
    model: Any = Recipe
    for name in path:
        known = getattr(model, "model_fields", {})
        if name not in known:
            return None
        annotation = known[name].annotation
        parts = (annotation, *getattr(annotation, "__args__", ()))
        model = next((a for a in parts if isinstance(a, type) and issubclass(a, BaseModel)), None)
    return model if model is not None else None


def _check_names(recipe: Recipe, places: _Places) -> list[Problem]:
    """Registered names and the settings given with them."""
    problems = _check_named(METHODS, recipe.method, places, "method")
    kinds: dict[str, Registry] = {
        "control": CONTROLS, "transform": TRANSFORMS, "selection": SELECTIONS, "annotators": ANNOTATORS,
    }  # fmt: skip
    for kind, registry in kinds.items():
        for i, named in enumerate(getattr(recipe, kind)):
            problems += _check_named(registry, named, places, kind, str(i))
    for i, attack in enumerate(() if isinstance(recipe.audit, str) else recipe.audit):
        problems += _check_named(ATTACKS, attack, places, "audit", str(i), more=PROFILES)
    for i, method in enumerate(recipe.tune.methods if recipe.tune else ()):
        problems += _check_named(METHODS, method, places, "tune", "methods", str(i))
    for i, named in enumerate(recipe.compose.interventions if recipe.compose else ()):
        problems += _check_named(INTERVENTIONS, named, places, "compose", "interventions", str(i))
    if not problems:
        problems += _check_axes(recipe, places)
    names = [
        (RETAIN_LOSSES, recipe.method.settings.get("retain"), ("method", "retain"), ()),
        (BENCHMARKS, recipe.benchmark.name if recipe.benchmark else None, ("benchmark",), ()),
        (METRICS, recipe.bar.metric, ("bar", "metric"), ("auto",)),
        (METRICS, recipe.tune.metric if recipe.tune else None, ("tune", "metric"), ("auto",)),
    ]
    for registry, name, path, more in names:
        if name is not None:
            problems += _check_name(registry, name, places(*path), more)
    return problems


def _check_axes(recipe: Recipe, places: _Places) -> list[Problem]:
    """Axes of the training loop named for a method that never enters it."""
    if METHODS.get(recipe.method.name).kind in ("objective", "loop"):
        return []
    what = f"acts on a training step, and {recipe.method.name} has none"
    return [
        Problem(places(axis), what, f"Remove {axis}")
        for axis in ("transform", "selection")
        if getattr(recipe, axis)
    ]


def _check_name(registry: Registry, name: Any, where: str, more: Iterable[str] = ()) -> list[Problem]:
    known = [*registry.names(), *more]
    return (
        []
        if name in known
        else [
            Problem(where, f"unknown {registry.kind.replace('_', ' ')} {name!r}", nearest(str(name), known))
        ]
    )


def _check_named(
    registry: Registry, named: Named, places: _Places, *path: str, more: Iterable[str] = ()
) -> list[Problem]:
    unknown = _check_name(registry, named.name, places(*path), more)
    if unknown or not named.settings:
        return unknown
    try:
        registry.make(named.name, **named.settings)
    except ConfigError as error:
        return [Problem(places(*path), f"{p.where}: {p.what}", p.fix) for p in error.problems]
    return []


def _check_device(recipe: Recipe, places: _Places) -> list[Problem]:
    if recipe.device == "auto":
        return []
    import torch

    try:
        torch.empty(0, device=recipe.device)
    except (RuntimeError, AssertionError) as error:
        what = f"{recipe.device!r} cannot be used here ({str(error).splitlines()[0][:80]})"
        return [Problem(places("device"), what, "Try auto or cpu")]
    return []


def _check_bar(recipe: Recipe, places: _Places) -> list[Problem]:
    """Only a metric with a better side on calibration can carry a bar."""
    name = recipe.bar.metric
    if name == "auto" or name not in METRICS.names():
        return []
    metric = make_metric(name)
    if metric.applies("calibration") and metric.better("calibration") in ("higher", "lower"):
        return []
    what = f"{name} is neither higher nor lower for a better model"
    return [Problem(places("bar", "metric"), what, "Try auto, extraction_strength or probability")]


def _check_sources(recipe: Recipe, places: _Places) -> list[Problem]:
    """Where model and forget set come from: a benchmark, files, an earlier run, or the model itself."""
    if recipe.benchmark:
        own = ("model", "after", "requests", *SPLITS)
        beside = [key for key in own if getattr(recipe, key) is not None]
        beside += ["oracle"] if recipe.oracle != OracleSettings() else []
        what = "stands beside a benchmark, which brings its own"
        return [Problem(places(key), what, f"Remove {key} or benchmark") for key in beside]
    problems = []
    if recipe.after and not recipe.follows and recipe.requests is None:
        problems.append(Problem(places("after"), "names no run", "Write after: runs/NAME"))
    if recipe.follows and recipe.model:
        what = "stands beside after, whose run brings the model"
        problems.append(Problem(places("model"), what, "Remove model or after"))
    if recipe.follows and Path(recipe.follows).absolute() == Path(recipe.output).absolute():
        what = "is the run that this one is to follow"
        problems.append(Problem(places("output"), what, "Choose another output"))
    if recipe.requests is not None:
        beside = [key for key in ("forget", "forget_hard") if getattr(recipe, key) is not None]
        what = "stands beside requests, which bring their own"
        problems += [Problem(places(key), what, f"Remove {key} or requests") for key in beside]
        if not recipe.requests:
            problems.append(Problem(places("requests"), "is empty", "Name at least one forget set"))
    for key, there, what in (
        ("model", recipe.model or recipe.follows, "a folder or hub id"),
        ("forget", recipe.forget or recipe.requests is not None, "a file with what must be forgotten"),
    ):
        if not there:
            problems.append(Problem(places(key), "is missing", f"Give {what}, or a benchmark"))
    return problems
