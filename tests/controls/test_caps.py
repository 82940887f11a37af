"""hinge_cap and cap: worked numbers and what they promise."""

import math

import pytest
import torch
from torch import tensor

from expunge.controls import make_control
from expunge.controls.cap import Cap
from expunge.controls.hinge_cap import HingeCap, hinge_rows
from expunge.errors import ConfigError
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods import make_method
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace
from expunge.training.views import View

EVERY = frozenset({"sum_nll", "mean_nll", "token_logprobs"})


def gradient(function, *values):
    leaf = tensor(values, dtype=torch.float64, requires_grad=True)
    value = function(leaf)
    return value.item(), torch.autograd.grad(value, leaf)[0].tolist()


def view_of(logits, targets, lengths, **more):
    row = torch.repeat_interleave(torch.arange(len(lengths)), tensor(lengths))
    return View(tensor(targets), row, tensor(lengths), logits, {}, None, None, {}, EVERY, **more)


def two_way(probabilities):
    """Logits over two tokens with these probabilities of the first."""
    p = tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()], dim=1).requires_grad_()


def run(method="ga", control=None, steps=8, **more):
    hooks = [control.attach(None)] if control else []
    settings = TrainSettings(
        **{"steps": steps, "batch": 8, "lr": 5e-3, "warmup": 0.0, "schedule": "constant", **more}
    )
    workspace = Workspace(settings, controls=hooks)
    return make_method(method).unlearn(tiny_subject(), tiny_request(), workspace), workspace


# hinge_cap --------------------------------------------------------------------------------------------


def test_hinge_worked_numbers():
    value, slope = gradient(lambda s: hinge_rows(s, 4.0).mean(), 1.0, 5.0, 3.0)
    assert (value, slope) == (2.0, [-0.5, 0, -0.5])
    value, slope = gradient(lambda s: hinge_rows(s, 4.0, "batch").mean(), 1.0, 5.0, 3.0)
    assert value == pytest.approx(4 / 3)
    assert slope == pytest.approx([-1 / 3, 0, -1 / 3])
    golden = tensor([0.527532, 1.992605])
    rows = hinge_rows(golden, 2.0)
    assert rows.tolist() == pytest.approx([1.472468, 0.007395], abs=1e-6)
    assert rows.mean().item() == pytest.approx(0.739932, abs=1e-6)


def test_hinge_zero_gradient_beyond_delta():
    value, slope = gradient(lambda s: hinge_rows(s, 4.0).mean(), 4.0, 9.0)
    assert (value, slope) == (0.0, [0.0, 0.0])


def test_hinge_infinite_delta_equals_gradient_ascent():
    _, slope = gradient(lambda s: hinge_rows(s, 1e9).mean(), 1.0, 5.0, 3.0)
    assert slope == pytest.approx([-1 / 3] * 3)
    ascent, _ = run()
    hinged, _ = run(control=HingeCap(delta=1e9))
    torch.testing.assert_close(
        list(hinged.model.parameters()), list(ascent.model.parameters()), rtol=1e-3, atol=1e-4
    )


def test_hinge_active_set_is_not_differentiated():
    """The count |V| is a constant: the slope of each active row is −1/|V|, whatever the values."""
    for values in ((0.1, 3.9, 5.0, 1.0), (3.0, 3.0, 3.0, 9.0)):
        _, slope = gradient(lambda s: hinge_rows(s, 4.0).mean(), *values)
        assert slope == pytest.approx([-1 / 3 if v < 4 else 0.0 for v in values])


def nats(subject, request):
    """Mean NLL per token of each forget row."""
    sheet = make_sheet(subject.encoder, request.forget, "forget")
    return [-row.logprobs.mean() for row in score_sheet(subject, sheet)]


def test_hinge_never_overshoots_by_more_than_one_step():
    delta, request = 7.0, tiny_request()
    free, _ = run(steps=30)
    capped, workspace = run(control=HingeCap(delta=delta), steps=30)
    largest_step = 2.0
    assert min(nats(free, request)) > delta + largest_step
    assert max(nats(capped, request)) < delta + largest_step
    assert min(nats(capped, request)) >= delta
    assert workspace.result.history[-1]["active"] == 1.0


def test_hinge_empty_set_leaves_weights_bit_identical():
    """With Adam's moments warm, a zero gradient is not a zero step."""
    seen = []

    class Spy(type(HingeCap().attach(None))):
        def after_step(self, step, subject):
            seen.append((self.active, fingerprint(subject.model)))
            return False

    settings = TrainSettings(steps=30, batch=8, lr=5e-3, warmup=0.0)
    workspace = Workspace(settings, controls=[Spy(HingeCap(delta=7.0))])
    make_method("ga").unlearn(tiny_subject(), tiny_request(), workspace)
    marks = [mark for _, mark in seen]
    first = next(i for i, (active, _) in enumerate(seen) if active == 1.0)
    assert 2 < first < 28
    assert len(set(marks[:first])) == first
    assert set(marks[first:]) == {marks[first - 1]}


def test_hinge_empty_set_goes_on_with_retain_where_there_is_one():
    _, workspace = run("graddiff", HingeCap(delta=7.0), steps=30)
    history = workspace.result.history
    assert history[-1]["active"] == 1.0
    retain = [entry["terms"]["retain"] for entry in history]
    assert retain[-1] < max(retain)
    skipped, _ = run("graddiff", HingeCap(delta=1e-9, on_empty="skip_step"), steps=2)
    assert fingerprint(skipped.model) == fingerprint(tiny_subject().model)


def test_hinge_normalization_is_recorded():
    """Per token a long row is as near to the hinge as a short one; in the sum it is beyond at once."""
    logits = two_way([0.5] * 12)
    view = view_of(logits, [0] * 12, [2, 10])
    by_sum = HingeCap(delta=2.0, normalize="sum").attach(None).forget_rows(None, view)
    by_token = HingeCap(delta=2.0).attach(None).forget_rows(None, view)
    assert by_sum.tolist() == pytest.approx([2 * (2 - 2 * math.log(2)), 0])
    assert by_token.tolist() == pytest.approx([2 - math.log(2)] * 2)
    assert make_control("hinge_cap").normalize == "token"


@pytest.mark.parametrize("divide_by", ["active", "batch"])
def test_hinge_under_accumulation(divide_by):
    control = HingeCap(delta=5.0, divide_by=divide_by)
    if divide_by == "active":
        with pytest.raises(ConfigError, match="divide_by: batch"):
            run(control=control, accumulate=4)
        return
    whole, _ = run(control=control, steps=1)
    parts, _ = run(control=control, steps=1, accumulate=4)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert ((a - b).abs() > 1e-4).float().mean() < 0.01  # Adam's first step is ±lr: rounding flips a few


def test_hinge_binds_ascent_only():
    with pytest.raises(ConfigError, match="npo is none"):
        run("npo", HingeCap())
    with pytest.raises(ConfigError, match="delta"):
        HingeCap(delta=0.0).attach(None)


# cap --------------------------------------------------------------------------------------------------


def test_cap_worked_numbers():
    logits = two_way([0.9, 0.5, 0.01])
    hooks = Cap(p_min=0.1).attach(None)
    view = hooks.forget_view(view_of(logits, [0, 0, 0], [3]))
    loss = make_method("ga").loss(view).mean()
    assert loss.item() == pytest.approx(-1.033698, abs=1e-6)
    slope = torch.autograd.grad(loss, logits)[0]
    plain = view_of(logits, [0, 0, 0], [3]).token_logprobs
    full = torch.autograd.grad(plain.mean(), logits)[0]  # ∂F/∂NLL = −1/3 each
    torch.testing.assert_close(slope[:2], full[:2])
    assert (slope[2] == 0).all()
    assert hooks.active == pytest.approx(1 / 3)


def test_cap_golden_value():
    z = tensor([[2, 0, -1, 0.5], [0, 3, 1, -1], [1, 1, 0, 0], [-1, 0, 2, 1], [0.5, -0.5, 0, 1.5]])
    view = Cap(p_min=math.exp(-1)).attach(None).forget_view(view_of(z, [0, 1, 0, 2, 3], [2, 3]))
    assert make_method("ga").loss(view).mean().item() == pytest.approx(-0.462916, abs=1e-6)


def test_cap_zero_gradient_at_and_below_p_min():
    for p in (0.05, 0.25):
        logits = two_way([p, 0.8])
        exact = view_of(logits, [0, 0], [2]).token_logprobs[0].exp().item()
        view = Cap(p_min=max(exact, 0.25)).attach(None).forget_view(view_of(logits, [0, 0], [2]))
        slope = torch.autograd.grad(make_method("ga").loss(view).mean(), logits)[0]
        assert (slope[0] == 0).all()
        assert (slope[1] != 0).all()


def test_cap_infinite_delta_equals_gradient_ascent():
    ascent, _ = run(steps=3)
    capped, _ = run(control=Cap(p_min=1e-30), steps=3)
    assert fingerprint(ascent.model) == fingerprint(capped.model)


def test_cap_is_per_token_not_per_sequence():
    """One forgotten token does not shield its neighbor, and takes nothing from it."""
    logits = two_way([0.01, 0.9])
    view = Cap(p_min=0.1).attach(None).forget_view(view_of(logits, [0, 0], [2]))
    slope = torch.autograd.grad(make_method("ga").loss(view).mean(), logits)[0]
    alone = torch.autograd.grad(-make_method("ga").loss(view_of(logits, [0, 0], [2])).mean(), logits)[0]
    torch.testing.assert_close(slope[1], -alone[1])


def test_cap_ignores_retain_rows():
    """A cap that binds everywhere leaves the retain term alone."""
    _, workspace = run("graddiff", Cap(p_min=0.999), steps=3)
    _, space = run("graddiff", steps=1)
    first = workspace.result.history[0]
    assert first["active"] == 1.0
    assert first["terms"]["retain"] == space.result.history[0]["terms"]["retain"]
    assert first["terms"]["forget"] == pytest.approx(math.log(0.999))
    assert first["grad_norm"] > 0
    retain = [entry["terms"]["retain"] for entry in workspace.result.history]
    assert retain[-1] < retain[0]


def test_cap_stops_what_is_forgotten():
    free, _ = run(steps=30)
    capped, _ = run(control=Cap(p_min=math.exp(-7)), steps=30)
    request = tiny_request()
    assert max(nats(capped, request)) < 10 < min(nats(free, request))


@pytest.mark.parametrize("method", ["npo", "simnpo", "wga", "dpo"])
def test_cap_bounds_every_likelihood_loss(method):
    result, workspace = run(method, Cap(p_min=math.exp(-6)), steps=4)
    assert workspace.result.status == "finished"
    assert all(p.isfinite().all() for p in result.model.parameters())


@pytest.mark.parametrize("method", ["rmu", "idk"])
def test_cap_refuses_a_loss_it_cannot_bind(method):
    with pytest.raises(ConfigError, match="nothing to cap"):
        run(method, Cap())
    for p_min in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="p_min"):
            Cap(p_min=p_min).attach(None)


def test_unknown_control_and_setting_name_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean hinge_cap"):
        make_control("hinge")
    with pytest.raises(ConfigError, match="Did you mean p_min"):
        make_control("cap", pmin=0.1)
    assert make_control("cap", p_min="0.02") == Cap(p_min=0.02)
