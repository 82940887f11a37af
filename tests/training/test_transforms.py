"""Gradient transforms: golden numbers, the facts of each, and the loop around them."""

import os
import signal
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

import tiny_world
from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.data.request import Request
from expunge.errors import ConfigError
from expunge.methods import make_method
from expunge.stats import seed_from
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace
from expunge.training.gradients import answer_rows, row_losses
from expunge.training.hooks import TrainingControl
from expunge.training.loop import Loop
from expunge.training.transforms import TRANSFORMS, GradientScene, Transform, inner, make_transform, norm
from expunge.training.transforms.collapse import collapsed
from expunge.training.unlearn import UnlearnTask

FORGET, RETAIN = [1.0, -2.0, 0.5], [-1.0, 1.0, 1.0]


def tensors(*values):
    return [torch.tensor(v) for v in values]


def scene(parameters=(), step=0, seed=0):
    return GradientScene(list(parameters), step, seed, {})


def rectified(name, forget, retain, where=None, **settings):
    return make_transform(name, **settings).rectify(forget, retain, where or scene())


def random_pair(seed, shapes=((4, 3), (5,))):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: [torch.randn(s, generator=generator) for s in shapes]  # noqa: E731
    return draw(), draw()


def quadratic(*diagonals):
    """½ Σ θᵀ diag(d) θ at θ = 1: (parameters, what takes the gradient as they stand)."""
    parameters = [torch.ones(len(d)) for d in diagonals]
    return parameters, lambda: [torch.tensor(d) * p for d, p in zip(diagonals, parameters, strict=True)]


# Golden numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("gru", {}, [0.166667, -1.166667, 1.333333]),
        ("gru", {"clip": -0.5}, [0.338562, -1.338562, 1.161438]),
        ("disruption", {}, [0.0, 0.0, 0.5]),
        ("unit_norm", {}, [0.436436, -0.872872, 0.218218]),
    ],
    ids=["gru", "gru_clipped", "disruption", "unit_norm"],
)
@pytest.mark.parametrize("split", [1, 3], ids=["split", "whole"])
def test_golden_numbers(name, settings, expected, split):
    """However the three weights are spread over tensors: norms and products are global."""
    cut = lambda v: tensors(v[:split], v[split:])  # noqa: E731
    found = rectified(name, cut(FORGET), cut(RETAIN), **settings)
    torch.testing.assert_close(torch.cat(found), torch.tensor(expected), rtol=0, atol=6e-7)


def test_golden_sam_on_a_quadratic():
    for diagonals in ([[1.0, 4.0]], [[1.0], [4.0]]):
        parameters, gradient = quadratic(*diagonals)
        found = make_transform("sam", rho=0.1).around(gradient, scene(parameters))
        expected = torch.tensor([1.024254, 4.388057])
        torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=6e-7)


def test_defaults_are_the_published_ones():
    values = {
        "gru": {"newest": 0.8, "clip": -1.0, "scope": "global"},
        "sam": {"rho": 0.01},
        "smoothing": {"draws": 3, "sigma": 1e-4},
        "disruption": {"decay": 0.9, "length": None},
        "collapse": {"q": 512, "hard": False},
        "unit_norm": {"length": 1.0},
    }
    assert set(TRANSFORMS.names()) >= set(values)
    for name, expected in values.items():
        assert vars(make_transform(name)) == expected
        assert TRANSFORMS.card(name).summary
    with pytest.raises(ConfigError, match="rho"):
        make_transform("sam", rh=0.1)
    with pytest.raises(ConfigError, match="rho"):
        make_transform("sam", rho=-0.1)


# gru ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_gru_leaves_no_conflict_and_never_lengthens(seed):
    forget, retain = random_pair(seed)
    before = [r.clone() for r in retain]
    found = rectified("gru", forget, retain)
    if inner(forget, retain) < 0:
        assert abs(inner(found, retain)) < 1e-6 * norm(forget) * norm(retain)
        assert norm(found) <= norm(forget)
    else:
        assert all(f is g for f, g in zip(found, forget, strict=True))
    assert all(torch.equal(r, b) for r, b in zip(retain, before, strict=True)), "g_r was changed"
    flipped = rectified("gru", [-f for f in forget], retain)  # one of the two conflicts
    assert inner(flipped, retain) > -1e-6 * norm(forget) * norm(retain)


def test_gru_with_clip_keeps_the_conflict_beyond_it():
    forget, retain = tensors(FORGET), tensors(RETAIN)
    lengths = norm(forget) * norm(retain)
    cosine = inner(forget, retain) / lengths
    left = inner(rectified("gru", forget, retain, clip=-0.5), retain)
    torch.testing.assert_close(left, (cosine + 0.5) * lengths)
    assert left < 0
    milder = inner(rectified("gru", forget, retain, clip=-0.7), retain)  # cosine −0.63 is within
    assert abs(milder) < 1e-6


def test_gru_by_tensor_projects_each_tensor_alone():
    forget, retain = tensors([1.0, 0.0], [3.0, 1.0]), tensors([-1.0, 1.0], [1.0, 0.0])
    assert all(f is g for f, g in zip(rectified("gru", forget, retain), forget, strict=True))
    first, second = rectified("gru", forget, retain, scope="tensor")
    assert first.tolist() == [0.5, 0.5]
    assert second is forget[1]


def test_gru_weighs_the_newest_gradient_most():
    where, transform = scene(), make_transform("gru")
    for retain in ([1.0, 0.0], [0.0, 1.0], [0.0, 1.0]):
        found = transform.rectify(tensors([-1.0, -1.0]), tensors(retain), where)
    average = torch.tensor([0.04, 0.96])  # (1, 0) → (0.2, 0.8) → (0.04, 0.96)
    torch.testing.assert_close(where.state["average.0"], average)
    expected = torch.tensor([-1.0, -1.0]) + average / (average @ average)
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("name", ["gru", "collapse"])
def test_without_a_retain_gradient_nothing_is_projected(name):
    forget = tensors(FORGET)
    assert rectified(name, forget, [torch.zeros(3)])[0] is forget[0]


# sam, smoothing ----------------------------------------------------------------------------------------

ODD = [[0.1, 1e-8, 1e8], [3.0]]


@pytest.mark.parametrize("name", ["sam", "smoothing"])
def test_weights_come_back_bit_for_bit_even_from_a_failed_step(name):
    parameters, gradient = quadratic(*ODD)
    before = [p.clone() for p in parameters]
    make_transform(name).around(gradient, scene(parameters))
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    moved = []

    def failing():
        if any(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)):
            moved.append(True)
            raise RuntimeError("out of memory")
        return gradient()

    with pytest.raises(RuntimeError, match="out of memory"):
        make_transform(name).around(failing, scene(parameters))
    assert moved
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


@pytest.mark.parametrize(("name", "off"), [("sam", {"rho": 0}), ("smoothing", {"sigma": 0})])
def test_radius_zero_is_the_plain_gradient(name, off):
    parameters, gradient = quadratic(*ODD)
    found = make_transform(name, **off).around(gradient, scene(parameters))
    assert all(torch.equal(f, g) for f, g in zip(found, gradient(), strict=True))


def test_sam_at_a_zero_gradient_stays_where_it_is():
    parameters, gradient = quadratic([0.0, 0.0])
    assert make_transform("sam").around(gradient, scene(parameters))[0].tolist() == [0.0, 0.0]


def test_smoothing_is_the_mean_gradient_at_k_seeded_points():
    curvature = torch.tensor([1.0, -2.0, 3.0])
    theta = torch.ones(3)
    points = []

    def gradient():
        points.append(theta.clone())
        return [curvature * theta]

    transform = make_transform("smoothing", draws=4, sigma=0.5)
    found = transform.around(gradient, scene([theta], step=7, seed=3))
    expected = []
    for draw in range(4):
        generator = torch.Generator().manual_seed(seed_from(3, "smoothing", 7, draw, 0) % 2**63)
        expected.append(torch.ones(3) + 0.5 * torch.randn(3, generator=generator))
    torch.testing.assert_close(points, expected)
    torch.testing.assert_close(found[0], curvature * torch.stack(expected).mean(0))
    again = transform.around(gradient, scene([theta], step=7, seed=3))
    assert torch.equal(found[0], again[0])
    for other in (scene([theta], step=8, seed=3), scene([theta], step=7, seed=4)):
        assert not torch.equal(transform.around(gradient, other)[0], found[0])


# disruption, unit norm ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_disruption_agrees_with_retain_and_is_idempotent(seed):
    forget, retain = random_pair(seed)
    found = rectified("disruption", forget, retain)
    assert inner(found, retain) >= 0
    for f, g, r in zip(found, forget, retain, strict=True):
        agree = f != 0
        assert torch.equal(f[agree], g[agree]), "kept entries are kept as they are"
        assert (f * r >= 0).all()
        assert ((g * r)[~agree] <= 0).all()
    again = rectified("disruption", found, retain)
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


def test_disruption_drops_what_retain_says_nothing_about():
    found = rectified("disruption", tensors([1.0, 1e-30, -1.0]), tensors([0.0, 1e-30, 1.0]))
    assert found[0].tolist() == [0.0, pytest.approx(1e-30), 0.0]  # tiny products would underflow


def test_disruption_average_starts_at_zero_and_forgets_by_tenths():
    where, transform = scene(), make_transform("disruption")
    for retain in ([10.0, 10.0], [-8.0, -10.0]):
        found = transform.rectify(tensors([1.0, 1.0]), tensors(retain), where)
    # (1, 1) → 0.9·(1, 1) + 0.1·(−8, −10) = (0.1, −0.1)
    torch.testing.assert_close(where.state["average.0"], torch.tensor([0.1, -0.1]))
    assert found[0].tolist() == [1.0, 0.0]


def test_fixed_lengths_are_global_norms_and_zero_stays_zero():
    forget, retain = tensors([3.0, 1.0], [4.0]), tensors([1.0, -1.0], [1.0])
    masked = rectified("disruption", forget, retain, length=10.0)
    torch.testing.assert_close(torch.cat(masked), torch.tensor([6.0, 0.0, 8.0]))
    found = rectified("unit_norm", forget, retain, length=2.0)
    torch.testing.assert_close(norm(found), torch.tensor(2.0))
    torch.testing.assert_close(found[0] / found[1], forget[0] / forget[1])
    for name, settings in (("unit_norm", {}), ("disruption", {"length": 1.0})):
        assert rectified(name, tensors([0.0, 0.0]), tensors([1.0, 1.0]), **settings)[0].tolist() == [0, 0]


# collapse ------------------------------------------------------------------------------------------------


def matrix(sizes, rows=6, columns=5, seed=0):
    """A matrix with these singular values, and its directions."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator))[0][:, : len(sizes)]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0][: len(sizes)]
    return (left * torch.tensor(sizes)) @ right, left, right


SIZES = [8.0, 4.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("q", "hard", "expected"),
    [
        (3, False, [0.5, 1.0, 2.0, 1.0, 0.5]),
        (5, False, [0.25 / 8, 0.25 / 4, 0.25 / 2, 0.25, 0.5]),
        (2, True, [0.0, 0.0, 2.0, 1.0, 0.5]),
        (1, False, SIZES),
        (0, True, SIZES),
        (512, True, [0.0] * 5),
    ],
    ids=["soft_3", "soft_full", "hard_2", "soft_1", "none", "hard_full"],
)
def test_collapse_changes_the_top_singular_values_and_no_direction(q, hard, expected):
    gradient, left, right = matrix(SIZES)
    found = rectified("collapse", [gradient], [torch.zeros_like(gradient)], q=q, hard=hard)[0]
    torch.testing.assert_close(
        left.T @ found @ right.T, torch.diag(torch.tensor(expected)), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(found, (left * torch.tensor(expected)) @ right, rtol=0, atol=2e-6)
    if not hard:
        assert (found * gradient).sum() > 0


def test_collapse_caps_q_at_the_rank():
    gradient, left, right = matrix([4.0, 2.0])
    found = collapsed(gradient, 5)
    torch.testing.assert_close(found, (left * torch.tensor([1.0, 2.0])) @ right, rtol=0, atol=2e-6)
    assert torch.equal(collapsed(torch.zeros(3, 2), 5), torch.zeros(3, 2))


def test_collapse_of_equal_singular_values_is_the_identity():
    gradient, _, _ = matrix([2.0] * 5)
    torch.testing.assert_close(collapsed(gradient, 4), gradient, rtol=0, atol=2e-6)


def test_collapse_takes_experts_one_by_one_and_leaves_vectors():
    one, other = matrix(SIZES, seed=1)[0], matrix([3.0, 1.0], seed=2)[0]
    both = collapsed(torch.stack([one, other]), 3)
    assert torch.equal(both[0], collapsed(one, 3))
    assert torch.equal(both[1], collapsed(other, 3))
    vector = torch.randn(4)
    assert collapsed(vector, 3) is vector
    assert torch.equal(collapsed(one, 3), collapsed(one, 3))


# In the loop -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Nothing(Transform):
    """Takes both gradients apart and changes neither."""


def settings(**more):
    return TrainSettings(**{"steps": 4, "batch": 4, "lr": 1e-3, "checkpoint_seconds": 0.0, **more})


def unlearn(transforms=(), folder=None, controls=(), method="graddiff", subject=None, **more):
    workspace = Workspace(settings(**more), folder, controls=controls, transforms=transforms)
    return make_method(method).unlearn(subject or tiny_subject(), tiny_request(), workspace), workspace


def bits(*args, **more):
    return fingerprint(unlearn(*args, **more)[0].model)


@pytest.mark.parametrize("off", [("sam", {"rho": 0}), ("smoothing", {"sigma": 0}), ("collapse", {"q": 0})])
def test_an_axis_turned_off_gives_the_bits_of_separate_forwards(off):
    name, none = off
    assert bits([make_transform(name, **none)]) == bits([Nothing()])


def test_separate_forwards_are_the_fused_one_up_to_rounding():
    fused, one = unlearn()
    apart, other = unlearn([Nothing()])
    for a, b in zip(fused.model.parameters(), apart.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
    for a, b in zip(one.result.history, other.result.history, strict=True):
        assert a["terms"] == pytest.approx(b["terms"], rel=1e-5)


def test_transforms_compose_in_the_order_they_are_listed():
    said = []

    def noisy(letter, factor):
        class Noisy(Transform):
            def around(self, gradient, scene):
                said.append(f"{letter} in")
                found = gradient()
                said.append(f"{letter} out")
                return found

            def rectify(self, forget, retain, scene):
                said.append(f"{letter} rectifies")
                return [factor * f for f in forget]

        return Noisy()

    unlearn([noisy("a", 1), noisy("b", 1)], steps=1)
    assert said == ["a in", "b in", "b out", "a out", "a rectifies", "b rectifies"]
    gradient, retain = tensors(FORGET), tensors(RETAIN)
    once = rectified("unit_norm", rectified("disruption", gradient, retain), retain)
    other = rectified("disruption", rectified("unit_norm", gradient, retain), retain)
    assert once[0].tolist() == [0, 0, 1]
    assert other[0][2] == pytest.approx(0.5 / norm(gradient))
    pair = [make_transform("disruption"), make_transform("unit_norm")]
    assert bits(pair) != bits(pair[::-1])


def loop_of(subject, transforms=(), accumulate=1, method="graddiff"):
    chosen = settings(batch=8, accumulate=accumulate, steps=1)
    task = UnlearnTask(make_method(method), subject, tiny_request(), chosen)
    return Loop(subject, task, chosen, transforms=transforms)


def gradients_of(loop):
    loop.gradients(0)
    return [p.grad.clone() for p in loop.parameters]


def test_sam_in_the_loop_moves_the_forget_gradient_and_not_the_retain_gradient():
    """Against plain autograd at θ + ε for forget and at θ for retain."""
    subject, request = tiny_subject(), tiny_request()
    found = gradients_of(loop_of(subject, [make_transform("sam", rho=0.5)]))
    parameters = list(subject.model.parameters())
    indices = loop_of(subject).task.micro_batches(0)[0].parts[1].indices
    kept = [request.retain[i] for i in indices]

    def gradient(records):
        loss = row_losses(subject, answer_rows(subject, records)).mean()
        return torch.autograd.grad(loss, parameters)

    retain, here = gradient(kept), gradient(request.forget)
    size = sum(g.square().sum() for g in here).sqrt()
    with torch.no_grad():
        for p, g in zip(parameters, here, strict=True):
            p.sub_(0.5 * g / size)  # ascent: the forget loss is −ce
    there = gradient(request.forget)
    plain = [r - f for r, f in zip(retain, here, strict=True)]
    for got, r, f, p in zip(found, retain, there, plain, strict=True):
        torch.testing.assert_close(got, r - f, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(got, p, rtol=1e-3, atol=1e-5) or not p.any()


EVERY = {
    "gru": {},
    "sam": {"rho": 0.05},
    "smoothing": {},
    "disruption": {},
    "collapse": {"q": 4},
    "unit_norm": {},
}


@pytest.mark.parametrize("name", EVERY)
def test_four_micro_batches_are_one_batch_of_four(name, doubles):
    found = []
    for accumulate in (1, 4):
        subject = tiny_subject()
        subject.model.double()
        found.append(gradients_of(loop_of(subject, [make_transform(name, **EVERY[name])], accumulate)))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-10)


class StopAt(TrainingControl):
    def __init__(self, step):
        self.step = step

    def after_step(self, step, subject):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)
        return False


def test_resumed_averages_are_those_of_a_straight_run(tmp_path):
    chain = [make_transform(name, **EVERY[name]) for name in ("sam", "gru", "smoothing", "disruption")]
    run = partial(unlearn, chain, steps=6)
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path, controls=[StopAt(3)])
    resumed, _ = run(folder=tmp_path, controls=[StopAt(-1)])
    straight, _ = run(controls=[StopAt(-1)])
    assert fingerprint(resumed.model) == fingerprint(straight.model)


def test_a_resume_without_the_averages_would_differ(tmp_path):
    """The test above can fail: from step 3 on, the average matters."""
    with pytest.raises(KeyboardInterrupt):
        unlearn([make_transform("disruption")], tmp_path, [StopAt(3)], steps=6)
    state = tmp_path / "checkpoint" / "extra.safetensors"
    from safetensors.torch import load_file, save_file

    averages = load_file(state)
    assert any(name.startswith("transform0.average") for name in averages)
    save_file({n: t for n, t in averages.items() if not n.startswith("transform")}, state)
    lost, _ = unlearn([make_transform("disruption")], tmp_path, [StopAt(-1)], steps=6)
    assert fingerprint(lost.model) != bits([make_transform("disruption")], controls=[StopAt(-1)], steps=6)


def test_a_control_may_bring_a_transform():
    class Projects(TrainingControl):
        transform = make_transform("gru", newest=1.0)

    assert bits(controls=[Projects()]) == bits([make_transform("gru", newest=1.0)])


@pytest.fixture(scope="module")
def world():
    folder = tiny_world.built()
    splits = {
        s: tuple(read_records(str(folder / f"{s}.jsonl"), split=s, findings=Findings()))
        for s in ("forget", "retain")
    }
    return tiny_world.trained([*splits["forget"], *splits["retain"]]), Request(splits)


def test_gru_and_disruption_spare_retain_at_equal_forgetting(world):
    """Ascent that sees retain only through the transform: retain rises less while forget goes as far."""
    original, request = world

    def loss(subject, records):
        with torch.no_grad():
            return float(row_losses(subject, answer_rows(subject, records)).mean())

    def reach(transforms):
        """Retain loss when the forget loss first passes 3."""
        method = replace(make_method("graddiff"), retain_weight=1e-6)
        seen = []

        class Watch(TrainingControl):
            def after_step(self, step, subject):
                seen.append((loss(subject, request.forget), loss(subject, request.retain)))
                return seen[-1][0] > 3

        chosen = TrainSettings(
            steps=60, batch=6, lr=0.05, optimizer="sgd", weight_decay=0.0, schedule="constant", warmup=0.0
        )
        method.unlearn(original, request, Workspace(chosen, controls=[Watch()], transforms=transforms))
        assert seen[-1][0] > 3, "did not forget"
        return seen[-1][1]

    plain = reach([])
    for name in ("gru", "disruption"):
        assert reach([make_transform(name)]) < plain
