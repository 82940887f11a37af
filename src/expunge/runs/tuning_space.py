"""What a search varies, and the next point of it: a function of the recipe, the finished trials and a seed.

An axis is named `train.lr`, `npo.beta`, `cap.p_min`: an owner (train, a method, a control during training)
and its setting. Its range is, first found: the recipe's `tune.space`; the setting's `Search` annotation; its
default times and divided by 4 (learning rates and the retain weight 10, lengths of training 2), within the
bounds of its annotation. Settings that are no real numbers, zero, or infinite stay as they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from expunge.controls import CONTROLS, make_control
from expunge.errors import ConfigError, Problem, nearest, require
from expunge.methods import METHODS, make_method
from expunge.registry import Search
from expunge.runs.folder import remove
from expunge.runs.recipe import Named, Recipe
from expunge.stats import seed_from
from expunge.training.settings import TrainSettings

__all__ = ["Axis", "Point", "apply", "check_space", "load_optuna", "space_of", "suggest", "write_journal"]

FACTOR, RATE, LENGTH = 4.0, 10.0, 2.0
"""How far from its default a setting is searched: any; learning rates and the retain weight; durations."""

ATTEMPTS = 20
"""How often a sampler is asked for a point that was not tried yet."""

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """One setting that is searched, from `low` to `high` (by powers where both are above 0) or over `values`.

    `center` is what the recipe, or the default, says: the first trial of every method.
    """

    key: str
    center: Any
    low: float = 0.0
    high: float = 0.0
    values: tuple[Any, ...] = ()
    whole: bool = False

    @property
    def log(self) -> bool:
        return self.low > 0

    @property
    def varies(self) -> bool:
        return len(self.values) > 1 or self.low < self.high

    def distribution(self) -> Any:
        made = load_optuna().distributions
        if self.values:
            return made.CategoricalDistribution(self.values)
        if self.whole:
            return made.IntDistribution(int(self.low), int(self.high), log=self.log)
        return made.FloatDistribution(self.low, self.high, log=self.log)

    def rounded(self, value: Any) -> Any:
        """Three digits are as fine as a search can tell apart, and can be read."""
        if self.values or self.whole:
            return value
        return min(max(float(f"{value:.3g}"), self.low), self.high)

    def told(self) -> dict[str, Any]:
        """The axis as JSON."""
        return (
            {"values": list(self.values)}
            if self.values
            else {"low": self.low, "high": self.high, "log": self.log}
        )


def load_optuna() -> Any:
    optuna = require("optuna", why="expunge tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# The space --------------------------------------------------------------------------------------------


def space_of(recipe: Recipe, method: Named, train: TrainSettings) -> tuple[Axis, ...]:
    """The axes of one method under a recipe; `train` are the settings in force. Raises ConfigError."""
    assert recipe.tune is not None
    said = dict(recipe.tune.space)
    axes = {axis.key: axis for axis in _derived(recipe, method, train)}
    problems: list[Problem] = []
    for key, value in said.items():
        owner, _, name = key.partition(".")
        if owner not in ("train", method.name, *(c.name for c in recipe.control)):
            continue  # of a method that is not searched now
        try:
            axes[key] = _said(key, value, _current(recipe, method, train, owner, name))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tuple(axes.values())


def check_space(recipe: Recipe) -> list[Problem]:
    """What is wrong with the names in `tune.space`."""
    assert recipe.tune is not None
    problems = []
    for key in recipe.tune.space:
        owner, _, name = key.partition(".")
        if owner == "train":
            known = list(TrainSettings.model_fields)
        elif owner in METHODS.names():
            known = [f.name for f in fields(METHODS.get(owner)) if f.init]  # type: ignore[arg-type]
        elif any(control.name == owner for control in recipe.control):
            known = [f.name for f in fields(CONTROLS.get(owner)) if f.init]  # type: ignore[arg-type]
        else:
            there = ["train", *METHODS.names(), *(control.name for control in recipe.control)]
            what = f"{owner!r} is no method, and no control of this recipe"
            problems.append(Problem(f"tune.space.{key}", what, nearest(owner, there)))
            continue
        if name not in known:
            problems.append(Problem(f"tune.space.{key}", f"no setting {name!r}", nearest(name, known)))
    return problems


def _derived(recipe: Recipe, method: Named, train: TrainSettings) -> Iterator[Axis]:
    made: Any = make_method(method.name, **method.settings)
    if made.trains:
        yield Axis("train.lr", train.lr, train.lr / RATE, train.lr * RATE)
        if train.steps:
            low = max(1, round(train.steps / LENGTH))
            yield Axis("train.steps", train.steps, low, round(train.steps * LENGTH), whole=True)
        else:
            yield Axis("train.epochs", train.epochs, train.epochs / LENGTH, train.epochs * LENGTH)
        if train.batch > 1:  # never more memory than the recipe takes as it stands
            yield Axis("train.batch", train.batch, max(1, train.batch // 4), train.batch, whole=True)
    if made.card.fields.get("family") != "exact":  # whose settings are guarantees, or what they cost
        skip = {"forget_weight"}  # only its ratio to the retain weight counts
        if getattr(made, "retain", "none") == "none":
            skip.add("retain_weight")
        yield from _numbers(method.name, made, skip)
    for control in recipe.control:
        bound = make_control(control.name, **control.settings)
        if bound.when == "during":
            yield from _numbers(control.name, bound, set())


def _numbers(owner: str, made: Any, skip: set[str]) -> Iterator[Axis]:
    """The axes of a frozen dataclass of settings."""
    hints = get_type_hints(type(made), include_extras=True)
    for field in fields(made):
        value, notes = getattr(made, field.name), _notes(hints[field.name])
        search = next((n for n in notes if isinstance(n, Search)), None)
        if not field.init or field.name in skip or (search is not None and search.low is None):
            continue
        number = isinstance(value, float) and math.isfinite(value) and value != 0
        if search is not None and isinstance(value, int | float):
            assert search.low is not None
            assert search.high is not None
            low, high = min(search.low, value), max(search.high, value)
            yield Axis(f"{owner}.{field.name}", value, low, high, whole=isinstance(value, int))
        elif number:
            low, high = _around(value, _factor(field.name), notes)
            yield Axis(f"{owner}.{field.name}", value, low, high)


def _notes(hint: Any) -> tuple[Any, ...]:
    """What `Annotated` says, also inside `… | None`."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return (*notes, *_notes(inner))
    return tuple(note for part in get_args(hint) for note in _notes(part)) if get_args(hint) else ()


def _factor(name: str) -> float:
    if name == "lr" or name.endswith("_lr") or name == "retain_weight":
        return RATE
    return LENGTH if name.endswith("epochs") else FACTOR


def _around(center: float, factor: float, notes: Sequence[Any]) -> tuple[float, float]:
    """From center/factor to center·factor, within the bounds; an open bound is approached, not reached."""
    low, high = sorted((center / factor, center * factor))
    share = 1 - 1 / factor
    for note in notes:
        if isinstance(note, Ge):
            low = max(low, float(note.ge))  # type: ignore[arg-type]
        elif isinstance(note, Gt):
            low = max(low, center - (center - float(note.gt)) * share)  # type: ignore[arg-type]
        elif isinstance(note, Le):
            high = min(high, float(note.le))  # type: ignore[arg-type]
        elif isinstance(note, Lt):
            high = min(high, center + (float(note.lt) - center) * share)  # type: ignore[arg-type]
    return low, high


def _current(recipe: Recipe, method: Named, train: TrainSettings, owner: str, name: str) -> Any:
    if owner == "train":
        return getattr(train, name)
    if owner == method.name:
        return getattr(make_method(method.name, **method.settings), name)
    control = next(c for c in recipe.control if c.name == owner)
    return getattr(make_control(control.name, **control.settings), name)


def _said(key: str, value: Any, center: Any) -> Axis:
    """An axis as a recipe writes it: [low, high], {values: […]}, or one value to hold it at."""
    plain = (bool, int, float, str, type(None))
    if isinstance(value, Mapping) and set(value) == {"values"} and isinstance(value["values"], list | tuple):
        values = tuple(value["values"])
        if values and all(isinstance(v, plain) for v in values):
            return Axis(key, center if center in values else values[0], values=values)
    elif isinstance(value, list | tuple):
        numbers = len(value) == 2 and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in value
        )
        if numbers and -math.inf < value[0] < value[1] < math.inf:
            low, high = value
            whole = all(isinstance(v, int) for v in (low, high)) and (
                isinstance(center, int) or center is None
            )
            middle = math.sqrt(low * high) if low > 0 else (low + high) / 2
            start = center if isinstance(center, int | float) and low <= center <= high else middle
            made = Axis(key, start, low, high, whole=whole)
            return replace(made, center=round(start) if whole else made.rounded(float(start)))
    elif isinstance(value, plain):
        return Axis(key, value, values=(value,))
    fix = "Write [low, high], {values: [a, b, …]}, or one value"
    raise ConfigError(Problem(f"tune.space.{key}", f"{value!r} is no range", fix))


def apply(recipe: Recipe, method: Named, params: Params) -> Recipe:
    """The recipe of one trial: this method, these settings."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in params.items():
        owner, _, name = key.partition(".")
        parts.setdefault(owner, {})[name] = value
    control = tuple(
        Named(name=c.name, settings={**c.settings, **parts.get(c.name, {})}) for c in recipe.control
    )
    train = {**recipe.train.model_dump(exclude_unset=True), **parts.get("train", {})}
    update = {
        "method": Named(name=method.name, settings={**method.settings, **parts.get(method.name, {})}),
        "control": control,
        "train": TrainSettings.model_validate(train),
    }
    return recipe.model_copy(update=update)


# The search -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A finished trial as the sampler sees it; `value` is minimized, None where there is no score."""

    params: Params
    value: float | None


def suggest(axes: Sequence[Axis], before: Sequence[Point], seed: int) -> dict[str, Any] | None:
    """The parameters of the trial that follows `before`: first the center, then what TPE proposes.

    The sampler is seeded by (seed, number) anew for each trial: a search that was killed goes on as if it had
    not been. None where a space of few values has nothing left that was not tried.
    """
    if not before:
        return {axis.key: axis.center for axis in axes}
    optuna = load_optuna()
    tried = [dict(point.params) for point in before]
    for attempt in range(ATTEMPTS if any(axis.varies for axis in axes) else 0):
        own = seed_from(seed, "trial", len(before), attempt) % 2**32
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=own))
        study.add_trials(_frozen(axes, before))
        asked = study.ask({axis.key: axis.distribution() for axis in axes})
        params = {axis.key: axis.rounded(asked.params[axis.key]) for axis in axes}
        if params not in tried:
            return params
    return None


def _frozen(axes: Sequence[Axis], points: Sequence[Point]) -> list[Any]:
    trial = load_optuna().trial
    kinds = {axis.key: axis.distribution() for axis in axes}
    return [
        trial.create_trial(
            state=trial.TrialState.FAIL if point.value is None else trial.TrialState.COMPLETE,
            params=dict(point.params), distributions=kinds, value=point.value,
        )
        for point in points
    ]  # fmt: skip


def write_journal(path: Path, searches: Mapping[str, tuple[Sequence[Axis], Sequence[Point]]]) -> None:
    """The search as an optuna journal, one study per method, for its dashboard; nothing reads it back."""
    optuna = load_optuna()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(temporary)))
    for name, (axes, points) in searches.items():
        optuna.create_study(study_name=name, storage=storage).add_trials(_frozen(axes, points))
    os.replace(temporary, path)
