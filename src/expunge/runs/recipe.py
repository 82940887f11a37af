"""The recipe: everything a run depends on, validated as a whole before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from expunge.attacks import ATTACKS
from expunge.benchmarks import BENCHMARKS
from expunge.controls import CONTROLS
from expunge.data.request import SPLITS, Target
from expunge.errors import ConfigError, Problem, nearest
from expunge.methods import METHODS
from expunge.metrics import METRICS
from expunge.runs.yamlfile import parse_value, read_recipe_file, set_path
from expunge.training.retain import RETAIN_LOSSES
from expunge.training.settings import TrainSettings
from expunge.training.workspace import LoraSettings

__all__ = ["BarSettings", "Named", "OracleSettings", "Recipe", "load_recipe", "make_recipe"]

PROFILES = ("quick", "default", "deep")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(Part):
    """A registered thing by name, with its own settings: `npo`, or `{name: npo, beta: 0.2}`."""

    name: str
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and len(value) == 1 and "name" not in value:
            name, settings = next(iter(value.items()))  # - uwc: {grid: 8}
            if isinstance(settings, Mapping) or settings is None:
                return {"name": name, "settings": dict(settings or {})}
        if isinstance(value, Mapping) and "settings" not in value:
            return {"name": value.get("name"), "settings": {k: v for k, v in value.items() if k != "name"}}
        return value


class BarSettings(Part):
    """How much utility must remain, stated before training."""

    metric: str = Field(
        "auto", description="any metric; auto: extraction strength, else probability, else perplexity"
    )
    keep: float = Field(
        0.95, gt=0, le=1, description="τ: share of the original's value that must remain on calibration"
    )


class OracleSettings(Part):
    """`none`, a folder, or `retrain`: train without the forget set."""

    folder: str | None = None
    retrain: bool = False
    base: str | None = Field(None, description="a model from before exposure; without it, fresh weights")
    train: TrainSettings | None = Field(None, description="default: the recipe's own")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value in (None, "none", False):
            return {}
        if value == "retrain":
            return {"retrain": True}
        return {"folder": value} if isinstance(value, str) else value


class TargetSettings(Part):
    kind: Literal["records", "entity", "topic", "capability", "document", "attribute"] = "records"
    aim: Literal["erase_influence", "remove_capability"] = "erase_influence"

    def target(self) -> Target:
        return Target(self.kind, self.aim)


class Requirements(Part):
    """Bars beyond the control's; a missed one ends the run with exit code 3."""

    forget_above_oracle: float | None = Field(
        None, ge=0, description="extraction strength on forget, at most this above the oracle's"
    )
    recovery: float | None = Field(None, ge=0, description="worst recovery over the attacks, at most this")
    report_keep: float | None = Field(
        None, gt=0, le=1, description="share of the bar's metric kept on report records"
    )


class Recipe(Part):
    """What to forget, in which model, how, under which bar, and how it is audited."""

    name: str | None = None
    benchmark: Named | None = Field(
        None, description="stands for model, splits and oracle: personas/small, tofu/forget05"
    )
    model: str | None = Field(None, description="folder or hub id of the original model")
    forget: str | None = None
    retain: str | None = Field(None, description="what must stay; may be unrelated public text")
    forget_hard: str | None = None
    neighbors: str | None = None
    calibration: str | None = None
    report: str | None = None
    holdout: str | None = Field(
        None, description="same kind, never seen by the model: without it no membership attack"
    )
    utility: str | None = None
    columns: dict[str, str | dict[str, str]] = Field(
        {}, description="our name → your column, for all files or per split"
    )
    oracle: OracleSettings = OracleSettings()
    target: TargetSettings = TargetSettings()
    method: Named = Named(name="graddiff")
    adapter: Literal["full", "lora"] = "full"
    lora: LoraSettings = LoraSettings()
    reference: Literal["auto", "cache", "live", "adapter_off"] = "auto"
    reference_budget: float = Field(2.0, gt=0, description="GiB the cached reference may take")
    bar: BarSettings = BarSettings()
    control: tuple[Named, ...] = (Named(name="uwc"),)
    audit: str | tuple[Named, ...] = Field(
        "default", description="quick, default, deep, or a list of attacks"
    )
    attack_lrs: tuple[float, ...] = (1e-5, 5e-5, 2e-4)
    require: Requirements = Requirements()
    train: TrainSettings = TrainSettings()
    max_new_tokens: int = Field(200, gt=0)
    max_length: int | None = Field(None, gt=1)
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the master weights")
    device: str = "auto"
    attention: str | None = None
    trust_remote_code: bool = False
    show_text: bool = Field(False, description="put forget-set text into the report")
    seed: int = Field(0, ge=0)
    output: str = "runs/run"

    @field_validator("control", "audit", mode="before")
    @classmethod
    def _as_list(cls, value: Any, info: Any) -> Any:
        if value in (None, "none"):
            return ()
        if isinstance(value, str) and (info.field_name == "control" or value not in PROFILES):
            return (value,)
        return value

    @field_validator("benchmark", mode="before")
    @classmethod
    def _part(cls, value: Any) -> Any:
        if isinstance(value, str) and "/" in value:
            name, _, part = value.partition("/")
            return {"name": name, "settings": {"part": part}}
        return value

    @model_validator(mode="before")
    @classmethod
    def _method_axes(cls, value: Any) -> Any:
        """`method: {name: npo, adapter: lora}` may name the axes beside the method's own settings."""
        if isinstance(value, Mapping) and isinstance(value.get("method"), Mapping):
            value = dict(value)
            method = dict(value["method"])
            for axis in ("adapter", "lora", "reference"):
                if axis in method:
                    value[axis] = method.pop(axis)
            value["method"] = method
        return value

    @property
    def profile(self) -> str:
        return self.audit if isinstance(self.audit, str) else "default"

    @property
    def sources(self) -> dict[str, str]:
        return {split: getattr(self, split) for split in SPLITS if getattr(self, split)}


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
    lines: Mapping[tuple[str, ...], int] | None = None,
    file: str = "",
) -> Recipe:
    data = {str(key): value for key, value in data.items()}
    problems = []
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(item, "is not an override", "Write key=value, as in train.lr=1e-4"))
            continue
        set_path(data, key.strip(), parse_value(text))

    def where(location: Sequence[Any]) -> str:
        path = tuple(
            str(p)
            for p in location
            if not str(p).startswith(("function-", "constrained-", "tuple", "str", "union"))
        )
        for end in range(len(path), 0, -1):
            if lines and path[:end] in lines:
                return f"{file}:{lines[path[:end]]} {'.'.join(path)}"
        return ".".join(path) or file or "recipe"

    try:
        recipe = Recipe.model_validate(data)
        problems += _check_sources(recipe, where)
    except ValidationError as error:
        problems += [_problem(e, where) for e in error.errors()]
        broken = {str(e["loc"][0]) for e in error.errors() if e["loc"]}
        recipe = Recipe.model_validate({k: v for k, v in data.items() if k not in broken})
    problems += _check_names(recipe, where)
    if problems:
        raise ConfigError(problems)
    return recipe


def _problem(error: Any, where: Any) -> Problem:
    location = error["loc"]
    if error["type"] == "extra_forbidden":
        model = _model_at(location[:-1])
        fix = nearest(str(location[-1]), model.model_fields) if model else ""
        return Problem(where(location), "unknown key", fix)
    what = str(error["msg"]).removeprefix("Value error, ")
    value = error.get("input")
    shown = f" (it is {value!r})" if isinstance(value, (str, int, float, bool)) else ""
    return Problem(where(location), what[:1].lower() + what[1:] + shown)


def _model_at(location: Sequence[Any]) -> type[BaseModel] | None:
    model: Any = Recipe
    for name in location:
        if isinstance(name, int) or name not in getattr(model, "model_fields", {}):
            return model if isinstance(model, type) else None
        annotation = model.model_fields[name].annotation
        inner = [
            a
            for a in (annotation, *getattr(annotation, "__args__", ()))
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        model = inner[0] if inner else None
    return model


def _check_names(recipe: Recipe, where: Any) -> list[Problem]:
    """Registered names and the settings given with them."""
    problems: list[Problem] = []

    def check(registry: Any, named: Named, *path: str) -> None:
        if named.name not in registry.names():
            problems.append(
                Problem(
                    where(path),
                    f"unknown {registry.kind} {named.name!r}",
                    nearest(str(named.name), registry.names()),
                )
            )
        elif named.settings:
            try:
                registry.make(named.name, **named.settings)
            except ConfigError as error:
                problems.extend(Problem(where(path), f"{p.where}: {p.what}", p.fix) for p in error.problems)

    check(METHODS, recipe.method, "method")
    for i, control in enumerate(recipe.control):
        check(CONTROLS, control, "control", str(i))
    for i, attack in enumerate(recipe.audit if not isinstance(recipe.audit, str) else ()):
        check(ATTACKS, attack, "audit", str(i))
    if recipe.benchmark and recipe.benchmark.name not in BENCHMARKS.names():
        problems.append(
            Problem(
                where(("benchmark",)),
                f"unknown benchmark {recipe.benchmark.name!r}",
                nearest(recipe.benchmark.name, BENCHMARKS.names()),
            )
        )
    if recipe.bar.metric != "auto" and recipe.bar.metric not in METRICS.names():
        problems.append(
            Problem(
                where(("bar", "metric")),
                f"unknown metric {recipe.bar.metric!r}",
                nearest(recipe.bar.metric, ["auto", *METRICS.names()]),
            )
        )
    retain = recipe.method.settings.get("retain")
    if retain is not None and retain not in RETAIN_LOSSES.names():
        problems.append(
            Problem(
                where(("method", "retain")),
                f"unknown retain loss {retain!r}",
                nearest(str(retain), RETAIN_LOSSES.names()),
            )
        )
    return problems


def _check_sources(recipe: Recipe, where: Any) -> list[Problem]:
    """Either a benchmark, or a model and a forget set."""
    problems = []
    if recipe.benchmark:
        for key in ("model", *SPLITS):
            if getattr(recipe, key) is not None:
                problems.append(
                    Problem(
                        where((key,)),
                        "stands beside a benchmark, which brings its own",
                        f"Remove `{key}` or `benchmark`",
                    )
                )
        if recipe.oracle != OracleSettings():
            problems.append(
                Problem(
                    where(("oracle",)), "stands beside a benchmark, which brings its own", "Remove `oracle`"
                )
            )
        return problems
    if not recipe.model:
        problems.append(Problem("model", "is missing", "Give a folder or hub id, or a `benchmark`"))
    if not recipe.forget:
        problems.append(
            Problem("forget", "is missing", "Give a file with what must be forgotten, or a `benchmark`")
        )
    for key in ("model", "forget"):
        if getattr(recipe, key) == "":
            problems.append(Problem(where((key,)), "is empty"))
    return problems
