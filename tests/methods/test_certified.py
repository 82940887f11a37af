"""Certified removal: the convex problem against autograd, the bound, the budget, the refusals."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, ExpungeError, Unsupported
from expunge.methods import make_method
from expunge.subjects import save_subject
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace
from expunge.training.convex_head import (
    CURVATURE_LIPSCHITZ,
    ConvexHead,
    Rows,
    editable_head,
    head_rows,
    head_weight,
    stacked,
)
from expunge.training.gradients import answer_rows
from tiny_models import make_subject, some_records


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_rows(count, seed=0, width=4, classes=3):
    """Points a linear map half explains; unequal weights."""
    inputs = draw(count, width, seed=seed)
    targets = (inputs @ draw(width, classes, seed=99) + draw(count, classes, seed=seed + 50)).argmax(-1)
    return Rows(inputs, targets, torch.linspace(0.5, 1.0, count, dtype=torch.float64), count)


def problem_of(rows, l2=0.01, noise=0.1):
    return ConvexHead(rows, l2, draw(3, 4, seed=7), noise * draw(3, 4, seed=8))


def written(problem, weight):
    """The objective as the docstring has it."""
    rows = problem.rows
    losses = cross_entropy(rows.inputs @ weight.T, rows.targets, reduction="none")
    ridge = 0.5 * problem.l2 * rows.num_rows * (weight - problem.prior).square().sum()
    return (rows.weights * losses).sum() + ridge + (problem.noise * weight).sum()


# The convex problem -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_value_gradient_and_product_are_those_of_the_objective(chunk, monkeypatch):
    monkeypatch.setattr("expunge.training.convex_head._ELEMENTS", chunk)
    problem, weight, vector = (
        problem_of(some_rows(9)),
        draw(3, 4, seed=3).requires_grad_(),
        draw(3, 4, seed=4),
    )
    value = written(problem, weight)
    (slope,) = torch.autograd.grad(value, weight, create_graph=True)
    (curved,) = torch.autograd.grad((slope * vector).sum(), weight)
    plain = weight.detach()
    assert problem.value(plain) == pytest.approx(float(value.detach()))
    torch.testing.assert_close(problem.gradient(plain), slope.detach())
    torch.testing.assert_close(problem.product(plain, vector), curved)


def test_fit_reaches_the_minimum_from_anywhere():
    problem = problem_of(some_rows(30))
    fits = [problem.fit(start, 1e-10) for start in (torch.zeros(3, 4).double(), 20 * draw(3, 4))]
    torch.testing.assert_close(*fits)
    assert float(problem.gradient(fits[0]).norm()) <= 1e-10
    with pytest.raises(ExpungeError, match="did not reach"):
        problem.fit(20 * draw(3, 4), 1e-10, limit=1)


def test_hessian_of_softmax_is_lipschitz_by_the_constant():
    """½‖D³lse[Δ, Δ, ·]‖ ≤ γ/2 ‖Δ‖², on many logits; the constant is loose by a few times at most."""
    largest = 0.0
    for seed in range(300):
        z, step = draw(3, seed=seed) * 2, draw(3, seed=1000 + seed) * 1e-3
        p = z.softmax(-1)
        left = (z + step).softmax(-1) - p - (p * step - p * (p @ step))
        largest = max(largest, float(2 * left.norm() / step.square().sum()))
    assert CURVATURE_LIPSCHITZ / 5 < largest < CURVATURE_LIPSCHITZ


@pytest.mark.parametrize("removed", [1, 5, 20])
def test_residual_is_below_the_bound_which_is_below_the_papers(removed):
    rows = some_rows(100)
    gone, rest = (Rows(*(t[part] for t in rows[:3]), n) for part, n in parts(removed))
    start = problem_of(stacked(gone, rest)).fit(torch.zeros(3, 4).double(), 1e-10)
    kept = problem_of(rest)
    found, bound = kept.newton(start, 1e-12)
    residual = float(kept.gradient(found).norm())
    assert 0 < residual <= bound
    assert residual < float(kept.gradient(start).norm())
    # Corollary 1 with the weights drawn into the inputs, for any ‖x‖
    x, step = rest.inputs * rest.weights.sqrt()[:, None], found - start
    spectral, widest = float(torch.linalg.matrix_norm(x, 2)), float(rest.inputs.norm(dim=1).max())
    paper = CURVATURE_LIPSCHITZ * widest * spectral * float(step.norm()) * float((x @ step.T).norm())
    assert bound <= paper / 2


def parts(removed):
    return (slice(None, removed), removed), (slice(removed, None), 100 - removed)


def test_bound_counts_what_the_linear_solve_leaves():
    rows = some_rows(60)
    kept, start = problem_of(rows), 0.1 * draw(3, 4)
    found, bound = kept.newton(start, 0.5)
    step = found - start
    squares = (rows.inputs @ step.T).square().sum(1) * rows.inputs.norm(dim=1)
    taylor = CURVATURE_LIPSCHITZ / 2 * float((rows.weights * squares).sum())
    left = kept.product(start, step) + kept.gradient(start)
    assert bound == pytest.approx(taylor + float(left.norm()))
    assert 0.01 * bound < float(left.norm())
    assert float(kept.gradient(found).norm()) <= bound


@pytest.mark.parametrize("removed", [1, 5])
def test_removal_is_retraining_within_the_bound(removed):
    """Strong convexity: ‖W⁻ − argmin‖ ≤ residual/(l2·N) ≤ bound/(l2·N); the error is under 5 %."""
    rows = some_rows(300)
    gone = Rows(*(t[:removed] for t in rows[:3]), removed)
    rest = Rows(*(t[removed:] for t in rows[:3]), 300 - removed)
    start = problem_of(rows).fit(torch.zeros(3, 4).double(), 1e-11)
    kept = problem_of(rest)
    found, bound = kept.newton(start, 1e-12)
    retrained = kept.fit(torch.zeros(3, 4).double(), 1e-11)
    error, effect = float((found - retrained).norm()), float((retrained - start).norm())
    assert error <= bound / (0.01 * rest.num_rows)
    assert error < 0.05 * effect
    both = stacked(gone, rest)
    assert both.num_rows == 300
    assert torch.equal(both.inputs, rows.inputs)


def test_features_are_what_the_head_reads_and_weights_its_row_means():
    """Σ w·CE(W x) at the original's head is the sum of the rows' mean NLL; a bias is one more column."""
    for family in ("llama", "phi"):
        subject = make_subject(family)
        encoded = answer_rows(subject, some_records(5))
        rows, head = head_rows(subject, encoded, batch=2), editable_head(subject)
        weight = head.weight.double()
        if head.bias is not None:
            weight = torch.cat([weight, head.bias[:, None].double()], dim=1)
        losses = cross_entropy(rows.inputs @ weight.T, rows.targets, reduction="none")
        wanted = 0.0
        for row in encoded:
            logp = subject.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            answer = range(row.num_prompt, len(row.ids))
            wanted -= sum(float(logp[t - 1, row.ids[t]].detach()) for t in answer) / len(answer)
        assert float((rows.weights * losses).sum().detach()) == pytest.approx(wanted, rel=1e-4)
        assert rows.num_rows == 5


# The method -------------------------------------------------------------------------------------------


def run(subject, request, seed=0, **hyper):
    hyper = {"l2": 0.1, **hyper}
    space = Workspace(TrainSettings(steps=1, seed=seed))
    return make_method("certified", **hyper).unlearn(subject, request, space), space.facts["certificate"]


@pytest.fixture(scope="module")
def world():
    return tiny_subject(seed=1), tiny_request(1, 6)


def retained(subject, request, noise, seed, what="trained", l2=0.1):
    """The problem the certificate speaks of, put together anew."""
    from expunge.stats import seed_from

    rows = head_rows(subject, answer_rows(subject, request.retain))
    shape = editable_head(subject).weight.shape
    generator = torch.Generator().manual_seed(seed_from(seed, "objective perturbation", what))
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return ConvexHead(rows, l2, torch.zeros(shape).double(), noise * l2 * rows.num_rows * drawn)


def test_noise_budget_and_certificate(world):
    """σ = noise·l2·N, budget σε/c with c = √(2 ln(1.5/δ)); what the certificate says can be measured."""
    _, said = run(*world, noise=2.0, epsilon=0.5, delta=1e-3)
    assert said["sigma"] == pytest.approx(2.0 * 0.1 * 6)
    assert said["budget"] == pytest.approx(said["sigma"] * 0.5 / math.sqrt(2 * math.log(1500)))
    assert (said["epsilon"], said["delta"]) == (0.5, 1e-3)
    assert "body" in said["scope"]
    assert "not covered" in said["scope"]
    drawn = retained(world[0], world[1], 2.0, 0, "trained anew" if said["retrained"] else "trained").noise
    assert float(drawn.std()) == pytest.approx(said["sigma"], rel=0.05)


def test_above_the_budget_it_retrains_with_new_noise_and_says_so(world, capsys):
    subject, request = world
    result, said = run(subject, request, noise=0.01)
    assert said["bound"] > said["budget"]
    assert said["retrained"]
    assert "trained anew" in capsys.readouterr().err
    anew = retained(subject, request, 0.01, 0, "trained anew")
    wanted = anew.fit(anew.prior, 1e-8)
    head = editable_head(result).weight.detach().double()
    torch.testing.assert_close(head, wanted, rtol=1e-3, atol=1e-4)
    assert said["residual"] <= 1e-3 * said["budget"]


def test_within_the_budget_the_newton_step_stands(world):
    """More steps, less residual: the head is then that of retraining with the same noise, and no new draw."""
    subject, request = world
    result, said = run(subject, request, noise=0.5, steps=8)
    assert not said["retrained"]
    assert said["residual"] <= said["bound"] + 1e-9
    assert said["bound"] <= said["budget"]
    kept = retained(subject, request, 0.5, 0)
    head = editable_head(result).weight.detach().double()
    assert float(kept.gradient(head).norm()) <= said["budget"]
    distance = float((head - kept.fit(kept.prior, 1e-9)).norm())
    assert distance <= said["budget"] / kept.strength * 1.01
    assert said["bound"] < run(subject, request, noise=0.5)[1]["bound"]


def test_a_head_that_is_certified_already_is_not_trained_first(world):
    """`trained`: removal starts at the subject's own head, whatever it is; the bound says what that costs."""
    subject, request = world
    first, _ = run(subject, request, noise=0.5, steps=8)
    splits = {"forget": request.retain[:1], "retain": request.retain[1:]}
    far, near = (run(some, Request(splits), noise=0.5, trained=True)[1]["bound"] for some in (subject, first))
    assert near < far


def test_only_the_head_moves_and_the_seed_decides_the_noise(world):
    subject, request = world
    one, again, other = (run(subject, request, seed=seed)[0] for seed in (0, 0, 1))
    old = dict(subject.model.named_parameters())
    moved = [n for n, p in one.model.named_parameters() if not torch.equal(p, old[n])]
    assert moved == ["lm_head.weight"]
    assert torch.equal(editable_head(one).weight, editable_head(again).weight)
    assert not torch.equal(editable_head(one).weight, editable_head(other).weight)


def test_prior_is_the_head_of_a_model_from_before_exposure(world, tmp_path):
    """With hardly any data to outweigh it, a strong l2 brings the head to W₀."""
    subject, request = world
    base = tiny_subject(seed=9)
    folder = str(save_subject(base, tmp_path / "base"))
    result, _ = run(subject, request, base=folder, l2=100.0, noise=1e-4)
    near = [float(torch.dist(*(head_weight(editable_head(m)) for m in (result, s)))) for s in (base, subject)]
    assert near[0] < 0.1 * near[1]
    with pytest.raises(ConfigError, match="another shape"):
        run(make_subject(), Request({"forget": some_records(1), "retain": some_records(3)}), base=folder)


def test_a_bias_is_removed_from_as_well():
    subject, records = make_subject("phi"), some_records(6)
    result, _ = run(subject, Request({"forget": tuple(records[:1]), "retain": tuple(records[1:])}))
    heads = editable_head(subject), editable_head(result)
    assert not torch.equal(heads[0].bias, heads[1].bias)
    assert np.isfinite(heads[1].bias.detach().numpy()).all()


@pytest.mark.parametrize(("family", "word"), [("qwen2", "tied"), ("gemma2", "soft-capped")])
def test_heads_without_a_convex_problem_are_refused(family, word):
    records = some_records(4)
    request = Request({"forget": tuple(records[:1]), "retain": tuple(records[1:])})
    with pytest.raises(Unsupported, match=word):
        run(make_subject(family), request)


def test_needs_the_retained_data(world):
    subject, request = world
    with pytest.raises(DataError, match="retain"):
        run(subject, Request({"forget": request.forget}))
