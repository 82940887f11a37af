"""`expunge explain`: where the forgotten sat, what remains of it by layer, and what it cost the others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import expunge
from expunge.controls.model_mixing import MixingPath
from expunge.data.records import Record
from expunge.errors import ConfigError, InputError, NotComputable, Problem
from expunge.explain.base import ATTRIBUTIONS, LOCALIZERS, Case, top_layer
from expunge.explain.conflict import conflict_along
from expunge.explain.faithfulness import faithfulness
from expunge.explain.readout import depth_profile, lens_evidence, probe_scores, tuned_maps
from expunge.explain.retained import explains, retained_table
from expunge.explain.states import EMBEDDINGS, all_layers
from expunge.measure.sheet import make_sheet
from expunge.metrics import compute, make_metric
from expunge.progress import say
from expunge.registry import Registry
from expunge.reports.explanation import explanation_page
from expunge.reports.files import write_text
from expunge.runs.folder import code_version, hash_of, now, write_json
from expunge.runs.models import Shelf, set_threads
from expunge.runs.notes import read_json, read_recipe, read_state
from expunge.runs.prepare import prepare
from expunge.runs.reading import make_recipe
from expunge.subjects.subject import Subject
from expunge.subjects.wrapped import Wrapped
from expunge.training.selections import save_mask

__all__ = ["Explanation", "explain_run"]

DEFAULT_LOCALIZERS = (
    "causal_tracing",
    "integrated_gradients",
    "representation_distance",
    "gradient_saliency",
)
DEFAULT_ATTRIBUTIONS = ("gradient_dot", "ekfac", "embedding")
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
READ_METRIC = "probability"
NOISE = 0.05
"""A layer where the original beats the oracle by less says nothing about what was forgotten."""

MOST_LAYERS = 17
COMPARED = 64
"""Retain records that forget is set against, and records of the table at most."""

Section = Callable[[], dict[str, Any]]


def explain_run(
    run: Path,
    *,
    localizers: Sequence[str] = (),
    attributions: Sequence[str] = (),
    records: int = 8,
) -> Path:
    """Write explain.json, explain.html and mask.safetensors into RUN/explain; returns the page's path.

    `records`: forget records that are traced one by one, evenly over the set. What is there already, of the
    same models and settings, is not computed again. Raises ConfigError on what is no finished run.
    """
    names = tuple(localizers) or DEFAULT_LOCALIZERS, tuple(attributions) or DEFAULT_ATTRIBUTIONS
    _check_names(names, records)
    made = Explanation(Path(run), *names, records)
    folder = Path(run) / "explain"
    found = read_json(folder / "explain.json")
    if not (isinstance(found, dict) and found.get("key") == made.key):
        folder.mkdir(exist_ok=True)
        found = made.run(folder)
        write_json(folder / "explain.json", found)
    return write_text(folder / "explain.html", explanation_page(found))


def _check_names(names: tuple[Sequence[str], Sequence[str]], records: int) -> None:
    problems = [] if records > 0 else [Problem("--records", f"{records} is no number of records")]
    registries: tuple[Registry[Any], ...] = (LOCALIZERS, ATTRIBUTIONS)
    for registry, some in zip(registries, names, strict=True):
        for name in some:
            try:
                registry.card(name)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)


class Explanation:
    """A finished run's models and records, and the sections of its explanation, one method each."""

    def __init__(self, run: Path, localizers: Sequence[str], attributions: Sequence[str], count: int):
        self.path, self.localizers, self.attributions = run, localizers, attributions
        data = _recipe_of(run)
        candidate, has_original = data.pop("candidate", None), data.pop("has_original", True)
        if not has_original:
            fix = "Audit it with --original, the model before unlearning"
            raise ConfigError(Problem(str(run), "has no original model to explain it by", fix))
        self.recipe = make_recipe(data)
        job = prepare(self.recipe, run, bar=False)
        self.request, self.seed = job.request, self.recipe.seed
        made = {"oracle": run / "oracle" / "model", "unlearned": run / "unlearn" / "model"}
        places = {name: str(place) for name, place in made.items() if place.is_dir()}
        if job.oracle:
            places["oracle"] = str(job.oracle)
        places |= {"original": job.original, "controlled": candidate or str(run / "control" / "model")}
        if not candidate and not Path(places["controlled"]).is_dir():
            raise ConfigError(Problem(str(run), "holds no controlled model yet", "Run its recipe to the end"))
        self.shelf, self.notes = Shelf(self.recipe, places), list[str]()
        self.original, self.controlled = self._load("original"), self._load("controlled")
        set_threads(self.original.num_parameters())
        self.forget = _spread(job.request.forget, count)
        self.retain = _spread(job.request.retain, COMPARED)
        self.marks = {m: self._load(m).fingerprint() for m in sorted(places)}
        settings = [localizers, attributions, count, self.seed, job.request.fingerprint()]
        self.key = hash_of([self.marks, settings, code_version("explain", "runs", "subjects", "training")])

    def run(self, folder: Path) -> dict[str, Any]:
        """Everything; a section that cannot be had is {"reason": why}."""
        sections: dict[str, Section] = {
            "residual": self.residual,
            "retained": self.retained,
            "conflict": self.conflict,
        }
        sections |= {f"localizer {name}": partial(self.localize, name, folder) for name in self.localizers}
        sections |= {f"attribution {name}": partial(self.attribute, name) for name in self.attributions}
        found: dict[str, dict[str, Any]] = {}
        for number, (name, section) in enumerate(sections.items(), start=1):
            say(f"[{number}/{len(sections)}] explain: {name}")
            try:
                found[name] = section()
            except (NotComputable, InputError) as reason:
                found[name] = {"reason": str(reason)}
                say(f"{name}: {reason}")
        pick = lambda kind, names: {name: found[f"{kind} {name}"] for name in names}  # noqa: E731
        return {
            "key": self.key,
            "run": self.recipe.name or self.path.name,
            "created": now(),
            "expunge_version": expunge.__version__,
            "fingerprints": self.marks,
            "method": self.recipe.method.name,
            "seed": self.seed,
            "forget": [record.id for record in self.forget],
            "num_layers": len(all_layers(self.original)),
            "notes": self.notes,
            "residual": found["residual"],
            "retained": found["retained"],
            "conflict": found["conflict"],
            "localizers": pick("localizer", self.localizers),
            "attributions": pick("attribution", self.attributions),
        }

    # Sections ---------------------------------------------------------------------------------------------

    def residual(self) -> dict[str, Any]:
        """{read-out: {model: {layer: value}}}, and the depth profile where there is an oracle."""
        layers = _some_layers(self.original)
        models = [m for m in ("original", "controlled", "oracle") if m in self.shelf.places]
        read: dict[str, dict[str, dict[int, float]]] = {"logit_lens": {}, "tuned_lens": {}, "probe": {}}
        reasons: dict[str, str] = {}
        for model in models:
            subject = self._load(model)
            maps = tuned_maps(subject, self.retain) if self.retain else {}
            if not maps:
                reasons["tuned_lens"] = "no retain records to fit it on"
            read["logit_lens"][model] = self._lens(subject, layers, None)
            if maps:
                read["tuned_lens"][model] = self._lens(subject, layers, maps)
            try:
                scores = probe_scores(
                    subject, [*self.request.retain, *self.request["neighbors"]], self.request.forget, layers,
                    seed=self.seed,
                )  # fmt: skip
                read["probe"][model] = {layer: score.selectivity for layer, score in scores.items()}
            except NotComputable as reason:
                reasons["probe"] = str(reason)
        profiles: dict[str, Any] = {}
        for name, by_model in read.items():
            if len(by_model) == 3:
                try:
                    profiles[name] = depth_profile(
                        by_model["original"], by_model["controlled"], by_model["oracle"], noise=NOISE
                    )._asdict()
                except NotComputable as reason:
                    profiles[name] = {"reason": str(reason)}
        return {
            "metric": READ_METRIC,
            "noise": NOISE,
            "values": {name: by_model for name, by_model in read.items() if by_model},
            "profiles": profiles,
            "reasons": reasons,
        }

    def _lens(self, subject: Subject, layers: Sequence[int], maps: Any) -> dict[int, float]:
        sheet = make_sheet(subject.encoder, self.request.forget, "forget")
        metric = make_metric(READ_METRIC)
        found = {}
        for layer, evidence in lens_evidence(subject, sheet, layers, maps).items():
            value = compute(metric, {"forget": evidence}, "forget").value
            if value is None:
                raise NotComputable(f"{READ_METRIC} is not computable on the forget set")
            found[layer] = value
        return found

    def localize(self, name: str, folder: Path) -> dict[str, Any]:
        """The map, the mask on disk, and whether ablating it hurts forget more than random masks do."""
        localizer = LOCALIZERS.make(name)
        unit = localizer.card.fields["unit"]
        case = Case(self.forget, self.retain[:16], self.controlled, self.seed)
        found = localizer.localize(self.original, case)
        meta = {"fingerprint": self.marks["original"], "localizer": name, "run": self.path.name}
        file = "mask.safetensors" if name == self.localizers[0] else f"mask-{name}.safetensors"
        save_mask(folder / file, found.mask, meta)
        told = {
            "file": file,
            "unit": unit,
            "localizes": localizer.card.fields["localizes"],
            "summary": localizer.card.summary,
            "records": found.records,
            "layers": found.layers,
            "map": found.map.tolist(),
            "top_layer": top_layer(found),
        }
        try:
            told["faithfulness"] = asdict(
                faithfulness(self.original, found.mask, self.forget, self.retain, unit=unit, seed=self.seed)
            )
        except NotComputable as reason:
            told["faithfulness"] = {"reason": str(reason)}
        return told

    def attribute(self, name: str) -> dict[str, Any]:
        """The five records that each forget record's answer comes from, among forget and retain.

        Each is asked in other words where the request has them: a record is then not its own query.
        """
        attribution = ATTRIBUTIONS.make(name)
        known = [*self.forget, *self.retain]
        asked = [r.asked(r.paraphrased_prompts[0]) if r.paraphrased_prompts else r for r in self.forget]
        found = attribution.attribute(self.original, asked, known, seed=self.seed)
        top = {query: found.top(query) for query in found.queries}
        return {
            "scale": attribution.card.fields["scale"],
            "summary": attribution.card.summary,
            "notes": list(found.notes),
            "records": len(known),
            "asked_otherwise": sum(bool(r.paraphrased_prompts) for r in self.forget),
            "top": top,
            "own_first": sum(best[0][0] == query for query, best in top.items()) / len(top),
        }

    def retained(self) -> dict[str, Any]:
        """Neighbors and retain-type records: how near they stood to the damage, and what became of them."""
        request = self.request
        split_of = {r.id: s for s in ("neighbors", "report", "retain") for r in reversed(request[s])}
        kept = [r for s in ("neighbors", "report", "retain") for r in _spread(request[s], COMPARED // 2)]
        if not kept:
            raise NotComputable("there are neither neighbors nor retained records")
        rows = retained_table(self.original, self.controlled, self.forget, kept)
        table = [{**asdict(row), "change": row.change, "split": split_of[row.record]} for row in rows]
        for row in table:
            del row["entity"]  # a name
        return {"rows": table, "explains": explains(rows)}

    def conflict(self) -> dict[str, Any]:
        """cos(g_f, g_r) along θ(α) from the original to what the method returned."""
        if not self.retain:
            raise NotComputable("there is no retain set")
        end = self._load("unlearned") if "unlearned" in self.shelf.places else self.controlled
        if end.num_parameters() != self.original.num_parameters():
            raise NotComputable("the method returned a model of another shape")
        with tempfile.TemporaryDirectory(dir=self.path) as scratch:
            path = MixingPath(self.original.clone(), end, Path(scratch))
            points = conflict_along(path.at, ALPHAS, self.forget, self.retain)
        return {"points": [asdict(point) for point in points]}

    def _load(self, name: str) -> Subject:
        """The model itself; of a wrapped one, what its holder has in hand."""
        subject = self.shelf.load(name)
        if isinstance(subject, Wrapped):
            note = f"{name}: what it wraps is explained, since the wrapper changes no weights"
            if note not in self.notes:
                self.notes.append(note)
        return subject.unwrapped()


def _recipe_of(run: Path) -> dict[str, Any]:
    """The recipe of a run folder. Raises ConfigError where it is no run of one request."""
    if not read_state(run):
        raise ConfigError(Problem(str(run), "is no run folder", "See: expunge list runs"))
    recipe = read_recipe(run)
    if not recipe or recipe.get("requests"):
        what = "is a stream of runs" if recipe else "holds no recipe that can be read"
        raise ConfigError(Problem(str(run), what, "Give the folder of one run"))
    return {key: value for key, value in recipe.items() if value is not None}


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` of them, evenly over all."""
    step = max(1, -(-len(records) // count))
    return list(records[::step])


def _some_layers(subject: Subject) -> list[int]:
    """The embeddings, every block of a small model, else evenly as many as are readable; always the last."""
    layers = all_layers(subject)
    step = max(1, -(-len(layers) // (MOST_LAYERS - 1)))
    return [EMBEDDINGS, *sorted({*layers[::-1][::step]})]
