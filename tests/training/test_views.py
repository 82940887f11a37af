"""What a loss sees: only what it declared, and never a prompt or padding position."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from expunge.errors import ConfigError, DataError
from expunge.methods import Objective, make_method
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings
from expunge.training.retain import RETAIN_LOSSES
from expunge.training.unlearn import UnlearnTask
from expunge.training.views import QUANTITIES, Reads, UndeclaredRead

SETTINGS = TrainSettings(batch=8, lr=1e-3, warmup=0.0)


@dataclass(frozen=True, kw_only=True)
class Reader(Objective):
    """Reads whatever the test wants."""

    name: ClassVar[str] = "reader"
    reads: ClassVar[tuple[str, ...]] = ("mean_nll",)
    look: Any = None
    retain: str = "none"

    def loss(self, forget):
        return self.look(forget)


def reader(*reads, look=lambda forget: forget.mean_nll, **more):
    cls = type("Reading", (Reader,), {"reads": reads})
    return cls(look=look, **more)


def terms(method, subject=None, request=None, **settings):
    task = UnlearnTask(method, subject or tiny_subject(), request or tiny_request(), SETTINGS, **settings)
    return task, task.terms(task.micro_batches(0)[0])


def read(view, quantity):
    return view.hidden(0) if quantity == "hidden" else getattr(view, quantity)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_undeclared_read_is_an_error(quantity):
    declared = "mean_nll" if quantity != "mean_nll" else "sum_nll"
    with pytest.raises(UndeclaredRead, match=f"forget.{quantity}"):
        terms(reader(declared, look=lambda forget: read(forget, quantity)))
    with pytest.raises(UndeclaredRead, match=f"forget.reference.{quantity}"):
        terms(reader(declared, quantity, look=lambda forget: read(forget.reference, quantity)))


def test_undeclared_variant_is_an_error():
    with pytest.raises(AttributeError, match=r"forget.refusal is not declared"):
        terms(reader("mean_nll", look=lambda forget: forget.refusal.mean_nll))
    with pytest.raises(ValueError, match="sum_nl"):
        Reads.parse(["sum_nl"])


def test_gold_is_out_of_reach_where_only_a_refusal_is_declared():
    """Whatever the order of `reads`, `forget` is the gold answer or nothing."""
    for quantity in ("mean_nll", "sum_nll"):
        with pytest.raises(UndeclaredRead, match=r"forget\.mean_nll"):
            terms(reader(f"refusal.{quantity}", look=lambda forget: forget.mean_nll))
    gold = terms(reader("mean_nll"))[1]["forget"].rows.sort().values
    for reads in (("refusal.mean_nll", "mean_nll"), ("mean_nll", "refusal.mean_nll")):
        torch.testing.assert_close(terms(reader(*reads))[1]["forget"].rows.sort().values, gold)


def test_views_agree_with_a_plain_forward_row_by_row():
    """The fused, packed pass against one unpadded forward per row."""
    subject, request = tiny_subject(), tiny_request()
    method = reader("sum_nll", look=lambda forget: forget.sum_nll, retain="ce")
    task = UnlearnTask(method, subject, request, SETTINGS)
    micro = task.micro_batches(0)[0]
    found = task.terms(micro)
    for part, values in zip(micro.parts, (found["forget"].rows, found["retain"].rows), strict=True):
        for row, value in zip(part.rows, values, strict=True):
            ids = torch.tensor([row.ids])
            logp = subject.model(ids).logits[0].float().log_softmax(-1)
            positions = range(row.num_prompt, len(row.ids))
            nll = -sum(logp[p - 1, row.ids[p]] for p in positions)
            expected = nll if part.side == "forget" else nll / len(positions)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


class HeadInput:
    """The hidden states the output head is given, with their gradient."""

    def __init__(self, subject):
        subject.model.model.norm.register_forward_hook(self.keep)

    def keep(self, _, __, output):
        self.states = output
        if output.requires_grad:
            output.retain_grad()


@pytest.mark.parametrize("name", ["ga", "npo", "simnpo", "wga", "graddiff", "ga_kl", "dpo", "idk"])
def test_prompt_and_padding_logits_get_exactly_zero_gradient(name):
    subject = tiny_subject()
    watched = HeadInput(subject)
    task = UnlearnTask(make_method(name), subject, tiny_request(), SETTINGS)
    with torch.no_grad():  # away from the reference, where a divergence has no gradient
        for parameter in subject.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    micro = task.micro_batches(0)[0]
    sum(t.weight * t.rows.sum() for t in task.terms(micro).values()).backward()
    scored = torch.zeros(micro.batch.input_ids.shape, dtype=torch.bool)
    needed = {part.name for part in micro.parts}
    assert needed >= set(task.needs)
    scored[micro.batch.row, micro.batch.col] = True
    size = watched.states.grad.abs().sum(-1)
    assert (size[~scored] == 0).all()
    assert (size[scored] > 0).all()


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_retain_losses_ignore_prompt_and_padding_logits(loss):
    """Perturb the states behind every other position: same value."""
    values = []
    for noise in (0.0, 5.0):
        subject = tiny_subject()
        method = reader("mean_nll", retain=loss)
        task = UnlearnTask(method, subject, tiny_request(), SETTINGS)
        micro = task.micro_batches(0)[0]

        def disturb(_, __, output, micro=micro, noise=noise):
            if output.shape[:2] != micro.batch.input_ids.shape:
                return output
            mask = torch.ones(output.shape[:2])
            mask[micro.batch.row, micro.batch.col] = 0
            return output + noise * mask[..., None]

        subject.model.model.norm.register_forward_hook(disturb)
        values.append(task.terms(micro)["retain"].rows)
    assert torch.equal(*values)


def test_hidden_states_are_those_of_the_layer_at_answer_positions():
    subject = tiny_subject()
    method = make_method("rmu", layer=0)
    task = UnlearnTask(method, subject, tiny_request(), SETTINGS)
    micro = task.micro_batches(0)[0]
    view = task.views(micro)["forget"]
    states = subject.model(
        micro.batch.input_ids, attention_mask=micro.batch.attention_mask, output_hidden_states=True
    )
    count = len(view.hidden(0))
    expected = states.hidden_states[1][micro.batch.row[:count], micro.batch.col[:count]]
    torch.testing.assert_close(view.hidden(0), expected)


def test_representation_method_runs_no_block_beyond_its_layer_and_no_head():
    subject, ran = tiny_subject(), []
    for name in ("model.layers.0", "model.layers.1", "lm_head"):
        subject.model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    task = UnlearnTask(make_method("rmu", layer=0), subject, tiny_request(), SETTINGS)
    task.terms(task.micro_batches(0)[0])
    assert set(ran) == {"model.layers.0"}


def test_hidden_retain_loss_needs_a_layer():
    with pytest.raises(ConfigError, match="needs a layer"):
        terms(make_method("graddiff", retain="hidden_mse"))


def test_refusals_are_a_function_of_record_and_epoch():
    request = tiny_request()
    task = UnlearnTask(make_method("idk"), tiny_subject(), request, SETTINGS)
    own = [i for i, r in enumerate(request.forget) if r.refusal]
    drawn = [i for i, r in enumerate(request.forget) if not r.refusal]

    def ids(epoch):
        return {i: task._row("forget", "refusal", i, epoch).ids for i in range(len(request.forget))}

    first, again, later = ids(0), ids(0), [ids(e) for e in range(1, 4)]
    assert first == again
    assert all(first[i] == epoch[i] for epoch in later for i in own)
    assert any(first[i] != epoch[i] for epoch in later for i in drawn)


def test_dpo_keeps_one_refusal_per_record_since_its_reference_is_cached():
    task = UnlearnTask(make_method("dpo"), tiny_subject(), tiny_request(), SETTINGS)
    assert all(task._row("forget", "refusal", i, 0) == task._row("forget", "refusal", i, 5) for i in range(8))


def test_no_gold_answer_is_in_the_batch_of_idk():
    request = tiny_request()
    task = UnlearnTask(make_method("idk", retain="none"), tiny_subject(), request, SETTINGS)
    micro = task.micro_batches(0)[0]
    texts = [task.subject.encoder.decode(row.tolist()) for row in micro.batch.input_ids]
    assert len(texts) == 8
    assert not any(record.answer in text for record in request.forget for text in texts)


def test_missing_alternates_are_reported_by_record():
    request = tiny_request()
    bare = tuple(replace(r, alternates=()) for r in request.forget)
    method = reader("alternate.mean_nll", look=lambda forget: forget.alternate.mean_nll)
    assert terms(method)[1]["forget"].rows.shape == (8,)
    with pytest.raises(DataError, match=bare[0].id):
        terms(method, request=replace(request, splits={"forget": bare}))


def test_rows_without_an_answer_in_the_context_are_left_out():
    subject, request = tiny_subject(), tiny_request()
    long = replace(request.forget[0], prompt="very " * 60)
    mixed = replace(request, splits={**request.splits, "forget": (long, *request.forget[1:])})
    task, found = terms(make_method("ga"), subject, mixed)
    assert len(task.sources["forget"]) == 7
    assert found["forget"].rows.isfinite().all()
    with pytest.raises(DataError, match="context"):
        terms(make_method("ga"), subject, replace(request, splits={"forget": (long,)}))


def test_retain_losses_declare_what_they_read():
    for name in RETAIN_LOSSES.names():
        Reads.parse(RETAIN_LOSSES.get(name)().reads)
