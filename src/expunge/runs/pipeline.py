"""A run from recipe to report: prepare → baseline → unlearn → control → measure → attack → score → report."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import expunge
from expunge.attacks import Field
from expunge.audit.assemble import Material, assemble
from expunge.audit.attacking import attack_plan, make_attack, run_attack
from expunge.audit.scorecard import CostRow, Scorecard
from expunge.audit.scores import forget_metric
from expunge.errors import BarMissed, ConfigError, Problem, nearest
from expunge.methods import METHODS, make_method
from expunge.metrics import compute
from expunge.progress import say
from expunge.reports import write_reports
from expunge.runs import stages
from expunge.runs.folder import RunFolder, announce, cache_folder, code_version, write_json
from expunge.runs.models import Shelf, read_facts, set_threads
from expunge.runs.prepare import Job, environment, prepare, tell
from expunge.runs.recipe import Recipe
from expunge.subjects.weights import fingerprint
from expunge.training.workspace import LoraSettings, Workspace

__all__ = ["STAGES", "Pipeline", "RunResult"]

STAGES = ("prepare", "baseline", "unlearn", "control", "measure", "attack", "score", "report")

_SUBJECT = ("data", "subjects")
_TRAIN = (*_SUBJECT, "training", "methods", "controls", "measure", "metrics", "evidence")
_MEASURE = (*_SUBJECT, "measure", "evidence")


@dataclass(frozen=True)
class RunResult:
    """`path` is the run folder; `scorecard` None when a single earlier stage was asked for."""

    path: Path
    scorecard: Scorecard | None
    report: Path | None = None

    def check(self) -> None:
        """Raise BarMissed when a requirement of the recipe was not met."""
        if self.scorecard and self.scorecard.missed:
            raise BarMissed("; ".join(self.scorecard.missed))


class Pipeline:
    """The stages of one run, each computed at most once."""

    def __init__(self, recipe: Recipe, *, new: bool = False, only: str | None = None):
        if only is not None and only not in STAGES:
            raise ConfigError(Problem(f"--only {only}", "is no stage", nearest(only, STAGES)))
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                Problem("torchrun", "this version trains in one process", "Start it with: expunge run")
            )
        self.recipe, self.only = recipe, only
        self.path = Path(recipe.output)
        self.folder = RunFolder(self.path, recipe.model_dump(mode="json"), new=new)
        self.warnings: list[str] = []

    def run(self) -> RunResult:
        """All stages up to the end, or up to `only`."""
        last = STAGES.index(self.only) if self.only else len(STAGES) - 1
        announce(1, last + 1, "prepare: checking the request, finding the models")
        self.job: Job = prepare(self.recipe, self.path)
        self.folder.begin()
        self.warnings += self.job.warnings
        self.shelf = Shelf(self.recipe, {"original": self.job.original})
        if self.job.oracle:
            self.shelf.places["oracle"] = self.job.oracle
        original = self.shelf.load("original")
        set_threads(original.num_parameters())
        self.marks = {"original": fingerprint(original.model)}
        del original
        tell(self.job.warnings)
        steps = (self._baseline, self._unlearn, self._control, self._measure, self._attack)
        for number, step in enumerate(steps, start=2):
            if number > last + 1:
                return RunResult(self.path, None)
            step(number, last + 1)
        if last + 1 < STAGES.index("score") + 1:
            return RunResult(self.path, None)
        announce(STAGES.index("score") + 1, last + 1, "score: metrics, recovery, verdict")
        card = self._score()
        if last == len(STAGES) - 1:
            announce(len(STAGES), len(STAGES), "report")
            paths = write_reports(card, self.path)
            return RunResult(self.path, card, paths["report.html"])
        return RunResult(self.path, card)

    # The stages ---------------------------------------------------------------------------------------

    def _baseline(self, number: int, total: int) -> None:
        if self.recipe.oracle.retrain:
            settings = (self.recipe.oracle.train or self.job.train).model_dump(mode="json")
            inputs = {
                **self._data(),
                "train": settings,
                "base": self.recipe.oracle.base,
                "code": code_version(*_TRAIN),
            }
            announce(number, total, "baseline: training the oracle without the forget set")
            folder = self.folder.stage(
                "oracle", inputs, lambda f: stages.retrain_oracle(f, self.job, self.shelf)
            )
            self.shelf.places["oracle"] = str(folder / "model")
        if "oracle" in self.shelf.places:
            self.marks["oracle"] = fingerprint(self.shelf.load("oracle").model)
        announce(number, total, "baseline: what the original (and the oracle) knows")
        inputs = {**self._data(), "oracle": self.marks.get("oracle"), **self._measuring()}
        self.baseline = self.folder.stage(
            "baseline", inputs, lambda f: stages.baseline(f, self.job, self.shelf)
        )
        self.evidence = stages.read_models(
            {m: self.baseline / m for m in ("original", "oracle") if (self.baseline / m).is_dir()}
        )
        self._warn_unknown()

    def _unlearn(self, number: int, total: int) -> None:
        self._check_targets()
        announce(number, total, f"unlearn: {self.recipe.method.name}")
        recipe = self.recipe
        inputs = {
            **self._data(),
            "method": recipe.method.model_dump(mode="json"),
            "train": self.job.train.model_dump(
                mode="json", exclude={"checkpoint_seconds", "report_to", "log_every"}
            ),
            "controls": [c.model_dump(mode="json") for c in recipe.control],
            "bar": recipe.bar.model_dump(mode="json"),
            "adapter": [recipe.adapter, recipe.lora.model_dump(mode="json"), recipe.reference],
            "dtype": [recipe.dtype, recipe.device],
            "code": code_version(*_TRAIN),
        }
        work = lambda f: stages.unlearn(f, self.job, self.shelf, self.evidence["original"])  # noqa: E731
        self.unlearned = self.folder.stage("unlearn", inputs, work)
        self.shelf.places["unlearned"] = str(self.unlearned / "model")
        self.marks["unlearned"] = read_facts(self.unlearned)["fingerprint"]
        for note in read_facts(self.unlearned)["notes"]:
            self.warnings.append(note)

    def _control(self, number: int, total: int) -> None:
        names = ", ".join(c.name for c in self.recipe.control) or "none"
        announce(number, total, f"control: {names}, keep {self.recipe.bar.keep:g}")
        inputs = {
            **self._data(),
            "unlearned": self.marks["unlearned"],
            "controls": [c.model_dump(mode="json") for c in self.recipe.control],
            "bar": self.recipe.bar.model_dump(mode="json"),
            "code": code_version(*_TRAIN),
        }
        work = lambda f: stages.control(f, self.job, self.shelf, self.evidence["original"])  # noqa: E731
        self.controlled = self.folder.stage("control", inputs, work)
        self.shelf.places["controlled"] = str(self.controlled / "model")
        self.marks["controlled"] = read_facts(self.controlled)["controlled"]["fingerprint"]

    def _measure(self, number: int, total: int) -> None:
        announce(number, total, "measure: the unlearned and the controlled model")
        models: dict[str, str] = {
            m: self.marks[m] for m in ("original", "unlearned", "controlled") if m in self.marks
        }
        inputs = {**self._data(), **models, **self._measuring()}
        folder = self.folder.stage("measure", inputs, lambda f: stages.measure(f, self.job, self.shelf))
        self.evidence |= stages.read_models(
            {m: folder / m for m in ("unlearned", "controlled") if (folder / m).is_dir()}
        )

    def _attack(self, number: int, total: int) -> None:
        plan = attack_plan(
            self.recipe.audit
            if isinstance(self.recipe.audit, str)
            else [(a.name, a.settings) for a in self.recipe.audit]
        )
        self.results: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.skipped: dict[str, str] = {}
        field = Field(
            self.job.request,
            self.recipe.profile,  # type: ignore[arg-type]
            self.recipe.seed,
            "oracle" not in self.shelf.places,
            tuple(self.job.attack_lrs),
            self._attack_batch(),
        )
        if plan and self.recipe.profile != "quick" and "original" in self.shelf.places:
            self._plant()
        for name, settings in plan:
            attack = make_attack(name, settings)
            reason = attack.missing(field)
            if reason:
                self.skipped[name] = reason
                say(f"attack {name}: skipped, {reason}")
                continue
            announce(number, total, f"attack: {name}")
            for model in ("original", "controlled", "oracle", "planted"):
                if model in self.shelf.places:
                    self.results.setdefault(name, {})[model] = self._attacked(
                        name, settings, attack, model, field
                    )

    def _attacked(
        self, name: str, settings: Mapping[str, Any], attack: Any, model: str, field: Field
    ) -> list[dict[str, Any]]:
        about = {
            "profile": field.profile,
            "seed": field.seed,
            "placebo": field.placebo,
            "lrs": list(field.lrs),
            "batch": field.batch,
        }
        inputs = {
            "weights": self.marks[model],
            "request": self._data()["request"],
            "attack": [name, settings],
            **about,
            **self._measuring(),
            "attacks": code_version("attacks", "training", "metrics"),
        }

        def work(folder: Path) -> Mapping[str, Any]:
            write_json(folder / "result.json", run_attack(attack, self.shelf.load(model), field))
            return {}

        folder = self.folder.stage(f"attack/{name}-{model}", inputs, work)
        return stages.load_json(folder / "result.json")

    def _plant(self) -> None:
        """A planted positive: the original taught to refuse. Attacks that miss it are too weak."""
        inputs = {
            **self._data(),
            "code": code_version(*_TRAIN),
            "train": self.job.train.model_dump(mode="json"),
            "planted": 1,
        }

        def work(folder: Path) -> Mapping[str, Any]:
            settings = self.job.train.model_copy(
                update={"steps": None, "epochs": max(3.0, self.job.train.epochs), "report_to": []}
            )
            subject = make_method("idk").unlearn(
                self.shelf.load("original"), self.job.request, Workspace(settings, lora=LoraSettings(rank=8))
            )
            from expunge.subjects import save_subject

            save_subject(subject, folder / "model")
            write_json(folder / "facts.json", {"fingerprint": fingerprint(subject.model)})
            return {}

        folder = self.folder.stage("planted", inputs, work)
        self.shelf.places["planted"] = str(folder / "model")
        self.marks["planted"] = read_facts(folder)["fingerprint"]

    def _made(self) -> dict[str, Any]:
        """What unlearning and control left behind, for the scorecard."""
        control = stages.load_json(self.controlled / "control.json")
        known = {"unlearned": read_facts(self.unlearned), **read_facts(self.controlled)}
        return {
            "control": control,
            "training": _history(self.unlearned / "training" / "log.jsonl"),
            "facts": {**read_facts(self.baseline), **known},
            "bar_metric": control["metric"],
            "keep": control["keep"],
        }

    def _score(self) -> Scorecard:
        material = Material(
            self.job.request,
            self.evidence,
            self.results,
            self.skipped,
            extra_metrics=self.job.metrics,
            profile=self.recipe.profile,
            declared=list(self.results),
            oracle_kind="retrained" if self.recipe.oracle.retrain or self.recipe.benchmark else "given",
            requirements={k: v for k, v in self.recipe.require.model_dump().items() if v is not None},
            key=_key(self.path),
            show_text=self.recipe.show_text,
            seed=self.recipe.seed,
            **self._made(),
        )
        card = assemble(material, self._head(), self._cost())
        card = card.model_copy(update=self._ratio())
        text = card.model_dump_json(indent=1)
        _write_text(self.path / "scorecard.json", text + "\n")
        return card

    # Parts of keys, and of the scorecard --------------------------------------------------------------

    def _data(self) -> dict[str, Any]:
        return {
            "request": self.job.request.fingerprint(),
            "splits": sorted(self.job.request),
            "original": self.marks["original"],
        }

    def _measuring(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "new_tokens": recipe.max_new_tokens,
            "length": recipe.max_length,
            "dtype": [recipe.dtype, recipe.device, recipe.attention],
            "measure": code_version(*_MEASURE),
        }

    def _attack_batch(self) -> int:
        return min(32, max(8, self.job.train.batch))

    def _head(self) -> dict[str, Any]:
        return {
            "name": self.recipe.name or self.path.name,
            "created": self.folder.state["created"],
            "expunge_version": expunge.__version__,
            "recipe": public_recipe(self.recipe),
            **self._how(),
            "provenance": {
                **environment(),
                "seed": self.recipe.seed,
                "train_seed": self.job.train.seed,
                "fingerprints": self.marks,
                "train": self.job.train.model_dump(mode="json"),
                "benchmark": dict(self.job.facts),
            },
            "warnings": list(dict.fromkeys(self.warnings)),
        }

    def _how(self) -> dict[str, Any]:
        control = stages.load_json(self.controlled / "control.json")
        for record in control["records"]:
            self.warnings += record["warnings"]
        card = METHODS.card(self.recipe.method.name)
        return {
            "method": self.recipe.method.name,
            "method_summary": card.summary,
            "controls": [c.name for c in self.recipe.control],
        }

    def _cost(self) -> list[CostRow]:
        rows = [
            CostRow(
                stage=f"benchmark: {name}",
                wall=float(c.get("wall", 0)),
                tokens=int(c.get("tokens", 0)) or None,
                cached=True,
            )
            for name, c in self.job.cost.items()
        ]
        for name, facts in self.folder.state["stages"].items():
            rows.append(
                CostRow(
                    stage=name,
                    wall=facts.get("wall", 0.0),
                    flops=facts.get("flops"),
                    peak_memory=facts.get("peak_memory"),
                    tokens=facts.get("tokens"),
                    cached=facts.get("cached", False),
                )
            )
        return rows

    def _ratio(self) -> dict[str, Any]:
        """Unlearning and control against retraining, in seconds."""
        done = self.folder.state["stages"]
        if "unlearn" not in done:
            return {}
        ours = done["unlearn"]["wall"] + done["control"]["wall"]
        retraining = done.get("oracle", {}).get("wall") or self.job.cost.get("oracle", {}).get("wall")
        return {"ratio_to_retraining": ours / retraining, "ratio_basis": "measured"} if retraining else {}

    def _warn_unknown(self) -> None:
        """A forget set the original shows no sign of knowing."""
        original = self.evidence["original"]
        metric = forget_metric(original)
        known = compute(metric, original, "forget").value or 0.0
        base = None
        if "oracle" in self.evidence:
            base = compute(metric, self.evidence["oracle"], "forget").value
        elif "holdout" in original:
            base = compute(metric, original, "holdout").value
        if known - (base or 0.0) < 0.2:
            against = (
                "the oracle's"
                if "oracle" in self.evidence
                else "the holdout's"
                if base is not None
                else "nothing to compare with"
            )
            text = (
                "not_known: the original shows no sign of knowing the forget set "
                f"({metric} {known:.3f}, {against} {base or 0:.3f}): nothing to forget"
            )
            self.warnings.append(text)
            say(f"warning: {text}")

    def _check_targets(self) -> None:
        card = METHODS.card(self.recipe.method.name).fields
        aim = self.job.request.target.aim
        if aim == "erase_influence" and card["erases"] == "output":
            text = (
                f"{self.recipe.method.name} changes what the model says, not what it knows: influence stays"
            )
            self.warnings.append(text)
            say(f"warning: {text}")


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it may stand in a report: what was left at its default is left out, paths kept."""
    return json.loads(recipe.model_dump_json(exclude_defaults=True))


def _history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    names = ("step", "epoch", "terms", "lr", "grad_norm", "active", "calibration")
    return [
        {k: e.get(k) for k in names} for e in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


def _key(path: Path) -> bytes:
    """The secret of the keyed hashes: EXPUNGE_KEY, or drawn once and kept beside the cache."""
    given = os.environ.get("EXPUNGE_KEY")
    if given:
        return given.encode()
    file = cache_folder(path) / "key"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_text(file, secrets.token_hex(32))
        file.chmod(0o600)
    return file.read_bytes()


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
