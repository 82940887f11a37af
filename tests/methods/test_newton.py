"""The influence step and Fisher dampening on a tiny model that knows something."""

import pytest
import torch

from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, ExpungeError
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods import make_method
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, finetune
from expunge.training.curvature import EKFAC, Dense, language_problem
from expunge.training.gradients import differentiable, fisher_diagonal, row_losses, sum_gradient

ONE_MAP = {"match": r"layers\.1\.self_attn\.v_proj"}


@pytest.fixture(scope="module")
def knowing():
    subject, request = tiny_subject(seed=1), tiny_request(6, 6)
    settings = TrainSettings(steps=70, lr=1e-2, batch=12, warmup=0.05, schedule="cosine")
    finetune(subject, [*request.forget, *request.retain], settings)
    return subject, request


def workspace():
    return Workspace(TrainSettings(steps=1))


def run(name, knowing, **hyper):
    subject, request = knowing
    return make_method(name, **hyper).unlearn(subject, request, workspace())


def weights(subject):
    return {name: p.detach() for name, p in subject.model.named_parameters()}


def moves(result, original):
    old = weights(original)
    return {n: p - old[n] for n, p in weights(result).items() if not torch.equal(p, old[n])}


def mean_nll(subject, records):
    rows = list(score_sheet(subject, make_sheet(subject.encoder, records, "forget")))
    return sum(-float(r.logprobs.mean()) for r in rows) / len(rows)


@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_the_step_is_the_formula(knowing, solver):
    """θ_u − θ_o = η (Σ_retain GGN + δI)^{-1} Σ_forget ∇m_i: sums on both sides, forget uphill."""
    subject, request = knowing
    limits = {"iterations": 2000, "tolerance": 1e-6} if solver == "cg" else {}
    space = workspace()
    hyper = {"strength": 0.02, "solver": solver, **ONE_MAP, **limits}
    result = make_method("newton", **hyper).unlearn(subject, request, space)
    (name,) = found = moves(result, subject)
    delta = space.facts["newton"]["damping"]
    with differentiable(subject, [name]) as chosen:
        problem = language_problem(subject, request.retain, chosen)
        ggn = Dense(problem, delta).matrix
        assert delta == pytest.approx(0.1 * float(ggn.trace()) / problem.size, rel=0.6)  # one draw of labels
        encoded = [subject.encoder.encode(record) for record in request.forget]
        single = [torch.autograd.grad(row_losses(subject, [row])[0], chosen[name])[0] for row in encoded]
    g = sum(single).double().reshape(-1)
    wanted = 0.02 * torch.linalg.solve(ggn + delta * torch.eye(len(g), dtype=torch.float64), g)
    assert float((found[name].reshape(-1) - wanted).norm() / wanted.norm()) < 1e-2


SOLVERS = {
    "diagonal": {"strength": 0.01},
    "kfac": {"strength": 0.05},
    "ekfac": {"strength": 0.03},
    "cg": {"strength": 0.05, "iterations": 20},
    "lissa": {"strength": 3.0, "iterations": 50},
    "dense": {"strength": 1.0, **ONE_MAP},
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_forgets_and_keeps(knowing, solver):
    subject, request = knowing
    result = run("newton", knowing, solver=solver, **SOLVERS[solver])
    up = mean_nll(result, request.forget) - mean_nll(subject, request.forget)
    kept = mean_nll(result, request.retain) - mean_nll(subject, request.retain)
    assert up > 0.1
    assert up > 1.5 * kept


def test_strength_is_linear_for_one_step_and_zero_is_identity(knowing):
    subject = knowing[0]
    one, two = (moves(run("newton", knowing, strength=s, **ONE_MAP), subject) for s in (0.01, 0.02))
    for name in one:
        torch.testing.assert_close(2 * one[name], two[name], rtol=1e-3, atol=1e-6)
    assert not moves(run("newton", knowing, strength=0.0), subject)


def test_small_steps_follow_the_gradient_anew_with_the_curvature_of_the_start(knowing):
    subject, request = knowing
    (name,) = names = ["model.layers.1.self_attn.v_proj.weight"]
    work, space = subject.clone(), workspace()
    hyper = {"strength": 0.5, "solver": "ekfac", **ONE_MAP}
    result = make_method("newton", steps=2, **hyper).unlearn(subject, request, space)
    with differentiable(work, names) as chosen:
        solver = EKFAC(language_problem(work, request.retain, chosen), space.facts["newton"]["damping"])
        for _ in range(2):
            step = solver.solve(sum_gradient(work, request.forget, names=names))[name]
            chosen[name].data.add_(step, alpha=0.25)
    found, wanted = moves(result, subject)[name], moves(work, subject)[name]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found, moves(run("newton", knowing, **hyper), subject)[name], rtol=1e-2)


def test_only_linear_maps_of_the_blocks_move_and_it_says_what_does_not(knowing, capsys):
    subject, request = knowing
    space = workspace()
    result = make_method("newton", strength=0.01).unlearn(subject, request, space)
    moved = set(moves(result, subject))
    linear = {n for n, p in subject.model.named_parameters() if "layers" in n and p.dim() == 2}
    assert moved == linear
    excluded = sum(p.numel() for n, p in subject.model.named_parameters() if n not in linear)
    assert space.facts["newton"]["excluded_parameters"] == excluded
    assert f"{excluded:,} are excluded" in capsys.readouterr().err
    every = run("newton", knowing, strength=0.01, parameters="all", solver="diagonal")
    assert set(moves(every, subject)) == set(weights(subject))


def test_weights_of_half_precision_move_by_the_rounded_step(knowing):
    subject = knowing[0].clone()
    subject.model.to(torch.bfloat16)
    result = run("newton", (subject, knowing[1]), strength=0.1, solver="diagonal", labels="gold")
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert moves(result, subject)
    assert mean_nll(result, knowing[1].forget) > mean_nll(subject, knowing[1].forget) + 0.1


@pytest.mark.parametrize("name", ["newton", "ssd"])
def test_needs_forget_and_retain(knowing, name):
    subject, request = knowing
    for lacking in ("forget", "retain"):
        some = Request({k: v for k, v in request.splits.items() if k != lacking})
        with pytest.raises(DataError, match=lacking):
            make_method(name).unlearn(subject, some, workspace())


def test_newton_says_what_is_wrong(knowing):
    with pytest.raises(ConfigError, match="down_porj"):
        run("newton", knowing, match="down_porj")
    with pytest.raises(ConfigError, match="dense for"):
        run("newton", knowing, solver="dense")
    with pytest.raises(ConfigError, match="linear map"):
        run("newton", knowing, parameters="all")
    with pytest.raises(ExpungeError, match="not finite"):
        run("newton", knowing, strength=1e6, steps=20, solver="diagonal")


# Selective synaptic dampening -------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["retain", "all"])
def test_ssd_is_the_formula(knowing, importance):
    subject, request = knowing
    hyper = {"selection": 1.5, "dampening": 0.9, "importance": importance}
    space = workspace()
    result = make_method("ssd", **hyper).unlearn(subject, request, space)
    whole = request.retain if importance == "retain" else [*request.forget, *request.retain]
    forget, kept = fisher_diagonal(subject, request.forget), fisher_diagonal(subject, whole)
    old, new, selected = weights(subject), weights(result), 0
    for name in old:
        chosen = forget[name] > 1.5 * kept[name]
        selected += int(chosen.sum())
        assert torch.equal(new[name][~chosen], old[name][~chosen])
        wanted = old[name][chosen] * (0.9 * kept[name][chosen] / forget[name][chosen])
        torch.testing.assert_close(new[name][chosen], wanted)
    assert selected > 0
    assert space.facts["ssd_selected"] == selected / subject.num_parameters()


def test_ssd_never_amplifies(knowing):
    """min(λ I/I_f, 1): a large λ stops at the weight itself."""
    assert not moves(run("ssd", knowing, selection=1.5, dampening=1e9, importance="all"), knowing[0])


def test_ssd_forgets_and_with_all_data_a_large_alpha_selects_nothing(knowing):
    subject, request = knowing
    result = run("ssd", knowing)
    up = mean_nll(result, request.forget) - mean_nll(subject, request.forget)
    kept = mean_nll(result, request.retain) - mean_nll(subject, request.retain)
    assert up > 0.3
    assert up > 2 * kept
    assert not moves(run("ssd", knowing, importance="all"), subject)  # I_f/I ≤ 12/6
