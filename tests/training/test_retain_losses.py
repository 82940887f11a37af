"""The retain losses: golden values, zero at the reference, masks, and the distance of weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch import tensor

from expunge.methods import make_method
from expunge.subjects import attach_lora
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace
from expunge.training.retain import RETAIN_LOSSES, retain_values
from expunge.training.unlearn import UnlearnTask
from golden_fixture import GOLD, H_REF, LENGTHS, ROW, Z_REF, H, Z, close, floats, frozen, leaf, states, view

doubles = pytest.mark.usefixtures("doubles")


def loss_of(name):
    return RETAIN_LOSSES.get(name)()


class Sums:
    """A view of given sums."""

    def __init__(self, sums, refusal=None):
        self.sum_nll, self.refusal = floats(sums).requires_grad_(), refusal


GOLD_SUMS = (0.527532, 1.992605)


# Values and facts -------------------------------------------------------------------------------------


@doubles
def test_golden_values():
    close(loss_of("jsd").loss(view(floats(Z))).mean().item(), 0.038498)
    close(loss_of("hidden_norm").loss(states(floats(H), H_REF)).mean().item(), 1.0)
    close(loss_of("ap").loss(Sums(GOLD_SUMS, Sums((4, 5)))).mean().item(), 5.442809)


@doubles
def test_jsd_is_symmetric_and_at_most_log_two():
    swapped = view(floats(Z_REF), ref=frozen(floats(Z), GOLD, ROW, LENGTHS))
    torch.testing.assert_close(loss_of("jsd").loss(swapped), loss_of("jsd").loss(view(floats(Z))))
    apart = floats([[80.0, 0, 0, 0]] * 5), floats([[0, 80.0, 0, 0]] * 5)
    far = loss_of("jsd").loss(view(apart[0], ref=frozen(apart[1], GOLD, ROW, LENGTHS)))
    close(far.tolist(), [math.log(2)] * 2, 1e-9)


@doubles
def test_jsd_gradient_equals_autograd_of_the_formula():
    logits = leaf()
    p, q = logits.softmax(-1), floats(Z_REF).softmax(-1)
    m = (p + q) / 2
    tokens = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    expected = torch.autograd.grad(tokens[:2].mean() / 2 + tokens[2:].mean() / 2, logits)[0]
    gradient = torch.autograd.grad(loss_of("jsd").loss(view(logits)).mean(), logits)[0]
    torch.testing.assert_close(gradient, expected)


@doubles
@pytest.mark.parametrize("name", ["jsd", "kl"])
def test_divergence_at_the_reference_is_zero_with_zero_gradient(name):
    logits = leaf(Z_REF)
    value = loss_of(name).loss(view(logits)).mean()
    close(value.item(), 0, 1e-12)
    assert torch.autograd.grad(value, logits)[0].abs().max() < 1e-12


@doubles
def test_hidden_norm_at_the_reference_is_zero_with_subgradient_zero():
    hidden = floats(H_REF).requires_grad_()
    value = loss_of("hidden_norm").loss(states(hidden, H_REF)).mean()
    assert value.item() == 0
    assert torch.autograd.grad(value, hidden)[0].abs().max() == 0


@doubles
def test_hidden_norm_is_not_squared_and_a_mean_over_layers_and_rows():
    """Layer 0 is 3 and 4 off, layer 1 not at all; a squared norm would be four times as large at twice it."""
    row = tensor([0, 1])
    at = {"targets": tensor([0, 0]), "row": row, "lengths": tensor([1, 1])}
    ref = frozen(None, None, row, at["lengths"], torch.zeros(2, 2, dtype=torch.float64))
    layers = {0: floats([[3, 0], [0, 4]]), 1: floats([[0, 0], [0, 0]])}
    value = loss_of("hidden_norm").loss(view(None, ref=ref, hidden=layers, **at))
    close(value.tolist(), [1.5, 2.0])
    double = {layer: 2 * states for layer, states in layers.items()}
    close(loss_of("hidden_norm").loss(view(None, ref=ref, hidden=double, **at)).tolist(), [3.0, 4.0])


@doubles
def test_ap_keeps_the_answer_above_the_refusal_with_the_factor_one_over_beta():
    refusal = Sums((4.0, 5.0))
    views = Sums(GOLD_SUMS, refusal)
    loss_of("ap").loss(views).sum().backward()
    pull = [1 / (1 + math.exp(0.1 * (r - s))) for r, s in zip((4, 5), GOLD_SUMS, strict=True)]
    close(views.sum_nll.grad.tolist(), pull, 1e-9)
    close(refusal.sum_nll.grad.tolist(), [-x for x in pull], 1e-9)
    even = loss_of("ap").loss(Sums((3.0, 3.0), Sums((3.0, 3.0))))
    close(even.tolist(), [math.log(2) / 0.1] * 2)


@doubles
def test_ap_vanishes_as_the_answer_wins():
    refusal = Sums((900.0, 900.0))
    views = Sums((1.0, 1.0), refusal)
    loss_of("ap").loss(views).sum().backward()
    assert views.sum_nll.grad.abs().max() < 1e-12


# In training ------------------------------------------------------------------------------------------

METHOD_FOR = {"hidden_mse": ("rmu", {"layer": 1}), "hidden_norm": ("rmu", {"layer": 1})}
READING = ["ce", "kl", "jsd", "ap", "hidden_mse", "hidden_norm"]


def task_of(name, subject=None, **settings):
    method, hyper = METHOD_FOR.get(name, ("ga", {}))
    made = make_method(method, retain=name, retain_weight=1.0, **hyper)
    task = UnlearnTask(
        made, subject or tiny_subject(), tiny_request(), TrainSettings(**{"batch": 8, **settings})
    )
    if subject is None:
        disturb(task.subject)
    return task


def disturb(subject, size=0.02):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in subject.model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def mean(term):
    return float(term.rows.detach().sum()) / term.num_rows


@pytest.mark.parametrize("name", READING)
def test_padding_and_micro_batches_change_nothing(name):
    task = task_of(name)
    (whole,) = task.micro_batches(0)
    value = task.terms(whole)["retain"]
    total = mean(value)
    assert total > 0
    batch = whole.batch
    more = torch.zeros(len(batch), 50, dtype=torch.long)
    wide = {k: torch.cat([getattr(batch, k), more], 1) for k in ("input_ids", "attention_mask")}
    padded = task.terms(replace(whole, batch=replace(batch, **wide)))["retain"]
    assert mean(padded) == pytest.approx(total, abs=1e-6)
    singles = task_of(name, accumulate=8)
    terms = [singles.terms(micro)["retain"] for micro in singles.micro_batches(0)]
    assert len(terms) == 8
    assert sum(map(mean, terms)) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", READING)
def test_logits_of_prompt_and_padding_get_no_gradient(name):
    """The value depends on the last layer's states at answer positions alone."""
    task = task_of(name)
    seen = []

    def keep(_, __, output):
        states = output[0] if isinstance(output, tuple) else output
        states.retain_grad()
        seen.append(states)

    last = task.subject.model.model.layers[-1]
    handle = last.register_forward_hook(keep)
    (micro,) = task.micro_batches(0)
    task.terms(micro)["retain"].rows.sum().backward()
    handle.remove()
    batch = micro.batch
    answers = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    answers[batch.row, batch.col] = True
    assert seen[0].grad[answers].abs().max() > 0
    assert seen[0].grad[~answers].abs().max() == 0


@pytest.mark.parametrize("name", ["kl", "jsd", "hidden_mse", "hidden_norm"])
def test_zero_at_the_reference_in_training(name):
    task = task_of(name, tiny_subject())
    values = retain_values(task)
    assert len(values) == len(tiny_request().retain)
    assert values.abs().max() < 1e-6


def test_retain_values_are_those_of_every_row_in_its_order():
    task = task_of("ce")
    values = retain_values(task)
    for i in (0, 4, 8):
        micro = task.micro(0, [], [i], 0, 1)
        assert float(values[i]) == pytest.approx(float(task.terms(micro)["retain"].rows.detach()), rel=1e-5)
    assert not values.requires_grad
    assert len(set(values.tolist())) == 9


def test_ap_reads_refusals_of_retain_prompts():
    task = task_of("ap")
    (micro,) = task.micro_batches(0)
    retain = task.views(micro)["retain"]
    assert retain.refusal.sum_nll.shape == retain.sum_nll.shape
    row = next(p for p in micro.parts if p.name == "retain.refusal").rows[0]
    text = task.subject.tokenizer.decode(row.ids)
    assert "Job of retain" in text


# Distance of weights ----------------------------------------------------------------------------------


def test_l2_is_the_squared_distance_over_the_trained_weights():
    subject = tiny_subject()
    for name, parameter in subject.model.named_parameters():
        parameter.requires_grad_("down_proj" in name)
    before = {n: p.detach().clone() for n, p in subject.model.named_parameters()}
    loss = loss_of("l2")
    loss.attach(subject)
    at_start = loss.loss(None)
    assert at_start.item() == 0
    at_start.backward()
    trained = {n: p for n, p in subject.model.named_parameters() if p.requires_grad}
    assert all(p.grad.abs().max() == 0 for p in trained.values())
    disturb(subject)
    value = loss.loss(None)
    gaps = {n: p.detach() - before[n] for n, p in trained.items()}
    count = sum(g.numel() for g in gaps.values())
    expected = sum(float(g.square().sum()) for g in gaps.values()) / count
    assert value.item() == pytest.approx(expected, rel=1e-5)
    subject.model.zero_grad()
    value.backward()
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, 2 * gaps[name] / count)
        assert (parameter.grad * gaps[name]).sum() > 0, "descent must go back toward the original"


def test_l2_of_a_lora_is_the_distance_of_the_merged_matrices():
    subject = attach_lora(tiny_subject(), rank=3, seed=1)
    disturb(subject)  # away from B = 0, as FILA starts
    layers = [m for m in subject.model.modules() if hasattr(m, "lora_A")]
    product = lambda m: m.scaling["default"] * (m.lora_B["default"].weight @ m.lora_A["default"].weight)  # noqa: E731
    start = [product(m).detach() for m in layers]
    loss = loss_of("l2")
    loss.attach(subject)
    assert abs(loss.loss(None).item()) < 1e-9
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    squares = sum(float((product(m) - s).detach().square().sum()) for m, s in zip(layers, start, strict=True))
    count = sum(s.numel() for s in start)
    assert loss.loss(None).item() == pytest.approx(squares / count, rel=1e-4)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)])
def test_l2_holds_the_weights_near_the_original_without_any_retain_row(lora):
    request = replace(tiny_request(), splits={"forget": tiny_request().forget})
    moved = {}
    for weight in (1.0, 1e5):
        settings = TrainSettings(steps=8, batch=4, lr=3e-3, warmup=0.0, weight_decay=0.0)
        method = make_method("ga", retain="l2", retain_weight=weight)
        result = method.unlearn(tiny_subject(), request, Workspace(settings, lora=lora))
        pairs = zip(result.model.parameters(), tiny_subject().model.parameters(), strict=True)
        moved[weight] = math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in pairs))
    assert 0 < moved[1e5] < 0.7 * moved[1.0]
