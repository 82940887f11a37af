"""The first stage: the request checked, the models found, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.benchmarks import BENCHMARKS, Benchmark, Prepared
from expunge.data import load_request
from expunge.data.builders import Auto, Stress, stressed, that_fit
from expunge.data.checks import check_encoded, too_long
from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, Problem
from expunge.runs.apart import Apart, set_apart
from expunge.runs.building import Built, build_missing, wanted
from expunge.runs.chain import Link, earlier, past_forget
from expunge.runs.folder import cache_folder
from expunge.runs.recipe import Recipe
from expunge.runs.screening import screened
from expunge.subjects.subject import load_encoder
from expunge.training.settings import TrainSettings

__all__ = ["Job", "make_benchmark", "prepare"]


@dataclass(frozen=True)
class Job:
    """A recipe with its data and models: what the later stages work on."""

    recipe: Recipe
    request: Request
    original: str
    oracle: str | None
    train: TrainSettings
    attack_lrs: Sequence[float]
    metrics: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    chain: Sequence[Link] = ()
    apart: Apart | None = None  # what `tune` selects by; the request is without it
    built: Built = field(default_factory=Built)

    @property
    def first(self) -> str | None:
        """Where the model before the first request of a chain lies, if that is the method's reference."""
        fixed = self.recipe.after is not None and self.recipe.after.reference == "fixed"
        return str(self.chain[0].start["model"]) if fixed else None


def make_benchmark(recipe: Recipe) -> Benchmark:
    assert recipe.benchmark is not None
    settings = dict(recipe.benchmark.settings)
    cls = BENCHMARKS.get(recipe.benchmark.name)
    try:
        return cls.from_part(settings.pop("part", None), **settings)
    except TypeError as error:
        raise ConfigError(
            Problem("benchmark", str(error).split(") ", 1)[-1], "See: expunge list benchmarks")
        ) from error


def prepare(recipe: Recipe, output: Path, *, bar: bool = True) -> Job:
    """Load and check everything; train a benchmark's models where they are not cached.

    `bar`: there must be calibration records. Raises DataError or ConfigError with all problems at once,
    before any model is loaded.
    """
    job = _of_benchmark(recipe, output) if recipe.benchmark else _of_files(recipe, output, bar=bar)
    job = _stressed(job)
    if recipe.tune is None:
        return job
    apart = set_apart(job.request)
    what = (
        f"expunge tune selects by {apart.how}: what the report says of them is too good for a search's winner"
    )
    warnings = job.warnings if apart.clean else (*job.warnings, what)
    return replace(job, request=apart.request, apart=apart, warnings=warnings)


def _of_benchmark(recipe: Recipe, output: Path) -> Job:
    made: Prepared = make_benchmark(recipe).prepare(cache_folder(output) / "benchmarks")
    own = "attack_lrs" in recipe.model_fields_set
    return Job(
        recipe,
        made.request,
        str(made.original),
        str(made.oracle) if made.oracle else None,
        _merge_train(recipe, made.train),
        recipe.attack_lrs if own else tuple(made.attack_lrs) or recipe.attack_lrs,
        made.metrics,
        (),
        made.cost,
        made.facts,
    )


def _stressed(job: Job) -> Job:
    """The job under the recipe's stress tests; rows that the context cannot hold are left out."""
    recipe = job.recipe
    if recipe.stress.stress() == Stress():
        return job
    request, warnings = stressed(job.request, recipe.stress.stress(), recipe.seed)
    encoder = load_encoder(
        job.original, max_length=recipe.max_length, trust_remote_code=recipe.trust_remote_code
    )
    given = set(job.request["forget_hard"])
    hard = tuple(r for r in request["forget_hard"] if r in given or not too_long(r, encoder))
    if gone := len(request["forget_hard"]) - len(hard):
        warnings.append(f"stress: {gone} rows are longer than the context, and left out")
    request = replace(request, splits={**request.splits, "forget_hard": hard})
    return replace(job, request=request, warnings=(*job.warnings, *warnings))


def _of_files(recipe: Recipe, output: Path, *, bar: bool) -> Job:
    links = earlier(recipe.follows) if recipe.follows else ()
    original = str(links[-1].model if links else recipe.model)
    past, gone = past_forget(links)
    built = build_missing(recipe, original, past, output, bar=bar)
    request, warnings = load_checked(recipe, original, {**past, **built.splits}, built.notes, bar=bar)
    return Job(
        recipe,
        request,
        original,
        recipe.oracle.folder,
        _merge_train(recipe, {}),
        recipe.attack_lrs,
        warnings=(*gone, *built.warnings, *warnings),
        chain=links,
        built=built,
    )


def load_checked(
    recipe: Recipe,
    original: str,
    made: Mapping[str, Sequence[Record]] | None = None,
    built: Mapping[str, str] | None = None,
    *,
    bar: bool = True,
    auto: Auto | None = None,
) -> tuple[Request, list[str]]:
    """The request of a recipe without a benchmark, checked against the model's tokenizer and context.

    `made`: splits that are there already; `built`: how those came about that nobody brought; `auto`:
    what is built of the others, by default what the recipe says.
    """
    auto = auto or wanted(recipe)
    request, warnings = load_request(
        recipe.sources, columns=recipe.columns, target=recipe.target.target(), seed=recipe.seed, bar=bar,
        made=made, built=built, auto=auto,
    )  # fmt: skip
    encoder: Encoder = load_encoder(
        original, max_length=recipe.max_length, trust_remote_code=recipe.trust_remote_code
    )
    request, long = that_fit(request, auto, encoder)
    findings = check_encoded(request, encoder)
    if findings.problems:
        raise DataError(findings.problems)
    odd = screened(recipe, request)
    return request, list(dict.fromkeys([*warnings, *long, *findings.warnings, *odd]))


def _merge_train(recipe: Recipe, defaults: Mapping[str, Any]) -> TrainSettings:
    """The user's settings over the benchmark's; one seed for all unless said otherwise."""
    own = {name: getattr(recipe.train, name) for name in recipe.train.model_fields_set}
    if "epochs" in own:
        defaults = {name: value for name, value in defaults.items() if name != "steps"}
    return TrainSettings(**{"seed": recipe.seed, **defaults, **own})


def environment() -> dict[str, Any]:
    """Versions and machine, for the provenance block."""
    import platform
    from importlib.metadata import version

    import torch

    names = (
        "expunge",
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "safetensors",
        "numpy",
        "scipy",
        "rouge-score",
        "pyarrow",
    )
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except Exception:  # an uninstalled checkout has no metadata
            continue
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    return {
        "versions": found,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device,
        "threads": torch.get_num_threads(),
        "deterministic": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "") or "CPU order",
    }
