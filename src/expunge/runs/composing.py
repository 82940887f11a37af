"""`expunge compose`: unlearning and other interventions in both orders, every model on the way kept.

A chain is made step by step from the original; each step is a stage of the run folder, found in the cache
where another chain or another run has made it. Unlearning is the recipe's method under its control, held to
the bar of the model it starts from. A compression that later steps undid is applied again at the end, so that
the models compared are compressed alike. A step that fails takes its chains with it and no others.

Source: Kolbeinsson et al. 2024 (arXiv 2407.06483).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

import expunge
from expunge.attacks import Field
from expunge.audit.attacking import make_attack, out_of_reach
from expunge.data.request import fingerprint_records
from expunge.errors import ConfigError, ExpungeError, NotComputable, Problem
from expunge.interventions import INTERVENTIONS, make_intervention
from expunge.interventions.base import Edit
from expunge.metrics.base import Score
from expunge.progress import say
from expunge.reports.files import write_text
from expunge.runs import facts, stages
from expunge.runs.api import as_recipe
from expunge.runs.chains import (
    UNLEARN,
    Chain,
    chains,
    check_chains,
    completed,
    compressed,
    labeled,
    stored_bits,
)
from expunge.runs.composition_page import html
from expunge.runs.composition_scores import (
    Measure,
    as_row,
    asked_splits,
    measure_model,
    measures,
    order_rows,
    plan_of,
    scores_of,
)
from expunge.runs.folder import announce, code_version, write_json
from expunge.runs.models import model_facts
from expunge.runs.pipeline import TRAIN_ROOMS, Pipeline
from expunge.runs.recipe import ComposeSettings, Named, Recipe
from expunge.subjects import save_subject

__all__ = ["Composition", "compose"]

STEPS = 5

BROKEN = (ExpungeError, torch.linalg.LinAlgError)
"""What a step may fail with while the others go on."""


@dataclass(frozen=True)
class Composition:
    """`path` holds composition.json (`data`), composition.html, and the models of every chain."""

    path: Path
    data: Mapping[str, Any]


def compose(
    recipe: Recipe | str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, new: bool = False
) -> Composition:
    """Compose as the recipe's `compose` says. Run it again to resume, or with more interventions to go on.

    The output is the recipe's with `-compose` behind it, unless `overrides` say otherwise: the folder of a
    run stays its own. Raises ConfigError, DataError or ModelError on bad input.
    """
    made = as_recipe(recipe, overrides)
    told = any(item.startswith("output=") for item in overrides)
    if not told and not made.output.endswith("compose"):
        made = made.model_copy(update={"output": f"{made.output}-compose"})
    return ComposePipeline(_checked(made), new=new).compose()


def _checked(recipe: Recipe) -> Recipe:
    """The recipe with its composition spelled out; every problem that can be seen without the data."""
    settings = recipe.compose or ComposeSettings()
    problems = []
    if recipe.requests is not None:
        problems.append(
            Problem("requests", "a composition is of one request", "Name one of them: forget: FILE")
        )
    if recipe.access != "weights":
        problems.append(Problem("access", "interventions change weights", "Remove access"))
    targets = {n.settings.get("target", "refusal") for n in settings.interventions if _is_edit(n)}
    if len(targets) > 1:
        what = f"edits with different targets ({', '.join(sorted(targets))}) are not comparable"
        problems.append(Problem("compose.interventions", what, "Give all of them one target"))
    problems += check_chains(settings.chains, list(labeled(settings.interventions)))
    if problems:
        raise ConfigError(problems)
    return recipe.model_copy(update={"compose": settings})


def _is_edit(named: Named) -> bool:
    return bool(INTERVENTIONS.card(named.name).fields["family"] == "edit")


class ComposePipeline(Pipeline):
    """The first stage of a run, then a stage per step, per model measured and per model attacked."""

    def compose(self) -> Composition:
        announce(1, STEPS, "prepare: checking the request, finding the models")
        self._prepare()
        self._set_out()
        announce(2, STEPS, "baseline: what the original knows")
        self.failed: dict[str, str] = {}
        self.models: dict[Chain, dict[str, Any]] = {(): self._measured(())}
        if unknown := facts.not_known(self.evidence):
            self._warn(unknown)
        todo = chains(list(self.named), self._settings.pairs, self._settings.chains)
        announce(3, STEPS, f"chains: {len(todo)} of {UNLEARN}, {', '.join(self.named)}")
        for chain in todo:
            self.models[chain] = self._chain(chain)
        announce(4, STEPS, "relearning: what edits and unlearning leave")
        relearned = self._relearned()
        announce(5, STEPS, "report")
        return self._write(relearned)

    # What is asked of every model ---------------------------------------------------------------------

    def _requested(self) -> None:
        """A composition is no request: it has no life."""

    def _identity(self) -> dict[str, Any]:
        """More interventions go on with the same composition."""
        return {**super()._identity(), "compose": None}

    @property
    def _settings(self) -> ComposeSettings:
        assert self.recipe.compose is not None
        return self.recipe.compose

    def _set_out(self) -> None:
        """The interventions, the records every model is asked, the numbers made of the answers."""
        self.named = labeled(self._settings.interventions)
        self.made = {label: make_intervention(n.name, **self._filled(n)) for label, n in self.named.items()}
        edits = [made for made in self.made.values() if isinstance(made, Edit)]
        target = edits[0].target if edits else "refusal"
        self.splits = asked_splits(self.job.request, target, self.recipe.seed, edits=bool(edits))
        self.asking = plan_of(self.recipe.bar.metric)
        self.measures: list[Measure] = measures(list(self.splits))

    def _filled(self, named: Named) -> dict[str, Any]:
        """An edit that trains takes its share of the recipe's learning rate where it is given none."""
        rate = getattr(INTERVENTIONS.get(named.name), "rate", None)
        given = {"lr": rate * self.job.train.lr} if rate else {}
        return {**given, **named.settings}

    # Chains -------------------------------------------------------------------------------------------

    def _chain(self, chain: Chain) -> dict[str, Any]:
        """The model at the end of a chain, measured; or why there is none."""
        whole = completed(chain, self.made)
        try:
            return self._measured(whole)
        except BROKEN as error:
            reason = " ".join(str(error).split())
            say(f"{' → '.join(whole)}: failed, {reason}")
            return {"chain": list(whole), "status": "failed", "reason": reason}

    def _step(self, chain: Chain) -> str:
        """The name of the model after these steps, made where it is not there yet."""
        name = ".".join(chain) or "original"
        if name in self.failed:
            raise ExpungeError(self.failed[name])
        if name in self.shelf.places:
            return name
        start = self._step(chain[:-1])
        say(f"{' → '.join(chain)}")
        try:
            if chain[-1] == UNLEARN:
                self._unlearn_from(start, name)
            else:
                self._intervene(start, name, chain[-1])
        except BROKEN as error:
            self.failed[name] = str(error)
            raise
        return name

    def _intervene(self, start: str, name: str, label: str) -> None:
        made = self.made[label]
        inputs = {
            **self._world(),
            "refusals": self.job.request.refusals,
            "start": self._model(start),
            "intervention": [made.name, asdict(cast(Any, made))],
            **_code(*TRAIN_ROOMS, "interventions"),
        }

        def work(folder: Path) -> None:
            subject = made.apply(self.shelf.load(start), self.job.request, self.recipe.seed)
            broken = [n for n, p in subject.model.named_parameters() if not torch.isfinite(p).all()]
            if broken:
                raise ExpungeError(f"{made.name} left non-finite weights in {', '.join(broken[:3])}")
            save_subject(subject, folder / "model", info={"intervention": made.name, "start": start})
            write_json(folder / "facts.json", {**model_facts(subject), "notes": []})

        self._made_model(f"models/{name}", name, inputs, work)

    def _unlearn_from(self, start: str, name: str) -> None:
        """The recipe's method and control, with the model `start` in the original's place."""
        self._measured(tuple(start.split(".")) if start != "original" else ())
        before = self.evidence[start]
        shelf = replace(self.shelf, places={**self.shelf.places, "original": self.shelf.places[start]})
        own = {"original": self._model(start)}
        loose = f"{name}-uncontrolled"
        plain = start == "original"  # then it is what `expunge run` makes, and shared with it
        work = lambda f: stages.unlearn(f, self.job, shelf, before)  # noqa: E731
        self._made_model(UNLEARN if plain else f"models/{loose}", loose, {**self._training(), **own}, work)
        self._warn(*(f"{name}: {note}" for note in self.known[loose]["notes"]))
        shelf.places["unlearned"] = self.shelf.places[loose]
        held = lambda f: stages.control(f, self.job, shelf, before)  # noqa: E731
        inputs = {**self._controlling(loose), **own}
        self._made_model("control" if plain else f"models/{name}", name, inputs, held)

    def _measured(self, chain: Chain) -> dict[str, Any]:
        """Evidence, scores and sizes of the model after these steps."""
        name = self._step(chain)
        known = {"name": name, "chain": list(chain), "status": "ok", "reason": ""}
        stored = compressed(chain, self.made)
        inputs = {
            **self._world(),
            "model": self._model(name),
            "asked": {split: fingerprint_records(records) for split, records in self.splits.items()},
            "kinds": {split: self.asking.kinds(split) for split in self.splits},
            "stored": [[label, asdict(cast(Any, self.made[label]))] for label in chain if label in self.made],
            "latency": self._settings.latency,
            **_code("data", "subjects", "measure", "evidence", "interventions", "metrics"),
        }

        def work(folder: Path) -> None:
            subject = self.shelf.load(name)
            bits = stored_bits(chain, self.made, subject.model)
            measure_model(
                folder, subject, self.splits, self.asking, bits, compressed=stored,
                tokens=self._settings.latency, name=f"the model {name}",
            )  # fmt: skip

        folder = self.folder.stage(f"measure/{name}", inputs, work)
        self.evidence[name] = stages.read_splits(folder)
        scores = scores_of(self.measures, self.evidence[name], self.evidence["original"], self.recipe.seed)
        sizes = stages.load_json(folder / "sizes.json")
        return {**known, "fingerprint": self.marks[name], "scores": scores, "sizes": sizes}

    # The table of edits against unlearning ------------------------------------------------------------

    def _relearned(self) -> dict[str, dict[str, Any]]:
        """Extraction strength on forget facts that were not taught again, while others were."""
        if not self._settings.relearn:
            return {}
        attack = make_attack("rtt")
        batch = min(32, max(8, self.job.train.batch))
        field = Field(
            self.job.request, "quick", self.recipe.seed, lrs=tuple(self.job.attack_lrs), batch=batch
        )
        found: dict[str, dict[str, Any]] = {}
        for chain, model in self.models.items():
            if model["status"] != "ok" or not self._rewrites(chain):
                continue
            reason = out_of_reach(attack, field, self.known[model["name"]]["can"])
            try:
                entries = [] if reason else self._attacked(attack, {}, model["name"], field)
                found[model["name"]] = _worst(entries) if entries else {"value": None, "reason": reason}
            except NotComputable as error:
                found[model["name"]] = {"value": None, "reason": str(error)}
        return found

    def _rewrites(self, chain: Chain) -> bool:
        """Whether this is the original, the unlearned or an edited model, and nothing else was done to it."""
        return not chain or chain == (UNLEARN,) or (len(chain) == 1 and _is_edit(self.named[chain[0]]))

    # What is written ----------------------------------------------------------------------------------

    def _write(self, relearned: Mapping[str, Mapping[str, Any]]) -> Composition:
        labels = [UNLEARN, *self.named]
        both = {chain: m["scores"] for chain, m in self.models.items() if len(chain) == 2 and "scores" in m}
        edits = [label for label, named in self.named.items() if _is_edit(named)]
        pairs = [(i, j) for n, i in enumerate(labels) for j in labels[n + 1 :] if self._asked(i, j)]
        data = {
            "name": self.recipe.name or self.path.name,
            "created": self.folder.state["created"],
            "expunge_version": expunge.__version__,
            "recipe": facts.told_recipe(self.recipe),
            "method": self.recipe.method.name,
            "controls": [c.name for c in self.recipe.control],
            "interventions": [
                {"label": i, "name": made.name, "family": made.family, "settings": asdict(cast(Any, made))}
                for i, made in self.made.items()
            ],
            "measures": [
                {"key": m.key, "short": m.short, "title": m.title, "metric": m.metric, "split": m.split}
                | {"better": m.better}
                for m in self.measures
            ],
            "models": [
                {"asked": list(chain), **m, "scores": _rows(m.get("scores", {}))}
                for chain, m in self.models.items()
            ],
            "orders": order_rows(self.measures, pairs, both, edits),
            "same_facts": [
                {"model": m["name"], "asked": list(chain), "relearned": relearned.get(m["name"])}
                for chain, m in self.models.items()
                if self._rewrites(chain) and m["status"] == "ok"
            ],
            "seed": self.recipe.seed,
            "warnings": self.warnings,
        }  # fmt: skip
        write_json(self.path / "composition.json", data)
        data = stages.load_json(self.path / "composition.json")
        write_text(self.path / "composition.html", html(data))
        return Composition(self.path, data)

    def _asked(self, i: str, j: str) -> bool:
        return (i, j) in self.models and (j, i) in self.models


def _worst(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The highest extraction strength on facts not taught, over learning rates and steps; `start`: before."""
    known: dict[int, float] = {}
    count = 0
    for entry in entries:
        values = entry["scores"]["forget"]["extraction_strength"].values()
        count, step = len(values), int(entry["step"] or 0)
        known[step] = max(known.get(step, 0.0), sum(values) / max(1, count))
    after = {step: value for step, value in known.items() if step}
    return {"value": max(after.values(), default=None), "start": known.get(0), "n": count, "reason": ""}


def _rows(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {key: as_row(score) for key, score in scores.items()}


def _code(*rooms: str) -> dict[str, str]:
    return {"code": code_version(*rooms)}
