"""A finished run as a whole: its recipe, its request, and where its models lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.runs.models import Shelf
from expunge.runs.notes import read_recipe, read_state
from expunge.runs.prepare import Job, prepare
from expunge.runs.reading import make_recipe
from expunge.runs.recipe import Recipe

__all__ = ["Finished", "open_run"]


@dataclass(frozen=True)
class Finished:
    """`shelf.places` names original, unlearned, controlled and oracle, those there are."""

    path: Path
    recipe: Recipe
    job: Job
    shelf: Shelf
    candidate: str | None = None  # the audited model, where the run is an audit

    @property
    def name(self) -> str:
        return self.recipe.name or self.path.name

    @property
    def request(self) -> Request:
        return self.job.request

    @property
    def method(self) -> str:
        return "audited" if self.candidate else self.recipe.method.name


def open_run(path: Path) -> Finished:
    """The run in this folder. Raises ConfigError where it is none, or has no controlled model yet."""
    run = Path(path)
    if not read_state(run):
        raise ConfigError(Problem(str(run), "is no run folder", "See: expunge list runs"))
    stored = read_recipe(run)
    if not stored or stored.get("requests"):
        what = "is a stream of runs" if stored else "holds no recipe that can be read"
        raise ConfigError(Problem(str(run), what, "Give the folder of one run"))
    data = {key: value for key, value in stored.items() if value is not None}
    candidate, has_original = data.pop("candidate", None), data.pop("has_original", True)
    recipe = make_recipe(data)
    job = prepare(recipe, run, bar=False)
    made = {"oracle": "oracle", "unlearned": "unlearn", "controlled": "control"}
    places = {n: str(run / stage / "model") for n, stage in made.items() if (run / stage / "model").is_dir()}
    if candidate:
        places["controlled"] = str(candidate)
    if job.oracle:
        places["oracle"] = str(job.oracle)
    if has_original:
        places["original"] = job.original
    if "controlled" not in places:
        raise ConfigError(Problem(str(run), "holds no controlled model yet", "Run its recipe to the end"))
    return Finished(run, recipe, job, Shelf(recipe, places), candidate)
