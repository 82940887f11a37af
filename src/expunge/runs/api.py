"""The verbs as Python functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge import ranks
from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.methods import Method, make_method
from expunge.runs.auditing import AuditPipeline
from expunge.runs.pipeline import Pipeline, RunResult
from expunge.runs.reading import make_recipe
from expunge.runs.recipe import Recipe
from expunge.runs.stream import run_stream
from expunge.runs.yamlfile import read_recipe_file
from expunge.subjects.subject import Subject
from expunge.training.settings import TrainSettings
from expunge.training.workspace import Workspace

__all__ = ["as_recipe", "audit_model", "run", "unlearn"]


def run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    only: str | None = None,
    new: bool = False,
) -> RunResult:
    """Run a recipe (a Recipe, a YAML file, or a mapping) from request to report; finished stages are kept.

    Under torchrun every process calls it; rank 0's result holds the scorecard.
    A recipe with `requests` is a stream: its runs are chained, and the result (a StreamResult) holds each.

    Raises ConfigError, DataError or ModelError on bad input, with every problem at once. A missed requirement
    does not raise: ask `result.check()`.
    """
    ranks.join()
    made = as_recipe(recipe, overrides)
    if made.requests is not None:
        return run_stream(made, only=only, new=new)
    return Pipeline(made, only=only, new=new).run()


def audit_model(
    model: str | Path,
    recipe: Recipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    original: str | Path | None = None,
    new: bool = False,
) -> RunResult:
    """Audit any model against a request: the recipe's splits, oracle, bar and attacks; no training.

    `recipe` may be a forget file alone. `original`: the model before unlearning, else the recipe's `model`;
    without either there is no recovery to compute and the verdict stays *not resolved*. The output is the
    recipe's with `-audit` behind it, unless `overrides` say otherwise: the folder of a run stays its own.
    """
    ranks.join()
    if isinstance(recipe, (str, Path)) and Path(recipe).suffix.lower() not in (".yaml", ".yml"):
        recipe = {"forget": str(recipe), "output": f"runs/{Path(model).name}"}
    if original is not None:
        overrides = [*overrides, f"model={json.dumps(str(original))}"]
    made = as_recipe(recipe, overrides, defaults={"model": str(model)})
    if not any(item.startswith("output=") for item in overrides):
        made = made.model_copy(update={"output": f"{made.output}-audit"})
    if made.requests is not None:
        fix = "Give one of its runs' recipes, or a forget file"
        raise ConfigError(Problem("requests", "an audit is of one request", fix))
    has_original = bool(made.benchmark or made.follows or original) or made.model != str(model)
    return AuditPipeline(made, str(model), has_original=has_original, new=new).run()


def unlearn(
    subject: Subject,
    request: Request,
    method: Method | str = "wga",
    settings: TrainSettings | None = None,
    **workspace: Any,
) -> Subject:
    """θ_u: one method on one request, in memory and uncontrolled.

    `workspace`: what Workspace takes beside the settings, as in folder, controls, lora, reference.
    """
    made = make_method(method) if isinstance(method, str) else method
    return made.unlearn(subject, request, Workspace(settings or TrainSettings(), **workspace))


def as_recipe(
    recipe: Recipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Recipe:
    """A Recipe from any form of one; `defaults` stand under what it says."""
    if isinstance(recipe, (str, Path)):
        data, lines = read_recipe_file(Path(recipe))
        file = str(recipe)
    elif isinstance(recipe, Recipe):
        data, lines, file = recipe.model_dump(exclude_unset=True), {}, ""
    else:
        data, lines, file = dict(recipe), {}, ""
    under = {} if {"benchmark", "after"} & data.keys() else dict(defaults or {})
    return make_recipe({**under, **data}, overrides, lines=lines, file=file)
