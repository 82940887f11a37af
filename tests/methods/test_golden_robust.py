"""Representation and robust methods against hand-computed numbers and the facts their papers state."""

import math
from dataclasses import replace

import pytest
import torch
from torch import tensor

from expunge.methods import make_method
from expunge.methods.representation.rmu import mean_norm
from expunge.subjects import attach_lora, fingerprint
from expunge.subjects.architecture import blocks, linear_weights
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace
from expunge.training.budget import mean_nll
from expunge.training.channels import common_directions, factors, projected_gradients, real_tokens
from expunge.training.distill import _Imitation, noised
from expunge.training.latent import Perturbation, attacked_positions, strongest
from expunge.training.loop import Loop
from expunge.training.perturb import perturb
from expunge.training.transforms import inner, norm
from expunge.training.unlearn import UnlearnTask
from expunge.training.views import View
from golden_fixture import GOLD, H_REF, LENGTHS, ROW, Z_REF, H, Z, close, floats, frozen, states, view

SETTINGS = TrainSettings(batch=8, lr=1e-3, warmup=0.0, steps=4)


@pytest.fixture
def task_of():
    def make(method, subject=None, **settings):
        subject, request = subject or tiny_subject(), tiny_request()
        names = method.selects(subject)
        for name, p in subject.model.named_parameters():
            p.requires_grad_(names is None or name in names)
        plain = SETTINGS.model_copy(update=settings)
        return UnlearnTask(method, subject, request, method.settings_for(plain, request))

    return make


def loop_of(task):
    return Loop(task.subject, task, task.settings, state=task.state)


def grads(loop):
    return [p.grad.clone() for p in loop.parameters]


# rmu, adaptive_rmu ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("doubles")
def test_golden_misdirection_and_measured_length():
    direction = floats([1, 0, 0])
    rows = make_method("rmu", steering=2.0).loss(states(floats(H)), direction=direction)
    close(rows.mean().item(), 6.333333)
    length = 5.0 * mean_norm(floats(H))
    close(length.item(), 20.0)
    adaptive = make_method("adaptive_rmu").loss(states(floats(H)), direction=direction, steering=length)
    by_hand = ((floats(H) - 20.0 * direction) ** 2).mean(-1).mean()
    close(adaptive.mean().item(), by_hand.item())


def test_adaptive_length_is_that_of_the_original_and_stays(task_of):
    method, subject = make_method("adaptive_rmu", layer=0, scale=3.0), tiny_subject()
    norms = []
    for record in tiny_request().forget:
        row = subject.encoder.encode(record)
        out = subject.model(tensor([row.ids]), output_hidden_states=True).hidden_states
        norms.append(out[1][0, row.num_prompt - 1 : len(row.ids) - 1].norm(dim=-1))
    task = task_of(method, subject)
    torch.testing.assert_close(task.state["steering"], 3.0 * torch.cat(norms).mean(), rtol=1e-6, atol=1e-6)
    before = task.state["steering"].clone()
    loop_of(task).run()
    assert torch.equal(task.state["steering"], before)


# rr ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("doubles")
def test_golden_reroute():
    rows = make_method("rr").loss(states(floats(H), H_REF))
    close(rows.mean().item(), 0.872678)


@pytest.mark.usefixtures("doubles")
def test_reroute_starts_at_one_with_zero_gradient_and_ends_at_a_right_angle():
    here = floats(H_REF).requires_grad_()
    value = make_method("rr").loss(states(here, H_REF)).mean()
    close(value.item(), 1.0)
    assert torch.autograd.grad(value, here)[0].abs().max() < 1e-12
    away = (-floats(H_REF)).requires_grad_()
    value = make_method("rr").loss(states(away, H_REF)).mean()
    assert value.item() == 0
    assert torch.autograd.grad(value, away)[0].abs().max() == 0


def test_reroute_schedule_has_its_end_points():
    method = make_method("rr", forget_weight=10.0, retain_weight=10.0)
    assert method.weights(0.0) == (10.0, 0.0)
    assert method.weights(1.0) == (0.0, 10.0)
    assert replace(method, until=0.5).weights(1.0) == (5.0, 5.0)


def test_reroute_leaves_its_stationary_point_within_ten_steps(task_of):
    for lora in (False, True):
        method, subject = make_method("rr", retain="none"), tiny_subject()
        if lora:
            subject = attach_lora(subject, rank=4)
        task = task_of(method, subject, steps=10, lr=1e-2) if not lora else None
        if lora:
            task = UnlearnTask(method, subject, tiny_request(), SETTINGS.model_copy(update={"lr": 1e-2}))
        plain = loop_of(task)
        plain.gradients(0)
        assert max(float(p.grad.abs().max()) for p in plain.parameters) < 1e-6
        perturb(subject, method.start, seed=0)
        micro = task.micro_batches(0)[0]
        start = task.terms(micro)["forget"].rows.mean().item()
        assert start > 0.99
        task.num_steps = 10
        loop_of(task).run()
        assert task.terms(micro)["forget"].rows.mean().item() < start - 0.05


# undo -------------------------------------------------------------------------------------------------


def test_no_noise_is_the_teacher_and_all_noise_knows_nothing_of_it():
    one, other = tiny_subject(seed=1), tiny_subject(seed=2)
    assert fingerprint(noised(one, 0.0, 0.1, 7).model) == fingerprint(one.model)
    assert fingerprint(noised(one, 1.0, 0.1, 7).model) == fingerprint(noised(other, 1.0, 0.1, 7).model)
    scales = [p for n, p in noised(one, 1.0, 0.1, 7).model.named_parameters() if p.dim() == 1]
    assert scales
    assert all(bool((p == 1).all()) for p in scales), "norm scales go to their initial value, not to zero"


def test_noise_is_added_in_proportion_per_matrix():
    subject = tiny_subject()
    quarter, whole = noised(subject, 0.25, 0.1, 7), noised(subject, 1.0, 0.1, 7)
    for (name, p), n, w in zip(
        subject.model.named_parameters(), quarter.model.parameters(), whole.model.parameters(), strict=True
    ):
        torch.testing.assert_close(n, 0.75 * p + 0.25 * w, msg=name)
        if p.dim() > 1:
            assert w.abs().max() <= 0.1 * math.sqrt(6 / sum(p.shape)) + 1e-7, "Xavier's bound"


@pytest.mark.usefixtures("doubles")
def test_distillation_is_the_forward_divergence():
    teacher = frozen(floats(Z_REF), GOLD, ROW, LENGTHS, model="teacher")
    close(_Imitation().loss(view(floats(Z), teacher=teacher)).mean().item(), 0.137957)
    same = floats(Z).requires_grad_()
    value = _Imitation().loss(view(same, teacher=frozen(floats(Z), GOLD, ROW, LENGTHS))).mean()
    close(value.item(), 0.0)
    assert torch.autograd.grad(value, same)[0].abs().max() < 1e-12


def test_undo_leaves_no_gradient_on_its_teacher_and_ends_near_it():
    subject, request = tiny_subject(), tiny_request()
    workspace = Workspace(SETTINGS.model_copy(update={"steps": 2}))
    made = make_method("undo", alpha=0.2, lr=5e-3, epochs=60.0, tolerance=0.02)
    student = made.unlearn(subject, request, workspace)
    teacher = make_method("wga").unlearn(
        subject, request, Workspace(SETTINGS.model_copy(update={"steps": 2}))
    )
    assert mean_nll(student, request.retain) <= 1.02 * mean_nll(teacher, request.retain)
    assert workspace.result.status == "stopped"


# mudman -----------------------------------------------------------------------------------------------


def test_update_is_at_most_its_rate_long_and_that_long_where_nothing_is_masked(task_of):
    masked = loop_of(task_of(make_method("mudman", unlearning_rate=0.1, retain_lr=0.0)))
    make_method("mudman", unlearning_rate=0.1, retain_lr=0.0).step(masked, 0)
    assert 0 < float(norm(grads(masked))) < 0.1
    free = make_method("mudman", unlearning_rate=0.1, retain="none")
    loop = loop_of(task_of(free))
    free.step(loop, 0)
    assert float(norm(grads(loop))) == pytest.approx(0.1, rel=1e-6)


def test_without_adversary_it_is_masked_normalized_entropy_ascent(task_of):
    """The rule by hand at main: g of −H, the mask by the sign of the retain average, the norm before it."""
    method = make_method("mudman", adversary_lr=0.0, fork_every=1, retain_lr=0.01, unlearning_rate=0.2)
    task = task_of(method)
    loop = loop_of(task)
    before = [p.detach().clone() for p in loop.parameters]
    method.step(loop, 0)
    found = grads(loop)
    assert all(torch.equal(p, b) for p, b in zip(loop.parameters, before, strict=True))
    other = loop_of(task)
    retain, forget = other.side(0, "retain"), other.side(0, "forget")
    average, length = [0.1 * g for g in retain], math.sqrt(sum(float((g**2).sum()) for g in forget))
    for f, a, g in zip(found, average, forget, strict=True):
        expected = 0.01 * a + 0.2 * torch.where(g * a > 0, g, 0 * g) / length
        torch.testing.assert_close(f, expected, rtol=1e-4, atol=1e-7)


def test_adversary_forks_from_main_and_descends_on_forget(task_of):
    method = make_method("mudman", adversary_lr=0.5, fork_every=2)
    task = task_of(method)
    loop = loop_of(task)
    main = [p.detach().clone() for p in loop.parameters]
    toward = loop.side(0, "forget", rows=lambda v: v.mean_nll)
    method.step(loop, 0)
    for i, (m, g) in enumerate(zip(main, toward, strict=True)):
        torch.testing.assert_close(loop.state[f"adversary.{i}"], m - 0.5 * g)
    first = loop.state["adversary.0"].clone()
    method.step(loop, 1)
    assert not torch.equal(loop.state["adversary.0"], first), "it goes on from where it stood"
    assert not torch.allclose(loop.state["adversary.0"], main[0] - 0.5 * toward[0])


@pytest.mark.usefixtures("doubles")
def test_entropy_loss_is_negative_entropy():
    p = floats(Z).softmax(-1)
    rows = (p * p.log()).sum(-1)
    expected = [rows[:2].mean().item(), rows[2:].mean().item()]
    close(make_method("mudman").loss(view(floats(Z))).tolist(), expected)


# lat --------------------------------------------------------------------------------------------------


def test_no_radius_or_no_step_is_the_plain_loss_bit_for_bit(task_of):
    plain = None
    for more in ({"epsilon": 0.0}, {"steps": 0}):
        loop = loop_of(task_of(make_method("lat", **more)))
        loop.gradients(0)
        found = grads(loop)
        assert plain is None or all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
        plain = found
    attacked = loop_of(task_of(make_method("lat", steps=2)))
    attacked.gradients(0)
    assert not all(torch.equal(a, b) for a, b in zip(plain, grads(attacked), strict=True))


def test_perturbation_stays_in_its_ball_on_prompt_tokens_and_touches_no_weight(task_of):
    task = task_of(make_method("lat"))
    micro, block = task.micro_batches(0)[0], blocks(task.subject.model)[1]
    delta = strongest(task, micro, block, 5, 0.5, 0.3)
    gold = next(p for p in micro.parts if p.name == "forget.gold")
    mask = attacked_positions(gold.rows, delta.shape[1])
    assert float(delta.norm(dim=-1).max()) <= 0.3 * (1 + 1e-6)
    assert float((delta * (1 - mask)).abs().max()) == 0
    assert all(int(m.sum()) == row.num_prompt for m, row in zip(mask, gold.rows, strict=True))
    assert all(p.grad is None for p in task.subject.model.parameters())
    plain = task.views(micro)["forget"].mean_nll.mean()
    with Perturbation(block, micro, delta):
        helped = task.views(micro)["forget"].mean_nll.mean()
        retain = task.views(micro)["retain"].mean_nll
    assert helped < plain - 0.01, "the adversary makes the gold answer likelier"
    torch.testing.assert_close(retain, task.views(micro)["retain"].mean_nll)


@pytest.mark.usefixtures("doubles")
def test_away_is_unlikelihood():
    method = make_method("lat", toward=0.0)
    close(method.loss(view(floats(Z)))["away"].mean().item(), 1.146163)


def test_lat_wraps_another_loss(task_of):
    method = make_method("lat", objective="npo", steps=0)
    wrapped, bare = task_of(method), task_of(make_method("npo"))
    values = [t.terms(t.micro_batches(0)[0])["forget"].rows for t in (wrapped, bare)]
    assert torch.equal(*values)


# repselect, cir ---------------------------------------------------------------------------------------


def test_selected_directions_raise_the_forget_loss_where_they_were_taken(task_of):
    """The step is η·G̃ with G taken after relearning; ⟨G̃, G⟩ > 0, so the ascent is first-order."""
    method = make_method("repselect", q=3, eta=0.5, lora_lr=0.1, rank=4)
    task = task_of(method)
    loop = loop_of(task)
    before = [p.detach().clone() for p in loop.parameters]
    method.step(loop, 0)
    assert all(torch.equal(p, b) for p, b in zip(loop.parameters, before, strict=True))
    step = [p.grad for p in loop.parameters]
    relearned = dict(method._relearned(loop).model.named_parameters())
    names = [n for n, p in task.subject.model.named_parameters() if p.requires_grad]
    assert not all(torch.equal(relearned[n], b) for n, b in zip(names, before, strict=True))
    with torch.no_grad():
        for p, n in zip(loop.parameters, names, strict=True):
            p.copy_(relearned[n])
    gradient = loop.side(0, "forget", rows=lambda v: v.mean_nll)
    assert float(inner(step, gradient)) < 0, "the step goes down −NLL"
    for s, g in zip(step, gradient, strict=True):
        sizes, own = torch.linalg.svdvals(s / 0.5), torch.linalg.svdvals(g)
        expected = torch.cat([own[2] ** 2 / own[:3], own[3:]]).sort(descending=True).values
        torch.testing.assert_close(sizes, expected, rtol=1e-3, atol=1e-5 * float(own[0]))


def test_shared_directions_are_orthonormal_and_hold_the_mean():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 8, generator=generator) * torch.arange(1, 9) + 3.0
    basis = common_directions(values, 4)
    assert basis.shape == (4, 8)
    torch.testing.assert_close(basis @ basis.T, torch.eye(4), atol=1e-5, rtol=0)
    mean = values.mean(0)
    torch.testing.assert_close((mean @ basis.T) @ basis, mean, rtol=1e-4, atol=1e-4)
    principal = torch.linalg.svd(values - mean, full_matrices=False).Vh[0]
    torch.testing.assert_close((principal @ basis.T) @ basis, principal, rtol=1e-4, atol=1e-4)


def test_factors_without_projection_give_the_gradient_of_backpropagation(task_of):
    method = make_method("cir", layers=(0, 1))
    task = task_of(method)
    micro = task.micro_batches(0, "forget")[0]
    modules = linear_weights(task.subject.model, (0, 1), "mlp")
    every = micro.batch.attention_mask.bool()
    with factors(modules, every) as found:
        sum(t.rows.sum() for t in task.terms(micro).values()).backward()
    nothing_in = {name: torch.zeros(0, module.in_features) for name, module in modules.items()}
    nothing_out = {name: torch.zeros(0, module.out_features) for name, module in modules.items()}
    for name, gradient in projected_gradients(found, modules, nothing_in, nothing_out).items():
        own = modules[name].weight.grad
        torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-5 * float(own.abs().max()))


def test_projected_gradient_is_orthogonal_to_what_was_removed(task_of):
    method = make_method("cir", layers=(0, 1), acts=3, grads=2)
    task = task_of(method)
    loop = loop_of(task)
    loop.side(0, "retain")
    forget = loop.side(0, "forget")
    names = [n for n, p in task.subject.model.named_parameters() if p.requires_grad]
    moved = 0
    for name, g in zip(names, forget, strict=True):
        if not g.any():
            continue
        moved += 1
        scale = float(g.abs().max())
        assert float((g @ task.state[f"acts.{name}"].T).abs().max()) < 1e-4 * scale
        assert float((task.state[f"grads.{name}"] @ g).abs().max()) < 1e-4 * scale
    assert moved > 0
    assert float(real_tokens(torch.ones(2, 3))[:, 0].sum()) == 0


def _written(values, ref):
    row = torch.zeros(len(values), dtype=torch.long)
    count = tensor([len(values)])
    return View(
        row,
        row,
        count,
        None,
        {0: values},
        frozen(None, None, row, count, ref),
        None,
        {},
        frozenset({"hidden"}),
    )


@pytest.mark.usefixtures("doubles")
def test_breaking_starts_at_one_or_above_and_ends_when_nothing_is_left():
    ref = floats([[1, 2, 2], [0, 3, 4], [1, 0, 0]])
    method = make_method("cir")
    start = method.loss(_written(ref, ref)).item()
    close(start, ((9 + 25 + 1) / 3) / ((3 + 5 + 1) / 3) ** 2)
    assert start >= 1
    broken = (-ref).requires_grad_()
    value = method.loss(_written(broken, ref)).sum()
    assert value.item() == 0
    assert torch.autograd.grad(value, broken)[0].abs().max() == 0
