"""Solvers against the dense matrix, and the dense matrix against second derivatives by torch itself."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from expunge.errors import ConfigError, NotComputable
from expunge.training import curvature
from expunge.training.curvature import (
    CATEGORICAL,
    EKFAC,
    GAUSSIAN,
    KFAC,
    ConjugateGradient,
    CurvatureProblem,
    Dense,
    Diagonal,
    LiSSA,
    Output,
    language_problem,
    make_solver,
)
from expunge.training.gradients import differentiable, fisher_diagonal, sum_gradient
from tiny_models import make_subject, some_records


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(size):
    return torch.eye(size, dtype=torch.float64)


def points(inputs, targets):
    return list(zip(inputs, targets, strict=True))


def problem_of(model, items, likelihood=CATEGORICAL, weights=None, **settings):
    """One data point, one position; `weights` by index of the point."""
    weight = {id(item): 1.0 if weights is None else float(weights[i]) for i, item in enumerate(items)}

    def evaluate(some):
        inputs, targets = (torch.stack(part) for part in zip(*some, strict=True))
        w = torch.tensor([weight[id(item)] for item in some], dtype=torch.float64)
        return Output(model(inputs), targets, w, torch.arange(len(some)))

    return CurvatureProblem(model, dict(model.named_parameters()), items, evaluate, likelihood, **settings)


def small_net(seed=0, bias=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias))
    return net.double()


@pytest.fixture(scope="module")
def classifier():
    """Two linear maps, 30 points, unequal weights, some ridge, a subsampling scale."""
    labels = torch.arange(30) % 3
    items = points(draw(30, 4), labels)
    weights = np.linspace(0.2, 1.5, 30)
    return problem_of(small_net(), items, weights=weights, ridge=0.05, scale=1.5, batch=7)


def true_matrix(problem, kind):
    """H by torch.func, from the written objective."""
    out = problem.evaluate(problem.items)
    inputs = torch.stack([item[0] for item in problem.items])

    def value(named):
        z = torch.func.functional_call(problem.model, named, (inputs,))
        ridge = sum(p.square().sum() for p in named.values()) * problem.ridge / 2
        return problem.scale * (out.weights * problem.likelihood.loss(z, out.targets)).sum() + ridge

    def outputs(flat):
        return torch.func.functional_call(problem.model, problem.named(flat), (inputs,))

    flat = problem.flat(problem.parameters).detach()
    if kind == "hessian":
        return torch.autograd.functional.hessian(lambda v: value(problem.named(v)), flat)
    jacobian = torch.autograd.functional.jacobian(outputs, flat)  # [N, K, P]
    p = out.values.detach().softmax(-1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    ggn = torch.einsum("n,nkp,nkl,nlq->pq", out.weights, jacobian, inner, jacobian)
    return problem.scale * ggn + problem.ridge * unit(len(flat))


def near(found, wanted, rtol):
    return float((found - wanted).norm() / wanted.norm()) < rtol


# Products and the dense matrix ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_dense_is_the_matrix_of_second_derivatives(classifier, kind):
    # far from the optimum the two differ; a large damping keeps the Hessian invertible
    wanted = true_matrix(classifier, kind)
    solver = Dense(classifier, 50.0, kind)
    assert near(solver.matrix, wanted, 1e-10)
    g = draw(classifier.size)
    found = classifier.flat(solver.solve(classifier.named(g)))
    assert near(found, torch.linalg.solve(wanted + 50.0 * unit(len(g)), g), 1e-10)


def test_ggn_and_hessian_are_not_the_same(classifier):
    assert not near(true_matrix(classifier, "ggn"), true_matrix(classifier, "hessian"), 0.05)


def test_gradient_is_that_of_the_sum(classifier):
    out = classifier.evaluate(classifier.items)
    loss = 1.5 * (out.weights * cross_entropy(out.values, out.targets, reduction="none")).sum()
    loss = loss + 0.025 * sum(p.square().sum() for p in classifier.parameters.values())
    wanted = torch.autograd.grad(loss, list(classifier.parameters.values()))
    for found, expected in zip(classifier.gradient().values(), wanted, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("likelihood", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
def test_sampled_labels_give_the_ggn_on_average_and_gold_ones_do_not(likelihood):
    inputs = draw(6, 4)
    net = small_net(3)
    with torch.no_grad():  # confident and wrong: there the empirical Fisher is far off
        net[2].weight.mul_(3)
        targets = net(inputs).argmin(-1) if likelihood is CATEGORICAL else net(inputs) + 4.0
    items = points(inputs, targets)
    plain = problem_of(net, items, likelihood, weights=np.linspace(0.5, 2, 6))
    ggn = Dense(plain, 1.0, "ggn").matrix
    draws = [problem_of(net, items, likelihood, weights=np.linspace(0.5, 2, 6), seed=s) for s in range(400)]
    mean = sum(Dense(p, 1.0, "fisher").matrix for p in draws) / len(draws)
    assert near(mean, ggn, 0.15)
    assert not near(Dense(plain, 1.0, "fisher", "gold").matrix, ggn, 0.5)


def test_several_positions_of_a_row_are_one_draw_of_the_fisher():
    """Σ_a √w_a ∇ℓ(ŷ_a) squared is Σ_a w_a J_aᵀ H J_a on average: labels of positions are independent."""
    net, inputs = small_net(1), draw(4, 4)

    def made(seed):
        def evaluate(rows):  # the one item has four positions
            w, row = torch.full((4,), 0.25, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
            return Output(net(inputs), torch.zeros(4, dtype=torch.long), w, row)

        return CurvatureProblem(net, dict(net.named_parameters()), [0], evaluate, seed=seed)

    ggn = Dense(made(0), 1.0, "ggn").matrix
    mean = sum(Dense(made(s), 1.0, "fisher").matrix for s in range(1500)) / 1500
    assert near(mean, ggn, 0.15)


# Solvers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize(
    ("name", "limits"), [("cg", {"tolerance": 1e-8}), ("lissa", {"tolerance": 1e-7, "iterations": 20_000})]
)
def test_iterative_solvers_agree_with_dense(classifier, name, limits, kind):
    g = classifier.named(draw(classifier.size))
    damping = 0.5 if kind == "ggn" else 20.0
    dense = classifier.flat(make_solver("dense", classifier, damping, product=kind).solve(g))
    found = make_solver(name, classifier, damping, product=kind, **limits).solve(g)
    assert near(classifier.flat(found), dense, 1e-4)


def test_stochastic_lissa_is_near_and_the_same_by_seed(classifier):
    g = classifier.named(draw(classifier.size))
    dense = classifier.flat(Dense(classifier, 5.0).solve(g))
    runs = [LiSSA(classifier, 5.0, stochastic=True, iterations=300).solve(g) for _ in range(2)]
    one, again = (classifier.flat(run) for run in runs)
    assert torch.equal(one, again)
    assert near(one, dense, 0.2)
    assert not torch.equal(one, classifier.flat(LiSSA(classifier, 5.0).solve(g)))


def test_cg_says_what_is_left(classifier, capsys):
    solver = ConjugateGradient(classifier, 1e-6, iterations=2)
    solver.solve(classifier.named(draw(classifier.size)))
    assert solver.residual > solver.tolerance
    assert "after 2 iterations" in capsys.readouterr().err


@pytest.mark.parametrize("solve", [ConjugateGradient, Dense])
def test_negative_curvature_is_refused(classifier, solve):
    with pytest.raises(NotComputable, match=r"[Rr]aise damping"):
        solve(classifier, 1e-6, "hessian").solve(classifier.named(draw(classifier.size)))


@pytest.mark.parametrize("labels", ["sampled", "gold"])
def test_diagonal_is_that_of_the_fisher(classifier, labels):
    solver = Diagonal(classifier, 0.3, labels)
    dense = Dense(classifier, 1.0, "fisher", labels).matrix
    torch.testing.assert_close(solver.diagonal.detach(), dense.diagonal())
    g = draw(classifier.size)
    found = classifier.flat(solver.solve(classifier.named(g)))
    torch.testing.assert_close(found, g / (dense.diagonal() + 0.3))
    mean = classifier.mean_eigenvalue(labels)
    assert mean == pytest.approx(float(dense.trace()) / classifier.size)


def test_diagonal_equals_dense_where_curvature_is_diagonal():
    """½(θ·x − y)² with one nonzero entry per x: the Fisher with unit residuals is diag(x²)."""
    inputs = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        targets = model(inputs) + 1.0
    problem = problem_of(model, points(inputs, targets), GAUSSIAN)
    g = problem.named(draw(3))
    diagonal, dense = (s.solve(g) for s in (Diagonal(problem, 0.1, "gold"), Dense(problem, 0.1)))
    torch.testing.assert_close(problem.flat(diagonal), problem.flat(dense))


def kronecker(solver, problem):
    """The matrix K-FAC and EK-FAC stand for, blocks on the diagonal, ridge included."""
    blocks = []
    for name in problem.parameters:
        basis = torch.kron(solver.outer_basis[name], solver.inner_basis[name])
        blocks.append(basis @ torch.diag(solver.eigenvalues[name].reshape(-1)) @ basis.T)
    return torch.block_diag(*blocks) + problem.ridge * unit(problem.size)


@pytest.mark.parametrize("labels", ["sampled", "gold"])
def test_kfac_is_exact_for_one_map_with_one_kind_of_row(labels):
    model = nn.Linear(4, 3, bias=False).double()
    row = draw(4)
    items = points([row] * 12, torch.arange(12) % 3)
    problem = problem_of(model, items, weights=np.linspace(0.5, 2, 12), scale=2.0, ridge=0.1)
    g = problem.named(draw(12, seed=5))
    dense = problem.flat(Dense(problem, 0.2, "fisher", labels).solve(g))
    for solver in (KFAC(problem, 0.2, labels), EKFAC(problem, 0.2, labels)):
        assert near(problem.flat(solver.solve(g)), dense, 1e-9)


def test_kfac_factors_and_its_algebra(classifier):
    """S = Σ g gᵀ and A = mean of a aᵀ by hand for both maps; the solve is that of the dense matrix."""
    solver = KFAC(classifier, 0.2, "gold")
    wanted = []
    out = classifier.evaluate(classifier.items)
    inputs = torch.stack([item[0] for item in classifier.items])
    middle = (inputs @ classifier.parameters["0.weight"].T).detach().requires_grad_()
    last = middle.tanh() @ classifier.parameters["2.weight"].T
    loss = (out.weights * cross_entropy(last, out.targets, reduction="none")).sum()
    slopes = torch.autograd.grad(loss, [middle, last])
    for a, g in zip((inputs, middle.tanh().detach()), slopes, strict=True):
        wanted.append(1.5 * torch.kron(g.T @ g, a.T @ a / 30))
    matrix = torch.block_diag(*wanted) + 0.05 * unit(classifier.size)
    assert near(kronecker(solver, classifier), matrix, 1e-9)
    g = draw(classifier.size)
    found = classifier.flat(solver.solve(classifier.named(g)))
    assert near(found, torch.linalg.solve(matrix + 0.2 * unit(len(g)), g), 1e-9)


def test_kfac_averages_inputs_over_positions_not_over_rows():
    """Five rows of two positions: A is a mean over ten."""
    model = nn.Linear(4, 3, bias=False).double()
    inputs, targets = draw(5, 2, 4), torch.tensor([0, 2])

    def evaluate(rows):
        z = model(torch.stack(rows)).reshape(-1, 3)
        row = torch.arange(len(rows)).repeat_interleave(2)
        return Output(z, targets.repeat(len(rows)), torch.full((len(z),), 0.5, dtype=torch.float64), row)

    problem = CurvatureProblem(model, {"weight": model.weight}, list(inputs), evaluate)
    a = inputs.reshape(-1, 4)
    gold = torch.nn.functional.one_hot(targets.repeat(5), 3)
    g = 0.5 * ((a @ model.weight.T).softmax(-1) - gold).detach()
    wanted = torch.kron(g.T @ g, a.T @ a / 10)
    assert near(kronecker(KFAC(problem, 0.1, "gold"), problem), wanted, 1e-9)


@pytest.mark.parametrize("labels", ["sampled", "gold"])
def test_ekfac_is_nearer_to_the_fisher_than_kfac(classifier, labels):
    dense = Dense(classifier, 1.0, "fisher", labels).matrix
    mask = torch.block_diag(*[torch.ones(p.numel(), p.numel()) for p in classifier.parameters.values()])
    kfac, ekfac = (kronecker(s(classifier, 0.1, labels), classifier) for s in (KFAC, EKFAC))
    errors = [float((m - dense * mask).norm()) for m in (kfac, ekfac)]
    assert errors[1] < 0.95 * errors[0]
    bases, names = KFAC(classifier, 0.1, labels), classifier.parameters
    basis = torch.block_diag(*[torch.kron(bases.outer_basis[n], bases.inner_basis[n]) for n in names])
    best = basis @ torch.diag((basis.T @ dense @ basis).diagonal()) @ basis.T
    assert near(ekfac, best, 1e-9), "the diagonal of the Fisher in that basis is the nearest there is"


def test_kfac_refuses_what_is_no_linear_map():
    problem = problem_of(small_net(bias=True), points(draw(3, 4), torch.arange(3)))
    with pytest.raises(ConfigError, match=r"0\.bias"):
        KFAC(problem, 0.1)


def test_dense_refuses_many_parameters(classifier, monkeypatch):
    monkeypatch.setattr(curvature.dense, "LIMIT", 34)
    with pytest.raises(ConfigError, match="35 parameters"):
        Dense(classifier, 0.1)


@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac", "cg", "lissa", "dense"])
def test_no_gradient_no_step_and_linear(classifier, name):
    solver = make_solver(name, classifier, 1.0)
    zero = classifier.named(torch.zeros(classifier.size, dtype=torch.float64))
    assert all(bool((v == 0).all()) for v in solver.solve(zero).values())
    g = draw(classifier.size)
    one, three = (classifier.flat(solver.solve(classifier.named(c * g))) for c in (1.0, 3.0))
    assert near(three, 3 * one, 1e-4)
    assert float(one @ g) > 0, "uphill to first order"


# Removing data from convex models ---------------------------------------------------------------------


def ridge_weights(inputs, targets, ridge):
    gram = inputs.T @ inputs + ridge * unit(inputs.shape[1])
    return torch.linalg.solve(gram, inputs.T @ targets)


@pytest.mark.parametrize(("solver", "limits"), [("dense", {}), ("cg", {"tolerance": 1e-12})])
def test_ridge_regression_one_step_is_retraining(solver, limits):
    inputs, targets = draw(25, 6), draw(25, 2, seed=1)
    model = nn.Linear(6, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(ridge_weights(inputs, targets, 0.3).T)
    items = points(inputs, targets)
    retained = problem_of(model, items[5:], GAUSSIAN, ridge=0.3)
    gradient = problem_of(model, items[:5], GAUSSIAN).gradient()
    step = make_solver(solver, retained, 0.0, **limits).solve(gradient)["weight"]
    wanted = ridge_weights(inputs[5:], targets[5:], 0.3).T
    assert float((model.weight.detach() + step - wanted).abs().max()) < 1e-8
    assert float((model.weight.detach() - wanted).abs().max()) > 1e-3


def logistic_fit(inputs, labels, ridge, start):
    """Minimum of the two-class softmax objective by scipy."""

    def value(flat):
        weight = torch.tensor(flat.reshape(2, -1), requires_grad=True)
        loss = cross_entropy(inputs @ weight.T, labels, reduction="sum") + ridge / 2 * weight.square().sum()
        (slope,) = torch.autograd.grad(loss, weight)
        return float(loss.detach()), slope.numpy().reshape(-1)

    options = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 2000}
    return torch.tensor(minimize(value, start, jac=True, method="L-BFGS-B", options=options).x.reshape(2, -1))


SOLVERS = {"dense": {}, "cg": {"tolerance": 1e-8}, "lissa": {"tolerance": 1e-6, "iterations": 20_000}}


@pytest.mark.parametrize("solver", SOLVERS)
def test_logistic_regression_is_within_5_percent_of_leave_one_out_retraining(solver):
    inputs, noise = draw(300, 5, seed=2), draw(300, seed=3)
    labels = (inputs[:, 0] - inputs[:, 1] + noise > 0).long()
    model = nn.Linear(5, 2, bias=False).double()
    whole = logistic_fit(inputs, labels, 1.0, np.zeros(10))
    with torch.no_grad():
        model.weight.copy_(whole)
    items, errors = points(inputs, labels), []
    for left_out in range(0, 300, 30):
        rest = [i for i in range(300) if i != left_out]
        retained = problem_of(model, [items[i] for i in rest], ridge=1.0, batch=300)
        gradient = problem_of(model, [items[left_out]]).gradient()
        step = make_solver(solver, retained, 0.0, **SOLVERS[solver]).solve(gradient)["weight"]
        change = logistic_fit(inputs[rest], labels[rest], 1.0, whole.numpy().reshape(-1)) - whole
        errors.append(float((step - change).norm() / change.norm()))
    assert max(errors) < 0.05


# Language models --------------------------------------------------------------------------------------

LAST = "model.layers.2.mlp.down_proj.weight"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_product_of_a_language_model_is_the_slope_of_its_gradient(family):
    """Hv against central differences of Σ_i ∇m_i; padding, masks, attention kernel and all."""
    subject, records = make_subject(family), some_records(3)
    names = [n for n, p in subject.model.named_parameters() if "layers.2" in n and p.dim() == 2]
    step = 1e-2
    with differentiable(subject, names) as chosen:
        problem = language_problem(subject, records, chosen)
        direction = draw(problem.size).float()
        direction /= direction.norm()
        found = problem.product(direction, "hessian")
        slopes = []
        for sign in (1, -1):
            for name, move in problem.named(direction).items():
                chosen[name].data.add_(move, alpha=sign * step)
            slopes.append(problem.flat(sum_gradient(subject, records, names=names)))
            for name, move in problem.named(direction).items():
                chosen[name].data.sub_(move, alpha=sign * step)
        assert near(found, (slopes[0] - slopes[1]) / (2 * step), 0.02)
        ggn = problem.product(direction, "ggn")
        assert float(direction @ ggn) > 0


def test_gold_diagonal_of_a_language_model_is_the_empirical_fisher():
    subject, records = make_subject(), some_records(4)
    with differentiable(subject, [LAST]) as chosen:
        found = Diagonal(language_problem(subject, records, chosen), 0.0, "gold").diagonal
    wanted = fisher_diagonal(subject, records, names=[LAST])[LAST] * 4
    torch.testing.assert_close(found.detach(), wanted.reshape(-1), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("family", "name"), [("llama", LAST), ("gpt2", "transformer.h.2.mlp.c_proj.weight")])
def test_kfac_of_a_language_model(family, name):
    """EK-FAC's trace is the Fisher's, K-FAC's basis holds for both layouts of a weight."""
    subject = make_subject(family)
    with differentiable(subject, [name]) as chosen:
        problem = language_problem(subject, some_records(3), chosen)
        solver = EKFAC(problem, 0.1)
        trace = problem.mean_eigenvalue() * problem.size
        assert float(solver.eigenvalues[name].sum()) == pytest.approx(trace, rel=1e-3)
        module = subject.model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(module, Conv1D) == (family == "gpt2")
        g = {name: draw(*chosen[name].shape).float()}
        solved = solver.solve(g)[name]
        full = solver.eigenvalues[name] + 0.1
        turned = solver.rotated(name, solved) * full
        torch.testing.assert_close(turned, solver.rotated(name, g[name]), rtol=1e-3, atol=1e-4)


def test_positions_no_gradient_reaches_do_not_dilute_kfac():
    """In the last block only positions that predict an answer token count, before it the prompt too."""
    subject, records = make_subject(), some_records(1)
    row = subject.encoder.encode(records[0])
    names = [LAST, "model.layers.0.mlp.down_proj.weight"]
    seen = {}

    def watch(name):
        def hook(_, inputs):
            seen[name] = inputs[0][0].detach().double()

        return subject.model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hook)

    handles = [watch(name) for name in names]
    with differentiable(subject, names) as chosen:
        solver = KFAC(language_problem(subject, records, chosen), 0.1)
    for handle in handles:
        handle.remove()
    spans = {names[0]: slice(row.num_prompt - 1, -1), names[1]: slice(0, -1)}
    for name, span in spans.items():
        a = seen[name][span]
        wanted = torch.linalg.eigvalsh(a.T @ a / len(a)).clamp(min=0)
        found = solver.eigenvalues[name][-1]
        torch.testing.assert_close(found / found.sum(), (wanted / wanted.sum()).float(), rtol=1e-3, atol=1e-5)


def test_subsampled_rows_are_scaled_up_to_the_sum():
    subject, records = make_subject(), some_records(8)
    with differentiable(subject, [LAST]) as chosen:
        part = language_problem(subject, records, chosen, max_rows=3)
        same = language_problem(subject, records, chosen, max_rows=3)
        other = language_problem(subject, records, chosen, max_rows=3, seed=1)
        assert len(part.items) == 3
        assert part.scale == 8 / 3
        assert part.items == same.items != other.items
        assert language_problem(subject, records, chosen, max_rows=8).scale == 1.0
