"""The recipe: everything a run depends on, as a schema; `runs.reading` reads and checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from expunge.attacks import Profile
from expunge.data.builders.auto import AUTO
from expunge.data.builders.stress import STRESS_FORMS, Stress
from expunge.data.request import SPLITS, Target
from expunge.subjects.serving import Engine
from expunge.training.settings import TrainSettings
from expunge.training.workspace import LoraSettings

__all__ = [
    "AfterSettings",
    "BarSettings",
    "BuildSettings",
    "ComposeSettings",
    "FromModel",
    "Named",
    "OracleSettings",
    "Recipe",
    "RequestPart",
    "StressSettings",
    "TuneSettings",
]

PROFILES: tuple[Profile, ...] = get_args(Profile)

AXES = ("adapter", "lora", "reference", "transform", "selection")
"""What may also be named beside the method's own settings."""


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
        if not isinstance(value, Mapping):
            return value
        if len(value) == 1 and "name" not in value:
            name, settings = next(iter(value.items()))  # - uwc: {grid: 8}
            if isinstance(settings, Mapping) or settings is None:
                return {"name": name, "settings": dict(settings or {})}
        if "name" not in value:
            raise ValueError(f"has no name; write {{name: …, {', '.join(map(str, value))}: …}}")
        given = {k: v for k, v in value.items() if k not in ("name", "settings")}
        return {"name": value["name"], "settings": {**value.get("settings", {}), **given}}


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
        if isinstance(value, Mapping) and "name" in value:  # oracle: retrain, and oracle.base=… beside it
            more = {k: v for k, v in value.items() if k != "name"}
            return {**cls._short(value["name"]), **more}  # type: ignore[operator]
        return {"folder": value} if isinstance(value, str) else value


class AfterSettings(Part):
    """The run that this one follows: its controlled model is this one's original."""

    run: str | None = Field(None, description="its folder; a stream chains its own runs")
    reference: Literal["rolling", "fixed"] = Field(
        "rolling", description="the method's yardstick: the model before this request, or before the first"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value


class FromModel(Part):
    """A forget set made of what the model itself says about an entity."""

    from_model: str = Field(min_length=1, description="the entity's name, as the model knows it")
    questions: tuple[str, ...] = Field(
        (), description="your own questions, with {entity} in them; default: expunge's"
    )

    @field_validator("questions")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("{entity}" not in question for question in value):
            raise ValueError("every question needs {entity} where the name goes")
        return value


class BuildSettings(Part):
    """What the splits named `auto` are built with."""

    neighbors: Literal["nearest", "template", "embedding"] = Field(
        "nearest", description="retain records that ask the same of others, else (or only) by embedding"
    )
    encoder: str = Field(
        "lexical", description="of the embedding: lexical, model:PATH or sentence-transformers:NAME"
    )
    translator: str | None = Field(
        None, description="package.module:function, a list of texts to as many in another language"
    )


class StressSettings(Part):
    """Stress tests of the request, whatever it comes from: more forms, and records kept from the method."""

    forms: tuple[str, ...] = Field(
        (), description="added to forget_hard where it lacks them: choice, open, cue_removed"
    )
    held_out: float = Field(
        0.0, ge=0, lt=1, description="share of each entity's forget records that is scored, and never trained"
    )
    listed: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of each entity's forget records that is listed; others stand in retain",
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, str):
            return {"forms": [value]}
        return {"forms": value} if isinstance(value, list | tuple) else value

    @field_validator("forms", mode="after")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [form for form in value if form not in STRESS_FORMS]:
            raise ValueError(f"no form {unknown[0]!r}; there are {', '.join(STRESS_FORMS)}")
        return tuple(dict.fromkeys(value))

    def stress(self) -> Stress:
        return Stress(self.forms, self.held_out, self.listed)


class RequestPart(Part):
    """One request of a stream: what differs from the others."""

    forget: str
    forget_hard: str | None = None
    retain: str | None = None
    neighbors: str | None = None
    holdout: str | None = None
    oracle: OracleSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"forget": value} if isinstance(value, str) else value


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


class TuneSettings(Part):
    """A search over methods, their settings and controls under the recipe's one bar."""

    methods: tuple[Named, ...] = Field((), description="methods searched; default: the recipe's own")
    trials: int = Field(20, gt=0, description="trials of each method")
    seeds: int = Field(2, gt=0, description="further seeds the best three trials are repeated with")
    metric: str = Field(
        "auto", description="on the selection split; auto: extraction strength or probability"
    )
    space: dict[str, Any] = Field(
        {}, description="ranges, as in {train.lr: [1e-6, 1e-4], npo.beta: 0.1}; default: around each default"
    )


class ComposeSettings(Part):
    """What else is done to the model, before unlearning and after it."""

    interventions: tuple[Named, ...] = Field(
        (Named(name="edit_finetune"), Named(name="gptq"), Named(name="wanda")),
        min_length=1,
        description="edits, quantizers and prunings: [edit_lora, {gptq: {bits: 4}}, wanda]; a list will do",
    )
    pairs: Literal["unlearn", "all"] = Field(
        "unlearn", description="each with unlearning in both orders, or also with one another"
    )
    chains: tuple[tuple[str, ...], ...] = Field(
        (), description="longer ones, as in [edit_lora, unlearn, gptq]; each is made backwards too"
    )
    relearn: bool = Field(True, description="attack edited and unlearned models by held-out relearning")
    latency: int = Field(32, ge=0, description="tokens timed per prompt; 0: none")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, str):
            return {"interventions": [value]}
        return {"interventions": value} if isinstance(value, list | tuple) else value


class Recipe(Part):
    """What to forget, in which model, how, under which bar, and how it is audited."""

    name: str | None = None
    benchmark: Named | None = Field(
        None, description="stands for model, splits and oracle: personas/small, tofu/forget05"
    )
    model: str | None = Field(None, description="folder or hub id of the original model")
    after: AfterSettings | None = Field(
        None,
        description="an earlier run's folder, or {run, reference: fixed}: start from its controlled model, "
        "measure what it forgot again",
    )
    forget: str | FromModel | None = Field(
        None, description="what must go: a file, a dataset folder, a hub id, or {from_model: ENTITY}"
    )
    requests: tuple[RequestPart, ...] | None = Field(
        None,
        description="a stream: forget files (or {forget, retain, holdout, …}), one chained run each",
    )
    retain: str | None = Field(
        None, description="what must stay; may be unrelated public text; auto: built from the model"
    )
    forget_hard: str | None = Field(
        None, description="the forget knowledge asked differently; auto: reworded by templates"
    )
    neighbors: str | None = Field(
        None, description="same kind of fact, another entity; must stay; auto: taken out of retain"
    )
    calibration: str | None = Field(None, description="the control measures here; default: cut from retain")
    report: str | None = Field(None, description="the report scores these; default: cut from retain")
    holdout: str | None = Field(
        None,
        description="same kind, never seen by the model: without it no membership attack; auto: invented",
    )
    utility: str | None = Field(
        None, description="general abilities; measured only; auto: expunge's own questions"
    )
    build: BuildSettings = BuildSettings()
    stress: StressSettings = StressSettings()
    columns: dict[str, str | dict[str, str]] = Field(
        {}, description="our name → your column, for all files or per split"
    )
    oracle: OracleSettings = OracleSettings()
    target: TargetSettings = TargetSettings()
    method: Named = Named(name="wga")
    adapter: Literal["full", "lora"] = "full"
    lora: LoraSettings = LoraSettings()
    reference: Literal["auto", "cache", "live", "adapter_off"] = "auto"
    transform: tuple[Named, ...] = Field(
        (), description="gradient transforms, first to last: gru, sam, disruption, …"
    )
    selection: tuple[Named, ...] = Field(
        (), description="which weights are trained: pattern, layers, salun, …; all of them must agree"
    )
    reference_budget: float = Field(2.0, gt=0, description="GiB the cached reference may take")
    bar: BarSettings = BarSettings()
    control: tuple[Named, ...] = (Named(name="uwc"),)
    screen: Literal["warn", "refuse"] = Field(
        "warn",
        description="of an odd request (duplicates, oversize, benign look-alikes): say so, or stop at once",
    )
    watch: bool = Field(
        True, description="end a training that wrecks the model; no control at all switches it off too"
    )
    audit: Profile | tuple[Named, ...] = Field(
        "default", description="quick, default, deep, or a list of attacks"
    )
    annotators: tuple[Named, ...] = Field(
        (), description="settings of what reads texts, as in {embeddings: {encoder: model:./minilm}}"
    )
    attack_lrs: tuple[float, ...] = Field(
        (1e-5, 5e-5, 2e-4), description="learning rates an attacker would try"
    )
    require: Requirements = Requirements()
    train: TrainSettings = TrainSettings()
    max_new_tokens: int = Field(200, gt=0, description="length of generated answers, at most")
    max_length: int | None = Field(None, gt=1, description="tokens per record; default: the model's context")
    access: Literal["weights", "logits", "text"] = Field(
        "weights", description="what may be asked of the model: logits, text: as of one behind an interface"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the master weights")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    attention: str | None = Field(None, description="attention kernel of transformers")
    strategy: Literal["auto", "single", "ddp", "fsdp2", "deepspeed"] = Field(
        "auto",
        description="how torchrun's processes train; auto: single, or ddp where there are several",
    )
    deepspeed: str | None = Field(None, description="configuration file of strategy: deepspeed")
    engine: Engine = Field(
        "auto", description="who generates texts: transformers or vllm; auto: vllm where it is, with a GPU"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    show_text: bool = Field(False, description="put forget-set text into the report")
    seed: int = Field(0, ge=0)
    output: str = Field("runs/run", description="run folder")
    tune: TuneSettings | None = Field(
        None, description="`expunge tune`; where it stands, what the search selects by is never reported"
    )
    compose: ComposeSettings | None = Field(
        None, description="`expunge compose`: edits and compressions before unlearning and after it"
    )
    deploy: str | None = Field(None, description="deployment folder of `expunge release`")

    @field_validator("annotators", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """A mapping may name several: {embeddings: {…}, entailment: {…}}."""
        if isinstance(value, Mapping) and "name" not in value:
            return [{name: settings} for name, settings in value.items()]
        return (value,) if isinstance(value, str | Mapping) else value

    @field_validator("control", "audit", "transform", "selection", mode="before")
    @classmethod
    def _as_list(cls, value: Any, info: Any) -> Any:
        if value in (None, "none"):
            return ()
        if info.field_name == "audit":
            return (value,) if isinstance(value, str) and value not in PROFILES else value
        if isinstance(value, str | Mapping):
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
            for axis in AXES:
                if axis in method:
                    if value.get(axis, method[axis]) != method[axis]:
                        raise ValueError(f"{axis} is said twice; change it under method: method.{axis}=…")
                    value[axis] = method.pop(axis)
            value["method"] = method
        return value

    @property
    def follows(self) -> str | None:
        """The run that this one starts from."""
        return self.after.run if self.after else None

    @property
    def profile(self) -> str:
        """What the verdict is named after: a list of one's own is no profile."""
        return self.audit if isinstance(self.audit, str) else "custom"

    @property
    def reach(self) -> Profile:
        """How far each attack goes."""
        return self.audit if isinstance(self.audit, str) else "default"

    @property
    def audit_plan(self) -> str | list[tuple[str, dict[str, Any]]]:
        return self.audit if isinstance(self.audit, str) else [(a.name, a.settings) for a in self.audit]

    @property
    def sources(self) -> dict[str, str]:
        """The splits that are read from somewhere; what is built is none."""
        named = {split: getattr(self, split) for split in SPLITS}
        return {s: v for s, v in named.items() if isinstance(v, str) and s not in self.auto}

    @property
    def auto(self) -> tuple[str, ...]:
        """The splits that are to be built."""
        return tuple(s for s in ("retain", *AUTO) if getattr(self, s) == "auto")
