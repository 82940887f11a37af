"""A run from recipe to report: prepare → baseline → unlearn → control → measure → attack → score → report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import expunge
from expunge import ranks
from expunge.attacks import Attack, Field
from expunge.audit.assemble import Material, assemble
from expunge.audit.attacking import attack_plan, make_attack, out_of_reach, run_attack
from expunge.audit.scorecard import Scorecard
from expunge.audit.scores import forget_metric
from expunge.data.request import fingerprint_records
from expunge.errors import BarMissed, ConfigError, ModelError, NotComputable, Problem, nearest
from expunge.evidence import Evidence
from expunge.methods import METHODS
from expunge.progress import say
from expunge.reports import write_reports
from expunge.reports.files import write_text
from expunge.runs import facts, ledger, stages
from expunge.runs.certificate import certify, check_unchanged, signer
from expunge.runs.chain import check_start
from expunge.runs.folder import RunFolder, Work, announce, code_version, write_json
from expunge.runs.kept import keep
from expunge.runs.models import Shelf, model_facts, set_threads
from expunge.runs.prepare import Job, environment, prepare
from expunge.runs.processes import in_force
from expunge.runs.recipe import Recipe
from expunge.runs.screening import likely_nonmembers, screen, seen_before
from expunge.runs.tracing import traced
from expunge.subjects.serving import pick_engine

__all__ = ["STAGES", "TRAIN_ROOMS", "Pipeline", "RunResult"]

STAGES = ("prepare", "baseline", "unlearn", "control", "measure", "attack", "score", "report")

_MEASURE = ("data", "subjects", "measure", "evidence")
TRAIN_ROOMS = (*_MEASURE, "training", "methods", "controls", "metrics")
"""Rooms whose code decides what a training returns."""
_ATTACK = (*_MEASURE, "training", "metrics", "explain", "interventions", "attacks")


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
    """The stages of one run, each computed at most once.

    Over several ranks each goes through all stages up to the attacks; the first one writes, scores and
    reports, and the others end with no scorecard.
    """

    trains = True  # whether the recipe's method runs

    def __init__(self, recipe: Recipe, *, new: bool = False, only: str | None = None):
        if only is not None and only not in STAGES:
            raise ConfigError(Problem(f"--only {only}", "is no stage", nearest(only, STAGES)))
        self.strategy = in_force(recipe, trains=self.trains)
        signer()  # a key that cannot be used is said before anything runs
        engine = pick_engine(recipe.engine, recipe.device)
        self.engine = [] if engine == "transformers" else [engine]
        self.recipe, self.only = recipe, only
        self.path = Path(recipe.output)
        self.folder = RunFolder(self.path, self._identity(), new=new)
        self.warnings: list[str] = []
        self.evidence: dict[str, dict[str, Evidence]] = {}

    def run(self) -> RunResult:
        """All stages up to the end, or up to `only`."""
        last = STAGES.index(self.only or STAGES[-1]) + 1
        announce(1, last, "prepare: checking the request, finding the models")
        self._prepare()
        steps = (self._baseline, self._unlearn, self._control, self._measure, self._attack)
        for number, step in enumerate(steps, start=2):
            if number <= last:
                step(number, last)
        card = report = None
        if not ranks.is_first():
            return RunResult(self.path, None)
        if last >= STAGES.index("score") + 1:
            announce(STAGES.index("score") + 1, last, "score: metrics, recovery, verdict")
            check_unchanged(self.path, facts.secret_key(self.path))
            card = self._score()
        if card and last == len(STAGES):
            announce(last, last, "report")
            report = write_reports(card, self.path)["report.html"]
            self._certify(card)
        return RunResult(self.path, card, report)

    # The stages ---------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Check all that can be checked, models included; only then is anything written."""
        self.job: Job = ranks.on_first(lambda: prepare(self.recipe, self.path, bar=self._needs_bar()))
        self.shelf = Shelf(self.recipe, self._places())
        self.known, self.encoders = ranks.on_first(self._look)
        set_threads(max(known["parameters"] for known in self.known.values()))
        self.marks = {name: str(known["fingerprint"]) for name, known in self.known.items()}
        self._check_vocabularies()
        if self.job.chain and "original" in self.marks:
            check_start(self.job.chain[-1], self.marks["original"], self.recipe.dtype)
        self.folder.begin()
        ranks.on_first(self._requested)
        self._warn(*self.job.warnings)

    def _look(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """What is known of each model that is there, and of how it encodes."""
        known: dict[str, dict[str, Any]] = {}
        encoders: dict[str, str] = {}
        for name in self.shelf.places:
            subject = self.shelf.load(name)
            set_threads(subject.num_parameters())
            known[name] = model_facts(subject)
            encoders[name] = subject.encoder.fingerprint()
        return known, encoders

    def _check_vocabularies(self) -> None:
        """Models of other vocabularies cannot be compared token by token."""
        name, size = next(((n, k["vocabulary"]) for n, k in self.known.items()), ("", 0))
        others = {n: k["vocabulary"] for n, k in self.known.items() if k["vocabulary"] != size}
        if others:
            fix = "Give models that were made from one another"
            raise ModelError(
                [
                    Problem(self.shelf.places[n], f"knows {v} tokens, {self.shelf.places[name]} {size}", fix)
                    for n, v in others.items()
                ]
            )

    def _requested(self) -> None:
        """The first two states of the request's life; its records are kept for later requests."""
        job, request = self.job, self.job.request
        start = {"model": job.original, "fingerprint": self.marks["original"], "dtype": self.recipe.dtype}
        self.folder.enter("deployed", **start)
        forget = fingerprint_records(request.forget)
        self.folder.enter(
            "requested", forget=forget, request=request.fingerprint(), after=self.recipe.follows
        )
        note = {"key": job.built.key, "built": dict(job.built.notes)}
        key = facts.secret_key(self.path)
        told = {"request": facts.keyed(key, request.fingerprint()), "forget": facts.keyed(key, forget)}
        original = self.marks["original"]
        earlier = ledger.entries(ledger.ledger_of(self.path))
        again = seen_before(told["forget"], self.path.name, earlier)
        known = {"records": len(request.forget), "original": original, "screened": [*screen(request), *again]}
        ledger.record(self.path, "requested", **known, **told)
        self._warn(*again)
        keep(self.path, {"forget": request.forget, **job.built.splits}, note)

    def _baseline(self, number: int, total: int) -> None:
        """What original and oracle know, on disk before the first optimizer step of anything."""
        announce(number, total, "baseline: what the original (and the oracle) knows")
        self._ask("baseline", "original")
        if self.recipe.oracle.retrain:
            announce(number, total, "baseline: training the oracle without the forget set")
            settings = (self.recipe.oracle.train or self.job.train).model_dump(mode="json")
            inputs = {**self._world(), "train": settings, "base": self._model("base"), **_code(*TRAIN_ROOMS)}
            self._made_model(
                "oracle", "oracle", inputs, lambda f: stages.retrain_oracle(f, self.job, self.shelf)
            )
        self._ask("baseline", "oracle")
        unknown = facts.not_known(self.evidence)
        if unknown:
            self._warn(unknown)
        else:
            original = self.evidence["original"]
            self._warn(*likely_nonmembers(original, forget_metric(original)))

    def _unlearn(self, number: int, total: int) -> None:
        recipe = self.recipe
        announce(number, total, f"unlearn: {recipe.method.name}")
        if self.job.request.target.aim == "erase_influence" and self._card().fields["erases"] == "output":
            self._warn(
                f"{recipe.method.name} changes what the model says, not what it knows: it erases no influence"
            )
        original = self.evidence["original"]
        work = lambda f: stages.unlearn(f, self.job, self.shelf, original)  # noqa: E731
        self.unlearned = self._made_model("unlearn", "unlearned", self._training(), work)
        self._warn(*self.known["unlearned"]["notes"])

    def _control(self, number: int, total: int) -> None:
        names = ", ".join(c.name for c in self.recipe.control) or "none"
        announce(number, total, f"control: {names}, keep {self.recipe.bar.keep:g}")
        inputs = self._controlling("unlearned")
        original = self.evidence["original"]
        work = lambda f: stages.control(f, self.job, self.shelf, original)  # noqa: E731
        self.controlled = self._made_model("control", "controlled", inputs, work)
        self.folder.enter("unlearned", unlearned=self.marks["unlearned"], controlled=self.marks["controlled"])

    def _measure(self, number: int, total: int) -> None:
        announce(number, total, "measure: the unlearned and the controlled model")
        self._ask("measure", "unlearned")
        self._ask("measure", "controlled")

    def _attack(self, number: int, total: int) -> None:
        self.results: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.skipped: dict[str, str] = {}
        self.plan = attack_plan(self.recipe.audit_plan)
        field = Field(
            self.job.request,
            self.recipe.reach,
            self.recipe.seed,
            placebo="oracle" not in self.shelf.places,
            lrs=tuple(self.job.attack_lrs),
            batch=min(32, max(8, self.job.train.batch)),
            peers={m: partial(self.shelf.load, m) for m in ("original", "oracle") if m in self.shelf.places},
        )
        open_ = self.recipe.access == "weights"
        if self.plan and self.recipe.reach != "quick" and open_ and "original" in self.shelf.places:
            self._plant()
        for name, settings in self.plan:
            attack = make_attack(name, settings)
            reason = out_of_reach(attack, field, self.known["controlled"]["can"])
            if reason is None:
                announce(number, total, f"attack: {name}")
                reason = self._attack_all(attack, settings, field)
            if reason:
                self.skipped[name] = reason
                say(f"attack {name}: skipped, {reason}")

    def _attack_all(self, attack: Attack, settings: Mapping[str, Any], field: Field) -> str | None:
        """The same attack on every model there is; the reason where it turns out not to be computable."""
        models = [m for m in ("original", "controlled", "oracle", "planted") if m in self.shelf.places]
        try:
            self.results[attack.name] = {m: self._attacked(attack, settings, m, field) for m in models}
        except NotComputable as reason:
            return str(reason)
        return None

    def _attacked(
        self, attack: Attack, settings: Mapping[str, Any], model: str, field: Field
    ) -> list[dict[str, Any]]:
        inputs = {
            **self._world(),
            "model": self._model(model),
            "attack": [attack.name, settings],
            "field": [field.profile, field.placebo, field.lrs, field.batch],
            "peers": [self._model(peer) for peer in attack.card.fields.get("peers", ())],
            **_code(*_ATTACK),
        }

        def work(folder: Path) -> None:
            found = run_attack(attack, self.shelf.load(model), field)
            if ranks.is_first():
                write_json(folder / "result.json", found)

        folder = self.folder.stage(f"attack/{attack.name}-{model}", inputs, work)
        return stages.load_json(folder / "result.json")

    def _plant(self) -> None:
        """A planted positive: the original taught to refuse. Attacks that miss it are too weak."""
        settings = self.job.train.model_dump(mode="json")
        inputs = {
            **self._world(),
            "refusals": self.job.request.refusals,
            "train": settings,
            **_code(*TRAIN_ROOMS),
        }
        self._made_model("planted", "planted", inputs, lambda f: stages.plant(f, self.job, self.shelf))

    def _score(self) -> Scorecard:
        made = Material(
            self.job.request,
            self.evidence,
            self.results,
            self.skipped,
            extra_metrics=self.job.metrics,
            profile=self.recipe.profile,
            declared=[name for name, _ in self.plan],
            oracle_kind="retrained" if self.recipe.oracle.retrain or self.recipe.benchmark else "given",
            requirements=self.recipe.require.model_dump(exclude_none=True),
            key=facts.secret_key(self.path),
            show_text=self.recipe.show_text,
            seed=self.recipe.seed,
            keep=self.recipe.bar.keep,
            **self._made(),
        )
        card = assemble(made, self._head(), facts.cost_rows(self.job, self.folder.state["stages"]))
        card = card.model_copy(update=facts.ratio(self.job, self.folder.state["stages"], self._parameters()))
        card = traced(card, self.path)
        write_text(self.path / "scorecard.json", card.model_dump_json(indent=1) + "\n")
        self._audited(card, made.control.get("met"))
        return card

    def _parameters(self) -> int:
        return int(self.known.get("original", {}).get("parameters", 0))

    def _audited(self, card: Scorecard, bar_met: bool | None) -> None:
        """What `expunge release` decides by."""
        attacks = sorted({row.attack for row in card.attacks if row.controlled is not None})
        self.folder.enter(
            "audited", controlled=self.marks["controlled"], verdict=card.verdict.word, profile=card.profile,
            bar_met=bar_met, missed=card.missed, attacks=attacks,
        )  # fmt: skip

    def _certify(self, card: Scorecard) -> None:
        key, word = facts.secret_key(self.path), card.verdict.word
        told = {"request": facts.keyed(key, self.job.request.fingerprint()), "models": self.marks}
        forget = facts.keyed(key, fingerprint_records(self.job.request.forget))
        counted = {"forget": forget, "records": len(self.job.request.forget)}
        head = ledger.record(self.path, "certified", verdict=word, **told, **counted)
        certify(self.path, key=key, verdict=word, head=head, models=self.shelf.places)

    # What an audit does otherwise ---------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What makes this run another one than that already in the folder."""
        return self.recipe.model_dump(mode="json")

    def _needs_bar(self) -> bool:
        return bool(self.recipe.control)

    def _places(self) -> dict[str, str]:
        """Where the models lie that are there from the start."""
        given = {
            "original": self.job.original, "oracle": self.job.oracle, "base": self.recipe.oracle.base,
            "first": self.job.first,
        }  # fmt: skip
        return {name: place for name, place in given.items() if place}

    def _made(self) -> dict[str, Any]:
        """What unlearning and control left behind, for the scorecard."""
        control = stages.load_json(self.controlled / "control.json")
        for record in control.get("records", ()):
            self._warn(*record["warnings"])
        made = {"bar_metric": control["metric"]} if control["metric"] else {}
        training = facts.history(self.unlearned / "training" / "log.jsonl")
        if back := facts.revived(self.evidence):
            self._warn(back)
        return {**made, "control": control, "training": training, "facts": self.known}

    def _how(self) -> dict[str, Any]:
        controls = [c.name for c in self.recipe.control]
        return {
            "method": self.recipe.method.name,
            "method_summary": self._card().summary,
            "controls": controls,
        }

    # Parts of keys, and of the scorecard --------------------------------------------------------------

    def _made_model(self, stage: str, name: str, inputs: Mapping[str, Any], work: Work) -> Path:
        """Run a stage that makes a model, and put the model on the shelf."""
        folder = self.folder.stage(stage, inputs, work)
        self.shelf.places[name] = str(folder / "model")
        self.known[name] = stages.load_json(folder / "facts.json")
        self.marks[name] = str(self.known[name]["fingerprint"])
        return folder

    def _ask(self, stage: str, name: str) -> None:
        """Evidence of a model on every split, if there is such a model."""
        if name in self.shelf.places:
            inputs = {**self._world(), "model": self._model(name), "new_tokens": self.recipe.max_new_tokens}
            if asked := stages.annotators(self.job):
                inputs |= {"annotators": asked, "peers": [self._model(m) for m in ("original", "oracle")]}
            work = lambda f: stages.measure(f, name, self.job, self.shelf)  # noqa: E731
            folder = self.folder.stage(f"{stage}/{name}", {**inputs, **_code(*_MEASURE)}, work)
            self.evidence[name] = stages.read_splits(folder)

    def _model(self, name: str) -> list[str] | None:
        """Weights and encoding of a model; what a stage made encodes as the original does."""
        own = self.encoders.get(name) or self.encoders.get("original", "")
        return [self.marks[name], own] if name in self.marks else None

    def _world(self) -> dict[str, Any]:
        """What every key depends on: the records of each split, the original, how models are loaded."""
        recipe, request = self.recipe, self.job.request
        return {
            "request": {split: fingerprint_records(request[split]) for split in request},
            "original": self._model("original"),
            "loading": [
                recipe.dtype,
                recipe.device,
                recipe.attention,
                recipe.max_length,
                recipe.access,
                *self.engine,
            ],
            "seed": recipe.seed,
        }

    def _training(self) -> dict[str, Any]:
        """What an unlearning depends on."""
        recipe = self.recipe
        return {
            **self._world(),
            "refusals": self.job.request.refusals,
            "method": recipe.method.model_dump(mode="json"),
            "train": self.job.train.model_dump(
                mode="json", exclude={"checkpoint_seconds", "report_to", "log_every"}
            ),
            "adapter": [recipe.adapter, recipe.lora.model_dump(mode="json")],
            "reference": [recipe.reference, recipe.reference_budget, self._model("first")],
            "axes": [part.model_dump(mode="json") for part in (*recipe.transform, *recipe.selection)],
            **self._held(),
            **_code(*TRAIN_ROOMS),
        }

    def _held(self) -> dict[str, Any]:
        """The controls during training; the bar where one of them reads it: else bars share a training."""
        during = stages.training_controls(self.recipe)
        reads = any(control.reads_bar for control in during)
        bar = self.recipe.bar.model_dump(mode="json") if reads else None
        return {"controls": [[c.name, asdict(c)] for c in during], "bar": bar}  # type: ignore[call-overload]

    def _controlling(self, unlearned: str) -> dict[str, Any]:
        """What the control of an unlearned model depends on."""
        return {**self._world(), "unlearned": self.marks[unlearned], **self._bar(), **_code(*TRAIN_ROOMS)}

    def _bar(self) -> dict[str, Any]:
        controls = [c.model_dump(mode="json") for c in self.recipe.control]
        bar = self.recipe.bar.model_dump(mode="json")
        return {"controls": controls, "watch": self.recipe.watch, "bar": bar}

    def _card(self) -> Any:
        return METHODS.card(self.recipe.method.name)

    def _warn(self, *texts: str) -> None:
        """Once on stderr, once in the scorecard."""
        for text in texts:
            if text not in self.warnings:
                self.warnings.append(text)
                say(f"warning: {text}")

    def _head(self) -> dict[str, Any]:
        return {
            "name": self.recipe.name or self.path.name,
            "created": self.folder.state["created"],
            "expunge_version": expunge.__version__,
            "recipe": facts.told_recipe(self.recipe),
            **self._how(),
            "provenance": {
                **environment(),
                "processes": ranks.world(),
                "strategy": self.strategy,
                "seed": self.recipe.seed,
                "train_seed": self.job.train.seed,
                "fingerprints": self.marks,
                "train": self.job.train.model_dump(mode="json"),
                "benchmark": dict(self.job.facts),
            },
            "warnings": self.warnings,
        }


def _code(*rooms: str) -> dict[str, str]:
    return {"code": code_version(*rooms)}
