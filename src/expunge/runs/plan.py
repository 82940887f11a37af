"""What a run would do and cost, without doing any of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from expunge.audit.attacking import attack_plan
from expunge.benchmarks import Benchmark
from expunge.data.builders import Stress, stressed
from expunge.data.encoding import Encoder
from expunge.data.request import Request
from expunge.methods import METHODS, make_method
from expunge.runs.building import missing, wanted
from expunge.runs.chain import earlier, past_forget
from expunge.runs.from_model import asked
from expunge.runs.prepare import load_checked, make_benchmark
from expunge.runs.recipe import FromModel, Recipe
from expunge.runs.recommend import Advice, Budget, Facts, recommend
from expunge.runs.stream import check_stream, parts
from expunge.subjects.subject import Subject, load_encoder, pick_device
from expunge.training.footprint import FP32, hollow, inference_flops, size_of, step_flops, step_memory

__all__ = ["Plan", "plan"]

SECONDS_PER_GFLOP = {"cpu": 0.05, "cuda": 0.00001}
"""Rough speed of small matrices on one CPU core (20 GFLOP/s), and of a data-center GPU in bf16."""


@dataclass
class Plan:
    """Counts, steps, memory (bytes on each device) and time (seconds); estimates are rough and say so."""

    model: str
    method: str
    adapter: str
    controls: list[str]
    attacks: list[str]
    bar: str
    splits: dict[str, dict[str, Any]]
    steps: int
    devices: int = 1
    kind: str = "cpu"
    tokens: dict[str, int] = field(default_factory=dict)
    parameters: int | None = None
    memory: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sample: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    advice: Advice | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    recipe: Recipe,
    *,
    budget: Budget | None = None,
    exact: bool = False,
    robust: bool = False,
    devices: int = 1,
    on: str | None = None,
) -> Plan:
    """Validate a recipe and its data and say what it would take. Loads a tokenizer and a config, no weights.

    The sample is a retain record as the model will see it, never a forget record. `advice` says which methods
    suit the request: within a `budget`, `exact` ones alone, `robust` ones first. `devices`: processes that
    share the rows of a step and, where the recipe's strategy divides them, the weights. `on`: cpu or cuda,
    the kind of device that time is told for; default: what the recipe finds here.
    """
    warnings: list[str] = []
    notes: list[str] = []
    encoder: Encoder | None = None
    if recipe.benchmark:
        benchmark: Benchmark = make_benchmark(recipe)
        request: Request = benchmark.request()
        notes.append("a benchmark trains its original and oracle first, once; they are kept in the cache")
    else:
        recipe, request, warnings = _request(recipe, notes)
        encoder = load_encoder(
            str(recipe.model), max_length=recipe.max_length, trust_remote_code=recipe.trust_remote_code
        )
    if recipe.stress.stress() != Stress():
        request, more = stressed(request, recipe.stress.stress(), recipe.seed)
        warnings += more
    method = make_method(recipe.method.name, **recipe.method.settings)
    rows = sum(len(encoder.windows(r)) for r in request.forget) if encoder else len(request.forget)
    made = Plan(
        recipe.model or (f"{recipe.benchmark.name} (benchmark)" if recipe.benchmark else ""),
        recipe.method.name,
        recipe.adapter,
        [c.name for c in recipe.control],
        [name for name, _ in attack_plan(recipe.audit_plan)],
        f"{recipe.bar.metric}: keep {recipe.bar.keep:g} of the original's",
        {
            s: {
                "records": len(request[s]),
                "entities": len({r.entity or r.id for r in request[s]}),
                "built": request.built.get(s),
            }
            for s in request
        },
        recipe.train.num_steps(rows),
        devices,
        on or pick_device(recipe.device).type,
        warnings=warnings,
        notes=notes,
    )
    if encoder is not None:
        _measure(made, recipe, request, encoder, method)
        _sample(made, request, encoder)
    known = _facts(made, recipe, request)
    robust = robust or recipe.require.recovery is not None
    made.advice = recommend(METHODS.cards(), replace(known, budget=budget, exact=exact, robust=robust))
    if reason := made.advice.ruled_out.get(made.method):
        made.warnings.append(f"{made.method} does not suit this request: {reason}")
    if budget and made.parameters is None:
        made.notes.append("the budget was not checked: the model's size is known once the benchmark made it")
    return made


def _facts(made: Plan, recipe: Recipe, request: Request) -> Facts:
    """What the recommendation is based on."""
    splits = {*request, *(missing(recipe, bar=bool(recipe.control)))}
    mean = made.tokens.get("forget", 0) / max(1, len(request.forget))
    return Facts(
        kind=request.target.kind, aim=request.target.aim, splits=frozenset(splits),
        entities=any(r.entity for r in request.forget), forget=len(request.forget),
        clean_model=bool(recipe.method.settings.get("base") or recipe.oracle.base), access=recipe.access,
        parameters=made.parameters, tokens=made.tokens, seen=mean * recipe.train.batch * made.steps,
        epochs=recipe.train.epochs, seconds_per_flop=SECONDS_PER_GFLOP[made.kind] / 1e9,
        default=Recipe.model_fields["method"].default.name,
    )  # fmt: skip


def _request(recipe: Recipe, notes: list[str]) -> tuple[Recipe, Request, list[str]]:
    """The recipe with its model named, its request as far as it is known without a model, and warnings."""
    if recipe.requests is not None:
        streamed = parts(recipe)
        check_stream(streamed)
        notes.append(f"a stream of {len(streamed)} requests: this is the first")
        recipe = streamed[0]
    links = earlier(recipe.follows) if recipe.follows else ()
    recipe = recipe.model_copy(update={"model": str(links[-1].model)}) if links else recipe
    made, gone = past_forget(links)
    built = {}
    absent = missing(recipe, bar=bool(recipe.control))
    if isinstance(recipe.forget, FromModel):
        made["forget"] = tuple(asked(recipe.forget))
        built["forget"] = "questions; the model answers them when the run begins"
        notes.append("forget is built from the model when the run begins: answers are not counted here")
    if "retain" in absent:
        notes.append("retain is built from the model when the run begins: it is not counted here")
    later = {"forget": recipe.auto, "retain": ("neighbors",)}
    late = {split for source in absent for split in later[source] if split in recipe.auto} - {"retain"}
    notes.extend(f"{split} is built when the run begins: it is not counted here" for split in sorted(late))
    auto = wanted(recipe)
    auto = replace(auto, splits=tuple(split for split in auto.splits if split not in late))
    bar = bool(recipe.control) and "retain" not in absent
    request, warnings = load_checked(recipe, str(recipe.model), made, built, bar=bar, auto=auto)
    return recipe, request, [*gone, *warnings]


def _measure(made: Plan, recipe: Recipe, request: Request, encoder: Encoder, method: Any) -> None:
    lengths = {s: [len(w.ids) for r in request[s] for w in encoder.windows(r)] for s in request}
    made.tokens = {s: sum(values) for s, values in lengths.items()}
    model = hollow(str(recipe.model), recipe.trust_remote_code)
    size, adapter = size_of(model), recipe.adapter == "lora"
    made.parameters = size.parameters
    trained = recipe.lora.rank * size.lora if adapter else _trained(method, model, encoder)
    parts = 2 if request.retain and getattr(method, "retain", "none") != "none" else 1
    rows = recipe.train.batch * parts
    step_tokens = rows * sum(lengths["forget"]) / max(1, len(lengths["forget"]))
    answers = [w.num_targets for r in request.forget for w in encoder.windows(r)]
    step_answers = rows * sum(answers) / max(1, len(answers))
    reference = _reference_bytes(method, lengths, request, size.hidden, size.vocabulary)
    shards = made.devices if recipe.strategy in ("fsdp2", "deepspeed") else 1
    at_once = recipe.train.accumulate * made.devices
    checkpointing = recipe.train.gradient_checkpointing
    made.memory = step_memory(
        size, tokens=step_tokens / at_once, answers=step_answers / at_once, trained=trained, adapter=adapter,
        master=FP32 if recipe.dtype == "float32" else FP32 // 2, bf16=recipe.train.bf16,
        checkpointing=checkpointing, shards=shards,
    )  # fmt: skip
    if reference:
        made.memory["reference cache"] = min(reference, int(recipe.reference_budget * 2**30))
    evidence = sum(made.tokens.values())
    flops = {
        "unlearn": made.steps * step_flops(size, step_tokens, trained=trained, checkpointing=checkpointing),
        "measure": 4 * inference_flops(size, evidence) * 4,
        "control": inference_flops(size, made.tokens.get("calibration", 0)) * 20,
    }
    flops = {stage: value / made.devices for stage, value in flops.items()}
    made.seconds = {stage: value / 1e9 * SECONDS_PER_GFLOP[made.kind] for stage, value in flops.items()}
    if reference > recipe.reference_budget * 2**30:
        made.notes.append(
            f"the reference cache would take {reference / 2**30:.1f} GiB: a live reference is used instead"
        )
    card = METHODS.card(recipe.method.name).fields
    made.notes.append(f"{recipe.method.name}: {card['cost']} per step; erases {card['erases']}")


def _trained(method: Any, model: Any, encoder: Encoder) -> int | None:
    """Parameters that the method trains; None: all."""
    selects = getattr(method, "selects", None)
    chosen = selects(Subject(model, encoder.tokenizer, encoder)) if selects else None
    return None if chosen is None else sum(p.numel() for n, p in model.named_parameters() if n in chosen)


def _reference_bytes(
    method: Any, lengths: dict[str, list[int]], request: Request, hidden: int, vocabulary: int
) -> int:
    from expunge.training.retain import RETAIN_LOSSES
    from expunge.training.views import Reads

    total = 0
    for split, reads in (
        ("forget", getattr(method, "reads", ())),
        ("retain", _retain_reads(method, RETAIN_LOSSES)),
    ):
        wanted = set().union(*Reads.parse(reads).reference.values()) if reads else set()
        tokens = sum(lengths.get(split, []))
        total += 4 * tokens * ("token_logprobs" in wanted) + 4 * len(lengths.get(split, [])) * bool(
            wanted & {"sum_nll", "mean_nll"}
        )
        total += 4 * tokens * hidden * bool(wanted & {"hidden", "logits"}) + 4 * hidden * vocabulary * (
            "logits" in wanted
        )
    return total


def _retain_reads(method: Any, losses: Any) -> tuple[str, ...]:
    name = getattr(method, "retain", "none")
    return tuple(losses.get(name).reads)


def _sample(made: Plan, request: Request, encoder: Encoder) -> None:
    """One record that stays, exactly as the model will see it."""
    if not request.retain:
        return
    record = request.retain[0]
    encoded = encoder.windows(record)[0]
    decode = lambda ids: str(encoder.tokenizer.decode(list(ids)))  # noqa: E731
    made.sample = {
        "split": "retain",
        "id": record.id,
        "prompt": decode(encoded.ids[: encoded.num_prompt]),
        "answer": decode(encoded.answer_ids),
        "tokens": f"{encoded.num_prompt} + {encoded.num_targets}",
    }
