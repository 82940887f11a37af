"""The verbs as Python functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.data.request import Request
from expunge.methods import Method, make_method
from expunge.runs.auditing import AuditPipeline
from expunge.runs.pipeline import Pipeline, RunResult
from expunge.runs.recipe import Recipe, load_recipe, make_recipe
from expunge.subjects.subject import Subject
from expunge.training.settings import TrainSettings
from expunge.training.workspace import Workspace

__all__ = ["audit", "run", "unlearn"]


def run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    only: str | None = None,
    new: bool = False,
) -> RunResult:
    """Run a recipe (a Recipe, a YAML file, or a mapping) from request to report; finished stages are kept.

    Raises ConfigError, DataError or ModelError on bad input, with every problem at once. A missed requirement
    does not raise: ask `result.check()`.
    """
    return Pipeline(as_recipe(recipe, overrides), only=only, new=new).run()


def audit(
    model: str | Path,
    recipe: Recipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    original: str | Path | None = None,
    new: bool = False,
) -> RunResult:
    """Audit any model against a request: the recipe's splits, oracle, bar and attacks; no training.

    `original`: the model before unlearning. Without it there is no recovery to compute and the verdict stays
    *not resolved*.
    """
    made = as_recipe(recipe, overrides, defaults={"model": str(original or model)})
    if original is not None:
        made = made.model_copy(update={"model": str(original)})
    has_original = original is not None or (made.model is not None and made.model != str(model))
    return AuditPipeline(made, str(model), has_original=has_original, new=new).run()


def unlearn(
    subject: Subject,
    request: Request,
    method: Method | str = "graddiff",
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
    if isinstance(recipe, Recipe):
        return make_recipe(recipe.model_dump(exclude_unset=True), overrides) if overrides else recipe
    if isinstance(recipe, (str, Path)):
        if not defaults:
            return load_recipe(Path(recipe), overrides)
        from expunge.runs.yamlfile import read_recipe_file

        data, lines = read_recipe_file(Path(recipe))
        return make_recipe(
            {**defaults, **data} if "benchmark" not in data else data,
            overrides,
            lines=lines,
            file=str(recipe),
        )
    return make_recipe({**(defaults or {}), **recipe} if "benchmark" not in recipe else recipe, overrides)
