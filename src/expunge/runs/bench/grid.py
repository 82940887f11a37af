"""The grid of a bench: what is asked for, checked at once, and the cells it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from expunge.benchmarks import BENCHMARKS
from expunge.errors import ConfigError, InputError, Problem, nearest
from expunge.methods import METHODS
from expunge.runs.folder import code_version, hash_of
from expunge.runs.prepare import make_benchmark
from expunge.runs.reading import make_recipe
from expunge.runs.recipe import Recipe
from expunge.runs.yamlfile import parse_value, read_recipe_file

__all__ = ["Grid", "Spec", "cells", "overrides_told", "profile_of", "read_grid"]

TAUS = (0.95, 0.9, 0.6)
SEEDS = 3

AXES = (
    "train", "adapter", "lora", "reference", "reference_budget", "transform", "selection", "control", "watch",
)  # fmt: skip
"""Keys of the recipe that may differ between methods: `npo.train.lr=1e-5`."""

OURS = {
    "method": "--methods", "seed": "--seeds", "train.seed": "--seeds", "bar.keep": "--tau",
    "benchmark.part": "--splits", "benchmark.name": "the name", "output": "--output",
}  # fmt: skip
"""What the grid itself says, by the option that says it."""

FOREIGN = ("tune", "compose", "requests", "after", "deploy", "name")
"""Parts of a recipe that have no meaning in a bench."""

CODE = (
    "data", "subjects", "evidence", "metrics", "measure", "training", "explain", "methods", "controls",
    "interventions", "attacks", "audit", "benchmarks",
)  # fmt: skip
"""Rooms whose code decides the numbers of a cell."""


@dataclass(frozen=True)
class Grid:
    """What is asked for. `recipe` is shared by all cells, `overrides` may begin with a method's name."""

    benchmark: str
    parts: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int = SEEDS
    taus: tuple[float, ...] = TAUS
    recipe: Mapping[str, Any] | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A cell to compute. `overrides` are those of its method; `key` hashes all that decides its numbers."""

    benchmark: str
    part: str
    method: str
    seed: int
    taus: tuple[float, ...]
    data: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    key: str = ""

    @property
    def name(self) -> str:
        return f"{self.part or 'all'}--{self.method}--{self.seed}"

    def recipe(self, tau: float, output: Path = Path("runs/run")) -> Recipe:
        """The recipe of one run: only the training's seed differs between seeds, so all else is shared."""
        data = {
            "audit": "quick", **self.data, "name": f"{self.name}, keep {tau:g}", "method": self.method,
            "output": str(output),
        }  # fmt: skip
        own = (f"train.seed={self.seed}", f"bar.keep={tau}")
        return _without_sweep(make_recipe(data, (*self.overrides, *own)))

    def dumped(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loaded(cls, text: str) -> Spec:
        data = json.loads(text)
        return cls(**{**data, "taus": tuple(data["taus"]), "overrides": tuple(data["overrides"])})


def _without_sweep(recipe: Recipe) -> Recipe:
    """Each τ is a run of its own: the sweep of uwc would measure the same again."""
    control = [
        named.model_copy(update={"settings": {"taus": [], **named.settings}})
        if named.name == "uwc"
        else named
        for named in recipe.control
    ]
    return recipe.model_copy(update={"control": tuple(control)})


# What is asked for ------------------------------------------------------------------------------------


def read_grid(
    name: str,
    overrides: Sequence[str] = (),
    *,
    splits: str | None = None,
    methods: str | None = None,
    seeds: int | None = None,
    taus: str | None = None,
) -> Grid:
    """The grid from a benchmark's name or a YAML file, under the options. Raises ConfigError."""
    data: dict[str, Any] = {"benchmark": name}
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        data = dict(read_recipe_file(Path(name))[0])
    for key, text in (("splits", splits), ("methods", methods), ("tau", taus)):
        if text is not None:
            data[key] = [part.strip() for part in text.split(",")]
    if seeds is not None:
        data["seeds"] = seeds
    problems: list[Problem] = []
    named = data.pop("benchmark", None)
    options = dict(named) if isinstance(named, Mapping) else {"name": named}
    benchmark, _, part = str(options.pop("name", "") or "").partition("/")
    part = str(options.pop("part", "") or part)
    grid = Grid(
        benchmark,
        tuple(map(str, _listed(data.pop("splits", None)))) or (part,),
        tuple(map(str, _listed(data.pop("methods", None)))),
        _seeds(data.pop("seeds", SEEDS), problems),
        _taus(_listed(data.pop("tau", TAUS)), problems),
    )
    of_methods = [item for key in list(data) if key in METHODS.names() for item in _flat(key, data.pop(key))]
    shared = {**data, "benchmark": {"name": benchmark, **options}}
    grid = replace(grid, recipe=shared, overrides=(*of_methods, *overrides))
    problems += _problems(grid)
    if problems:
        raise ConfigError(problems)
    return grid


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _flat(prefix: str, value: Any) -> Iterator[str]:
    """A method's mapping in a file as overrides: {beta: 0.2, train: {lr: 1e-5}}."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}", inner)
    else:
        yield f"{prefix}={json.dumps(value)}"


def _seeds(value: Any, problems: list[Problem]) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    problems.append(Problem("--seeds", f"is {value!r}", "Give a number of seeds from 1 up"))
    return 1


def _taus(values: Sequence[Any], problems: list[Problem]) -> tuple[float, ...]:
    found = []
    for value in values:
        try:
            tau = float(value)
        except (TypeError, ValueError):
            tau = 0.0
        if 0 < tau <= 1:
            found.append(tau)
        else:
            problems.append(Problem("--tau", f"{value!r} is no share", "Give numbers above 0, at most 1"))
    return tuple(sorted(set(found), reverse=True))


def _problems(grid: Grid) -> Iterator[Problem]:
    if grid.benchmark not in BENCHMARKS.names():
        what = f"unknown benchmark {grid.benchmark!r}" if grid.benchmark else "no benchmark is named"
        yield Problem("bench", what, nearest(grid.benchmark, BENCHMARKS.names()))
    if not grid.methods:
        yield Problem("--methods", "names none", "As in --methods graddiff,npo; see: expunge list methods")
    for method in dict.fromkeys(grid.methods):
        if method not in METHODS.names():
            yield Problem("--methods", f"unknown method {method!r}", nearest(method, METHODS.names()))
    for option, names in (("--methods", grid.methods), ("--splits", grid.parts)):
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield Problem(option, f"{name} stands there twice", "Name each once")
    said = [item.partition("=")[0].strip() for item in grid.overrides]
    said += [*map(str, grid.recipe or ()), *_dotted(grid.recipe or {})]
    for key in dict.fromkeys(said):
        first, _, rest = key.partition(".")
        if place := OURS.get(rest if first in METHODS.names() else key):
            yield Problem(key, "is what the grid says", f"Say it by {place}")
        elif first in FOREIGN:
            yield Problem(key, "has no meaning in a bench", f"Remove {first}")
        elif first in METHODS.names() and first not in grid.methods:
            yield Problem(key, f"{first} is not among the methods", f"Remove it, or add {first} to --methods")


def _dotted(recipe: Mapping[str, Any]) -> Iterator[str]:
    for key, value in recipe.items():
        if key != "benchmark" and isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in value)


# The cells --------------------------------------------------------------------------------------------


def cells(grid: Grid) -> list[Spec]:
    """Every cell of the grid, parts in turn; ConfigError with all that is wrong in any of them.

    Records are read and checked here, once, so that a missing file is not the failure of every cell.
    """
    problems: list[Problem] = []
    specs, marks = [], {}
    for method in grid.methods:
        for part in grid.parts:
            specs.append(_spec(grid, part, method))
            try:
                problems += _uncontrolled(specs[-1].recipe(grid.taus[0]))
            except InputError as error:
                problems += error.problems
    for spec in specs[: len(grid.parts)]:
        try:
            marks[spec.part] = _records(spec)
        except InputError as error:
            problems += error.problems
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    seeded = [replace(spec, seed=seed) for seed in range(grid.seeds) for spec in specs]
    return [replace(spec, key=_key(spec, marks[spec.part])) for spec in seeded]


def _spec(grid: Grid, part: str, method: str) -> Spec:
    data = dict(grid.recipe or {})
    data["benchmark"] = {**data.get("benchmark", {}), **({"part": part} if part else {})}
    own = tuple(item for text in grid.overrides if (item := _of_method(text, method)) is not None)
    return Spec(grid.benchmark, part, method, 0, grid.taus, data, own)


def _of_method(item: str, method: str) -> str | None:
    """An override as the recipe of this method has it; None where it is another method's."""
    key, equals, value = item.partition("=")
    first, _, rest = key.strip().partition(".")
    if first not in METHODS.names() or not rest:
        return item
    if first != method:
        return None
    settings = {f.name for f in fields(METHODS.get(method))}  # type: ignore[arg-type]
    head = rest.partition(".")[0]
    place = rest if head in AXES and head not in settings else f"method.{rest}"
    return f"{place}{equals}{value}"


def _uncontrolled(recipe: Recipe) -> Iterator[Problem]:
    if not any(named.name == "uwc" for named in recipe.control):
        what = "a leaderboard compares at equal utility, and control holds no uwc"
        yield Problem("control", what, "Add uwc")


def _records(spec: Spec) -> str:
    """The fingerprint of a part's records, which are read and checked for it."""
    own = [item for item in spec.overrides if item.startswith("benchmark.")]
    recipe = make_recipe({"benchmark": spec.data["benchmark"]}, own)
    return make_benchmark(recipe).request().fingerprint()


def _key(spec: Spec, request: str) -> str:
    """What the recipe says outright counts too: it stands above a benchmark's own settings."""
    recipe, idle = spec.recipe(spec.taus[0]), {"name", "output", "show_text"}
    told = [recipe.model_dump(mode="json", exclude=idle, exclude_unset=unset) for unset in (False, True)]
    return hash_of([*told, list(spec.taus), request, code_version(*CODE)])


def profile_of(recipe: Recipe) -> str:
    """The audit's profile; attacks of one's own by name, so that no two lists pass for the same."""
    if isinstance(recipe.audit, str):
        return recipe.audit
    own = [named.model_dump(mode="json") for named in recipe.audit if named.settings]
    names = ", ".join(named.name for named in recipe.audit) or "no attack"
    return f"{names} ({hash_of(own)[:6]})" if own else names


def overrides_told(grid: Grid) -> list[str]:
    """What was set beyond the grid, as a person would type it."""
    flat = [item for key, value in (grid.recipe or {}).items() if key != "benchmark"
            for item in _flat(key, value)]  # fmt: skip
    options = {k: v for k, v in (grid.recipe or {}).get("benchmark", {}).items() if k != "name"}
    told = [*_flat("benchmark", options), *flat, *grid.overrides] if options else [*flat, *grid.overrides]
    return [_plain(item) for item in told]


def _plain(item: str) -> str:
    key, equals, value = item.partition("=")
    parsed = parse_value(value)
    return f"{key}{equals}{parsed}" if isinstance(parsed, str) else item
