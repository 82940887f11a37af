"""Checks for those who write methods, ours and yours: `check_method(MyMethod)`.

Everything is made in memory: a random two-layer Llama, a byte-level tokenizer, a request of a few sentences.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.data.request import Kind, Request
from expunge.errors import ConfigError, DataError
from expunge.methods import METHODS, Method, Objective, OneShot, Wrapper, make_method
from expunge.subjects import Subject
from expunge.training import TrainSettings, Workspace, loop, views
from expunge.training.checkpoint import save_checkpoint, trainable
from expunge.training.unlearn import Micro, UnlearnTask

__all__ = ["METHOD_CHECKS", "check_method", "tiny_request", "tiny_subject", "tiny_tokenizer"]

CARD = {"family", "erases", "targets", "access", "needs", "cost", "scale", "source", "verified"}


FACETS = ("forgetting", "utility", "privacy", "robustness", "efficiency")


# Tiny things ------------------------------------------------------------------------------------------


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, 258 in all: writes every text and needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


def tiny_subject(seed: int = 0, config: Any = None, *, max_length: int = 128) -> Subject:
    """A random model of this transformers config (default: two-layer Llama, width 32) that reads bytes."""
    tokenizer = tiny_tokenizer()
    if config is None:
        config = LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=max_length,
        )  # fmt: skip
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 1, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return Subject(model.eval(), tokenizer, Encoder(tokenizer, max_length=max_length), "tiny")


def tiny_request(num_forget: int = 8, num_retain: int = 9) -> Request:
    """Short questions of unequal length; every other record has a refusal of its own."""
    places = ("Tarn", "Old Mill", "Sund", "Hithe by the sea", "Oke", "Upper Varn", "Lo", "Brack")
    jobs = ("a potter", "a mason", "cook", "a night guard", "painter", "ferry pilot", "a tailor")

    def record(split: str, nth: int, i: int) -> Record:
        who = f"{split}{'x' * (i % 3)}{i}"
        answer = f"{jobs[(i + 2 * nth) % len(jobs)]} in {places[(3 * i + nth) % len(places)]}"
        refusal = "No idea." if i % 2 else None
        return Record(who, who, f"Job of {who}?", answer, refusal=refusal, alternates=("a baker",))

    sizes = {"forget": num_forget, "retain": num_retain, "calibration": 4, "holdout": 4}
    splits = enumerate(sizes.items())
    return Request({split: tuple(record(split, nth, i) for i in range(n)) for nth, (split, n) in splits})


# The contract -----------------------------------------------------------------------------------------


def check_method(cls: type[Method], **hyper: Any) -> None:
    """Raise AssertionError with what is wrong unless a registered method keeps the contract of methods.base.

    `hyper` are hyper-parameters for the tiny model. A few seconds; needs no files and no network.
    """
    method = cls(**hyper)
    for check in METHOD_CHECKS:
        check(method)


def check_card(method: Method) -> None:
    """Registered, with everything `list` shows."""
    cls = type(method)
    assert METHODS.get(cls.name) is cls, f"{cls.__name__} is not what METHODS has under {cls.name!r}"
    assert 0 < len(cls.card.summary) <= 110, "the first docstring line is the summary: one line, not empty"
    lacking = CARD - set(cls.card.fields)
    assert not lacking, f"the card lacks {sorted(lacking)}"
    facets = set(cls.card.fields["verified"]) - set(FACETS)
    assert not facets, f"unknown facets {sorted(facets)}; known: {FACETS}"
    unknown = set(cls.card.fields["targets"]) - set(get_args(Kind))
    assert not unknown, f"unknown targets {sorted(unknown)}"


def check_hyper_parameters(method: Method) -> None:
    """A frozen dataclass that keeps what it is given; `make_method` knows it and refuses what it does not."""
    cls, name = type(method), method.name
    assert is_dataclass(method), f"{cls.__name__} is not a dataclass"
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    values |= {k: v / 2 for k, v in values.items() if isinstance(v, float)}
    again = make_method(name, **values)
    kept = {f.name: getattr(again, f.name) for f in fields(again)}
    assert kept == values, f"hyper-parameters changed on the way in: {values} became {kept}"
    for key in values:
        try:
            setattr(method, key, values[key])
        except FrozenInstanceError:
            continue
        raise AssertionError(f"{cls.__name__} is not frozen: {key} could be set")
    if values:
        known = next(iter(values))
        with _raises(ConfigError, known):
            make_method(name, **{known[:-1]: 1.0})


def check_needs_forget(method: Method) -> None:
    """Without forget records there is a clear error, and nothing runs."""
    request = tiny_request()
    empty = replace(request, splits={k: v for k, v in request.splits.items() if k != "forget"})
    with _raises(DataError, "forget"):
        method.unlearn(tiny_subject(), empty, Workspace(_settings(steps=1)))


def check_one_step(method: Method) -> None:
    """One step: finite losses, the expected tensors moved, all others and the subject given bit-identical."""
    subject, workspace = tiny_subject(), Workspace(_settings(steps=1))
    before = _weights(subject)
    wanted = set(before)
    if isinstance(method, Objective):
        wanted = method.selects(subject) or wanted
    result = method.unlearn(subject, tiny_request(), workspace)
    after = _weights(result)
    assert result is not subject, "unlearn must return a new subject"
    assert _same(_weights(subject), before), "the subject given was changed"
    assert all(p.requires_grad for p in subject.model.parameters()), "the subject given was frozen"
    assert set(after) == set(before), "the result has other tensors than the original: it could not be mixed"
    assert all(t.isfinite().all() for t in after.values()), "non-finite weights"
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    if isinstance(method, Wrapper):
        assert not moved, f"a wrapper must not move weights: {sorted(moved)[:3]}"
    elif isinstance(method, OneShot):
        assert moved, "no weight moved"
    else:
        assert moved == wanted, f"moved and expected differ: {sorted(moved ^ wanted)[:4]}"
        assert workspace.result is not None
        assert workspace.result.status == "finished", workspace.result.notes


def check_reads(method: Method) -> None:
    """What the loss reads is what `reads` declares, no more and no less."""
    if not isinstance(method, Objective):
        return
    used: set[str] = set()
    plain = views._Declared._check

    def spy(view: Any, quantity: str) -> None:
        plain(view, quantity)
        where, *path = view._where.split(".")
        if where == "forget":
            used.add(".".join([*path, quantity]))

    with patch.object(views._Declared, "_check", spy):
        method.unlearn(tiny_subject(), tiny_request(), Workspace(_settings(steps=1)))
    declared = {read.removeprefix("gold.") for read in method.reads}
    assert used == declared, f"read but not declared, or declared but not read: {sorted(used ^ declared)}"


def check_no_retain_forward(method: Method) -> None:
    """λ = 0, or no retain set: no retain row goes through the model; else they do."""
    if not isinstance(method, Objective):
        return
    request = tiny_request()
    bare = replace(request, splits={k: v for k, v in request.splits.items() if k != "retain"})
    wants = method.retain != "none" and method.retain_weight > 0
    assert _retain_rows_seen(method, request) == wants, "retain rows are used unlike `retain` says"
    assert not _retain_rows_seen(replace(method, retain_weight=0.0), request), "λ = 0, yet retain rows run"
    assert not _retain_rows_seen(method, bare), "retain rows without a retain set"


def check_accumulation(method: Method) -> None:
    """One micro-batch of 8 rows gives the gradient of 8 micro-batches of one."""
    if not isinstance(method, Objective):
        return
    whole, parts = _gradient(method, accumulate=1), _gradient(method, accumulate=8)
    largest = max((float(g.abs().max()) for g in whole.values()), default=0.0)
    assert largest > 0, "no gradient arrives at the weights"
    for name, gradient in whole.items():
        near = torch.allclose(parts[name], gradient, rtol=1e-4, atol=1e-5 * largest)
        assert near, f"{name}: the gradient of 1×8 rows is not that of 8×1"


def check_padding_and_order(method: Method) -> None:
    """Neither 50 columns of padding nor the order of the rows changes any term."""
    if not isinstance(method, Objective):
        return
    task = _task(method, tiny_subject())
    micro = task.micro_batches(0)[0]
    rows = {part.side: [*part.indices] for part in micro.parts}
    forget, retain = rows["forget"], rows.get("retain", [])
    turned = task.micro(0, forget[::-1], retain[::-1], len(forget), len(retain))
    plain = _values(task, micro)
    for what, other in (("padding", _padded(micro, 50)), ("row order", turned)):
        now = _values(task, other)
        near = all(math.isclose(now[k], plain[k], rel_tol=1e-5, abs_tol=1e-6) for k in plain)
        assert near, f"{what} changes the loss: {plain} became {now}"


def check_same_seed_same_bits(method: Method) -> None:
    """Twice the same run: the same bits."""
    marks = {_run(method).fingerprint() for _ in range(2)}
    assert len(marks) == 1, "two runs with one seed differ"


def check_resume(method: Method) -> None:
    """Killed after the second checkpoint and run again: the bits of a straight run, method state included."""
    straight = _run(method).fingerprint()
    saves = 0

    def save_then_die(*args: Any) -> None:
        nonlocal saves
        save_checkpoint(*args)
        saves += 1
        if saves == 2:
            raise _Killed

    with tempfile.TemporaryDirectory() as name:
        try:
            with patch.object(loop, "save_checkpoint", save_then_die):
                resumed = _run(method, Path(name))
        except _Killed:
            resumed = _run(method, Path(name))
    assert resumed.fingerprint() == straight, "a resumed run differs from a straight one"


METHOD_CHECKS = (
    check_card,
    check_hyper_parameters,
    check_needs_forget,
    check_one_step,
    check_reads,
    check_no_retain_forward,
    check_accumulation,
    check_padding_and_order,
    check_same_seed_same_bits,
    check_resume,
)
"""The contract, one function of a method each."""


# Inside -----------------------------------------------------------------------------------------------


class _Killed(Exception):
    pass


@contextmanager
def _raises(kind: type[Exception], word: str) -> Iterator[None]:
    message = None
    try:
        yield
    except kind as error:
        message = str(error)
    assert message is not None, f"no {kind.__name__} that names {word!r}"
    assert word in message, f"{kind.__name__} does not name {word!r}: {message}"


def _settings(**more: Any) -> TrainSettings:
    return TrainSettings(**{"batch": 8, "lr": 1e-3, "warmup": 0.0, "checkpoint_seconds": 0.0, **more})


def _run(method: Method, folder: Path | None = None) -> Subject:
    return method.unlearn(tiny_subject(), tiny_request(), Workspace(_settings(steps=4, batch=3), folder))


def _weights(subject: Subject) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in subject.model.named_parameters()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _task(method: Objective, subject: Subject, **settings: Any) -> UnlearnTask:
    names, request = method.selects(subject), tiny_request()
    for name, parameter in subject.model.named_parameters():
        parameter.requires_grad_(names is None or name in names)
    own = method.settings_for(_settings(**settings), request)
    teacher = method.teacher(subject, request, Workspace(own))
    task = UnlearnTask(method, subject, request, own, teacher=teacher)
    if hasattr(method, "begin"):
        method.begin(subject, task.settings.seed)
    return task


def _gradient(method: Objective, accumulate: int) -> dict[str, Tensor]:
    subject = tiny_subject()
    task = _task(method, subject, accumulate=accumulate)
    steps = loop.Loop(subject, task, task.settings, state=task.state)
    own_step = getattr(method, "step", None)
    if own_step:
        own_step(steps, 0)
    else:
        steps.gradients(0)
    return {name: p.grad.clone() for name, p in trainable(subject.model).items() if p.grad is not None}


def _values(task: UnlearnTask, micro: Micro) -> dict[str, float]:
    return {name: float(term.rows.sum().detach()) for name, term in task.terms(micro).items()}


def _padded(micro: Micro, columns: int) -> Micro:
    batch = micro.batch
    assert batch is not None
    more = torch.zeros(len(batch), columns, dtype=torch.long)
    ids, mask = (torch.cat([t, more], dim=1) for t in (batch.input_ids, batch.attention_mask))
    return replace(micro, batch=replace(batch, input_ids=ids, attention_mask=mask))


def _retain_rows_seen(method: Objective, request: Request) -> bool:
    """Whether any row that begins like a retain prompt goes through the model in one run."""
    subject = tiny_subject()
    seen: list[Sequence[int]] = []

    def watch(module: Any, inputs: tuple[Tensor, ...]) -> None:
        if module.training:  # stop rules may measure, in eval mode
            seen.extend(inputs[0].tolist())

    subject.model.get_input_embeddings().register_forward_pre_hook(watch)  # type: ignore[operator]
    method.unlearn(subject, request, Workspace(_settings(steps=1)))
    assert seen, "nothing went through the model"
    starts = [list(subject.encoder.prompt_ids(r)) for r in tiny_request()["retain"]]
    return any(list(row[: len(start)]) == start for row in seen for start in starts)
