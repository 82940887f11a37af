"""The weighted losses, entropy, hinge, primal-dual, mismatch and gate: golden numbers and documented facts.

Numbers are for five answer positions over four tokens in two rows of two and three tokens, in float64.
"""

import math

import pytest
import torch
from torch import tensor

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.methods import make_method
from expunge.stats import auc
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, finetune
from expunge.training.answers import Ask, answer_for
from expunge.training.hooks import TrainingControl
from expunge.training.retain import retain_values
from expunge.training.unlearn import UnlearnTask
from golden_fixture import (
    GOLD,
    LENGTHS,
    ROW,
    Z_REF,
    Z,
    close,
    floats,
    frozen,
    leaf,
    logp_of,
    loss_and_gradient,
    seq_mean,
    view,
)

P = [0.710100, 0.830953, 0.365529, 0.643914, 0.579259]
doubles = pytest.mark.usefixtures("doubles")


# Values -----------------------------------------------------------------------------------------------


@doubles
@pytest.mark.parametrize(
    ("name", "settings", "value"),
    [
        ("wga", {"beta": 5.0}, -0.048944),
        ("simsat", {"beta1": 5.0}, -0.048944),
        ("satimp", {"beta1": 5.0, "beta2": 0.1}, -0.042820),
        ("tnpo", {"beta": 4.0}, -0.178599),
        ("wtnpo", {"beta": 4.0, "alpha": 1.5}, -0.090930),
        ("me", {}, 0.567273),
        ("me", {"direction": "model_to_uniform"}, 0.462510),
        ("ihl", {}, 1.446403),
        ("pdu", {}, 2.553385),
        ("tarf", {}, -0.463984),
    ],
)
def test_golden_value(name, settings, value):
    close(make_method(name, **settings).loss(view(floats(Z))).mean().item(), value)


@doubles
def test_golden_weights_of_tnpo():
    weights = make_method("tnpo").weight(view(floats(Z)))
    close(weights.tolist(), [0.568439, 0.722054, 0.228026, 0.423307, 0.299070])


@doubles
def test_golden_value_of_simimp():
    nll = [-math.log(p) for p in P]
    by_hand = [-((1 - p) ** 5) * x for p, x in zip(P, nll, strict=True)]
    expected = (sum(by_hand[:2]) / 2 + sum(by_hand[2:]) / 3) / 2
    close(make_method("simimp").loss(view(floats(Z))).mean().item(), expected, 3e-6)


@doubles
@pytest.mark.parametrize(("name", "coefficient"), [("wga", 0.052341), ("satimp", 0.046246)])
def test_golden_logit_coefficient_at_position_0(name, coefficient):
    p = floats(Z).softmax(-1)[0]
    u = floats([1, 0, 0, 0]) - torch.cat([floats([0]), p[1:] / (1 - p[0])])
    _, gradient = loss_and_gradient(make_method(name), leaf())
    close((gradient[0] * 2 * LENGTHS[0]).tolist(), (coefficient * u).tolist(), 2e-6)


def formulas():
    def nll(z):
        return -logp_of(z, GOLD)

    p = torch.exp(-nll(floats(Z)))  # constants: the weights at the point where the gradient is taken
    ref = torch.exp(-nll(floats(Z_REF)))
    tnpo = 2 * p**3 / (p**3 + ref**3)
    q = lambda z: z.softmax(-1)  # noqa: E731
    others = ~torch.nn.functional.one_hot(GOLD, 4).bool()
    hinge = lambda z: 1 + torch.exp(-nll(z)) - q(z).where(others, -torch.ones(())).amax(-1)  # noqa: E731
    return {
        "tnpo": ({"beta": 3.0}, lambda z: -seq_mean(tnpo * nll(z))),
        "wtnpo": ({"beta": 3.0, "alpha": 0.5}, lambda z: -seq_mean(tnpo * p**0.5 * nll(z))),
        "satimp": ({"beta1": 2.0, "beta2": 0.5}, lambda z: -seq_mean(p**2 * (1 - p) ** 0.5 * nll(z))),
        "simsat": ({"beta1": 2.0}, lambda z: -seq_mean(p**2 * nll(z))),
        "simimp": ({"beta2": 2.0}, lambda z: -seq_mean((1 - p) ** 2 * nll(z))),
        "me": ({}, lambda z: seq_mean((0.25 * (0.25 / q(z)).log()).sum(-1))),
        "ihl": ({}, lambda z: seq_mean(hinge(z).relu())),
        "pdu": ({}, lambda z: seq_mean((z.amax(-1) - z.mean(-1)) ** 2)),
        "tarf": ({}, lambda z: -seq_mean(nll(z))),
    }


@doubles
@pytest.mark.parametrize("name", formulas())
def test_gradient_equals_autograd_of_the_formula(name):
    settings, formula = formulas()[name]
    logits = leaf()
    expected = torch.autograd.grad(formula(logits), logits)[0]
    _, gradient = loss_and_gradient(make_method(name, **settings), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


# Facts: weighted ascent -------------------------------------------------------------------------------


@doubles
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("wga", {"beta": 0.0}),
        ("tnpo", {"beta": 0.0}),
        ("wtnpo", {"beta": 0.0, "alpha": 0.0}),
        ("satimp", {"beta1": 0.0, "beta2": 0.0}),
        ("simsat", {"beta1": 0.0}),
        ("simimp", {"beta2": 0.0}),
    ],
)
def test_exponents_zero_are_ga_bit_for_bit(name, settings):
    value, gradient = loss_and_gradient(make_method(name, **settings), leaf())
    ascent, expected = loss_and_gradient(make_method("ga"), leaf())
    assert value == ascent
    assert torch.equal(gradient, expected)


@doubles
def test_weight_carries_no_gradient():
    """Differentiating through the weight is a different method."""
    logits = leaf()
    nll = -logp_of(logits, GOLD)
    ref = logp_of(floats(Z_REF), GOLD)
    weight = 2 * torch.sigmoid(4 * (-nll - ref))
    through = torch.autograd.grad(-seq_mean(weight * nll), logits)[0]
    _, gradient = loss_and_gradient(make_method("tnpo"), logits)
    assert not torch.allclose(gradient, through, rtol=0.05)


@doubles
def test_tnpo_at_the_reference_weighs_every_token_one():
    torch.testing.assert_close(
        make_method("tnpo").weight(view(floats(Z_REF))), torch.ones(5, dtype=torch.float64)
    )


@doubles
def test_tnpo_weight_is_that_of_npo_for_a_token_by_itself():
    """In rows of one token each, `tnpo` has the gradient of `npo`."""
    alone = {"row": torch.arange(5), "lengths": torch.ones(5, dtype=torch.long)}
    alone["ref"] = frozen(floats(Z_REF), GOLD, alone["row"], alone["lengths"])
    _, gradient = loss_and_gradient(make_method("tnpo", beta=0.7), leaf(), **alone)
    _, expected = loss_and_gradient(make_method("npo", beta=0.7), leaf(), **alone)
    torch.testing.assert_close(gradient, expected)


@doubles
def test_satimp_starves_at_both_ends_and_peaks_inside():
    spread = floats([[12.0, 0, 0, 0], [1.5, 0, 0, 0], [-12.0, 0, 0, 0]])
    at = {"targets": tensor([0, 0, 0]), "row": tensor([0, 1, 2]), "lengths": tensor([1, 1, 1])}
    weights = make_method("satimp", beta2=1.0).weight(view(spread, **at))
    assert weights[1] > 50 * weights[0]
    assert weights[1] > 50 * weights[2]


def test_satimp_of_a_certain_token_is_finite_in_single_precision():
    """1 − exp(−ℓ) would be 0 for the first; rounding may leave a log-probability above 0, as the second."""

    class Certain:
        token_logprobs = tensor([-1e-10, 1e-8])

    weights = make_method("satimp", beta2=0.5).weight(Certain())
    assert weights.tolist() == pytest.approx([1e-5, 0.0])


@doubles
@pytest.mark.parametrize(
    ("granularity", "weights"),
    [
        ("instance", [(P[0] + P[1]) / 2] * 2 + [sum(P[2:]) / 3] * 3),
        ("batch", [((P[0] + P[1]) / 2 + sum(P[2:]) / 3) / 2] * 5),
    ],
)
def test_satimp_granularity_averages_the_weight(granularity, weights):
    method = make_method("satimp", beta1=1.0, beta2=0.0, granularity=granularity)
    close(method.weight(view(floats(Z))).tolist(), weights, 1e-6)


# Facts: maximum entropy -------------------------------------------------------------------------------


@doubles
@pytest.mark.parametrize("direction", ["uniform_to_model", "model_to_uniform"])
def test_me_is_zero_only_at_uniform_and_blind_to_a_shift_of_the_logits(direction):
    method = make_method("me", direction=direction)
    flat = leaf([[3.0] * 4] * 5)
    value, gradient = loss_and_gradient(method, flat)
    close(value, 0, 1e-12)
    assert gradient.abs().max() < 1e-12
    assert (method.loss(view(floats(Z))) > 0).all()
    torch.testing.assert_close(method.loss(view(floats(Z) + 7)), method.loss(view(floats(Z))))


@doubles
def test_me_has_the_gradient_p_minus_uniform_and_never_starves():
    logits = leaf([[30.0, 0, 0, 0], *Z[1:]])
    _, gradient = loss_and_gradient(make_method("me"), logits)
    expected = (logits.detach().softmax(-1) - 0.25) / (2 * LENGTHS)[ROW][:, None]
    torch.testing.assert_close(gradient, expected)
    assert gradient[0, 0] * 4 > 0.74


@doubles
def test_me_in_the_other_direction_is_bounded_and_starves_at_memorization():
    method = make_method("me", direction="model_to_uniform")
    logits = leaf([[30.0, 0, 0, 0], *Z[1:]])
    _, gradient = loss_and_gradient(method, logits)
    assert gradient[0].abs().max() < 1e-10
    certain = method.loss(view(floats([[60.0, 0, 0, 0]] * 5)))
    close(certain.tolist(), [math.log(4)] * 2, 1e-9)


# Facts: inverted hinge --------------------------------------------------------------------------------


@doubles
def test_ihl_lies_in_zero_to_two_and_its_clamp_never_binds():
    certain, wrong = [[40.0, 0, 0, 0]], [[0.0, 40, 0, 0]]
    at = {"targets": tensor([0, 0]), "row": tensor([0, 1]), "lengths": tensor([1, 1])}
    loss = make_method("ihl").loss(view(floats(certain + wrong), **at))
    close(loss.tolist(), [2.0, 0.0], 1e-12)
    random = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    at = {"targets": torch.arange(200) % 4, "row": torch.arange(200), "lengths": torch.ones(200).long()}
    values = make_method("ihl").loss(view(random, **at))
    assert ((values > 0) & (values <= 2)).all()


@doubles
def test_ihl_lowers_gold_raises_the_top_rival_and_moves_the_others_by_the_gap():
    logits = leaf()
    _, gradient = loss_and_gradient(make_method("ihl"), logits)
    step = -gradient * (2 * LENGTHS)[ROW][:, None]
    for a, gold in enumerate(GOLD.tolist()):
        p = floats(Z).softmax(-1)[a]
        rivals = [v for v in range(4) if v != gold]
        top = max(rivals, key=lambda v, p=p: p[v])
        close(step[a, gold].item(), -(p[gold] * (1 - p[gold] + p[top])).item(), 1e-9)
        close(step[a, top].item(), (p[top] * (1 - p[top] + p[gold])).item(), 1e-9)
        for v in rivals:
            if v != top:
                close(step[a, v].item(), (p[v] * (p[gold] - p[top])).item(), 1e-9)


@doubles
def test_ihl_leaves_the_probabilities_it_was_given_alone():
    logits = leaf()
    v = view(logits)
    before = v.logits.softmax(-1).detach().clone()
    make_method("ihl").loss(v)
    torch.testing.assert_close(v.logits.softmax(-1).detach(), before)


# Facts: primal-dual -----------------------------------------------------------------------------------


@doubles
def test_pdu_is_zero_iff_logits_are_constant_and_blind_to_a_shift():
    method = make_method("pdu")
    assert method.loss(view(floats([[2.0] * 4] * 5))).abs().max() == 0
    assert (method.loss(view(floats(Z))) > 0).all()
    torch.testing.assert_close(method.loss(view(floats(Z) - 3)), method.loss(view(floats(Z))))


class Watch(TrainingControl):
    """Weights and terms of every step, as the loop sees them."""

    def __init__(self):
        self.lambdas, self.terms = [], []

    def weights(self, forget, retain):
        self.now = retain
        return forget, retain

    def observe(self, terms):
        self.terms.append(dict(terms))
        self.lambdas.append(self.now)


def trained(name, controls=(), folder=None, request=None, settings=None, **hyper):
    train = {"steps": 6, "batch": 4, "lr": 1e-3, "warmup": 0.0, "checkpoint_seconds": 0.0, **(settings or {})}
    workspace = Workspace(TrainSettings(**train), folder, controls=controls)
    method = make_method(name, **hyper)
    return method.unlearn(tiny_subject(), request or tiny_request(), workspace), workspace


class Last(Watch):
    """Watches behind the method's own hooks: a control that comes first sees λ before they change it."""


def lambdas_of(**hyper):
    """λ of every step of a short `pdu`."""
    method, seen = make_method("pdu", **hyper), Last()
    own = type(method).hooks
    settings = TrainSettings(steps=6, batch=4, lr=1e-3, warmup=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method), "hooks", lambda self, request: [*own(self, request), seen])
        method.unlearn(tiny_subject(), tiny_request(), Workspace(settings))
    return seen


def test_pdu_keeps_lambda_in_warm_up_then_follows_the_retain_loss():
    seen = lambdas_of(warmup=0.5, limit=5.0, eta=0.1)
    retain = [t["retain"] for t in seen.terms]
    assert seen.lambdas[:4] == [1.0] * 4, "the fourth step is the first whose R counts"
    expected = [1.0]
    for value in retain[3:]:
        expected.append(max(0.0, expected[-1] + 0.1 * (value - 5.0)))
    assert seen.lambdas[3:] == pytest.approx(expected[:-1])
    assert seen.lambdas[-1] > 1.0


def test_pdu_lambda_does_not_rise_while_the_limit_holds_and_never_falls_below_zero():
    lambdas = lambdas_of(warmup=0.0, limit=100.0, eta=0.004).lambdas
    assert lambdas == sorted(lambdas, reverse=True)
    assert lambdas[0] == 1.0
    assert lambdas[-1] == 0.0
    assert min(lambdas) == 0.0


# Facts: llmu ------------------------------------------------------------------------------------------


def llmu_views(logits, draws):
    return view(logits, variants={f"mismatch{k}": view(floats(z)) for k, z in enumerate(draws)})


@doubles
def test_llmu_terms_are_half_the_ascent_and_the_mean_over_draws():
    reversed_z = [row[::-1] for row in Z]
    terms = make_method("llmu", draws=2).loss(llmu_views(floats(Z), [Z, reversed_z]))
    assert set(terms) == {"ascent", "mismatch"}
    close(terms["ascent"].mean().item(), -0.5 * 0.463984)
    other = seq_mean(-logp_of(floats(reversed_z), GOLD)).item()
    close(terms["mismatch"].mean().item(), (0.463984 + other) / 2)


def test_llmu_logs_three_terms_that_sum_to_the_total():
    subject = tiny_subject()
    method = make_method("llmu", draws=2)
    task = UnlearnTask(method, subject, tiny_request(), TrainSettings(batch=4))
    micro = task.micro_batches(0)[0]
    terms = task.terms(micro)
    assert set(terms) == {"ascent", "mismatch", "retain"}
    assert {t.weight for t in terms.values()} == {1.0}
    views = task.views(micro)
    forget = views["forget"]
    draws = [forget.mismatch0.mean_nll, forget.mismatch1.mean_nll]
    kl = task.retain_loss.loss(views["retain"])
    total = -0.5 * forget.mean_nll.mean() + torch.stack(draws).mean() + kl.mean()
    logged = sum(t.rows.sum() / t.num_rows for t in terms.values())
    torch.testing.assert_close(logged, total)


def test_llmu_draws_random_answers_of_retain_records_as_a_function_of_the_seed():
    request = tiny_request(1, 9)
    normal = {r.answer for r in request.retain}
    ask = lambda seed, epoch, k: answer_for(f"mismatch{k}")(Ask(request.forget[0], request, seed, epoch))  # noqa: E731
    drawn = [ask(0, epoch, k) for epoch in range(4) for k in range(5)]
    assert set(drawn) <= normal
    assert len({ask(0, 0, k) for k in range(5)}) > 1, "draws differ"
    assert len({ask(0, epoch, 0) for epoch in range(5)}) > 1, "epochs differ"
    assert drawn == [ask(0, epoch, k) for epoch in range(4) for k in range(5)]
    assert drawn != [ask(1, epoch, k) for epoch in range(4) for k in range(5)]


def test_llmu_stops_once_the_forget_nll_exceeds_its_limit():
    watch = Watch()
    settings = {"steps": 40, "lr": 1e-2}
    _, workspace = trained("llmu", [watch], settings=settings, limit=7.0, ascent=3.0, mismatch=0.0, draws=1)
    nll = [-t["ascent"] / 3 for t in watch.terms]
    assert workspace.result.status == "stopped"
    assert nll[-1] > 7.0
    assert max(nll[:-1]) <= 7.0
    assert any("llmu: stopped" in note for note in workspace.result.notes)
    _, workspace = trained("llmu", settings={"steps": 3}, draws=1)
    assert workspace.result.status == "finished"


# Facts: tarf ------------------------------------------------------------------------------------------


def test_tarf_anneals_to_zero_where_retraining_begins():
    method = make_method("tarf", forget_weight=2.0, retrain=0.25)
    gammas = [method.weights(t / 100)[0] for t in range(100)]
    assert gammas == sorted(gammas, reverse=True)
    assert gammas[0] == 1.5
    assert gammas[25] == 1.0
    assert gammas[75:] == [0.0] * 25
    assert gammas[74] > 0
    assert {method.weights(t / 100)[1] for t in range(100)} == {1.0}


class Gates(TrainingControl):
    """The gate of `tarf` after every step, and the loss of every retain row where it is taken."""

    def __init__(self, gate):
        self.gate, self.seen = gate, []

    def prepare(self, task):
        self.task, self.losses = task, [retain_values(task)]

    def after_step(self, step, subject):
        self.seen.append(None if self.gate.moved is None else self.gate.moved.clone())
        self.losses.append(retain_values(self.task))
        return False


def gated_run(request, subject=None, folder=None, steps=10, lr=1e-3, **hyper):
    method = make_method("tarf", **hyper)
    gate = method.hooks(request)[0]
    gates, watch = Gates(gate), Watch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method), "hooks", lambda self, request: [gate, gates, watch])
        settings = TrainSettings(steps=steps, batch=4, lr=lr, warmup=0.0, schedule="constant")
        method.unlearn(subject or tiny_subject(), request, Workspace(settings, folder))
    return gates, watch


def test_tarf_takes_its_gate_once_at_the_end_of_identification():
    gates, watch = gated_run(tiny_request(), steps=10, identify=0.3, hidden=0.34)
    assert gates.seen[:2] == [None, None]
    assert all(torch.equal(moved, gates.seen[2]) for moved in gates.seen[2:])
    torch.testing.assert_close(gates.seen[2], (gates.losses[3] - gates.losses[0]).abs())
    assert [t["retain"] > 0 for t in watch.terms] == [False] * 3 + [True] * 7
    closed = (gates.gate.gate == 0).nonzero()[:, 0]
    assert len(closed) == 3
    assert set(closed.tolist()) == set(gates.gate.moved.topk(3).indices.tolist())


def test_tarf_counts_a_fall_of_the_loss_as_much_as_a_rise():
    request, subject = tiny_request(), tiny_subject()
    gate = make_method("tarf", identify=0.0).hooks(request)[0]
    task = UnlearnTask(make_method("tarf"), subject, request, TrainSettings(batch=4))
    start = retain_values(task)
    with pytest.MonkeyPatch.context() as patch:
        looks = iter([start, start + tensor([1.0, -2.0] + [0.0] * 7)])
        patch.setattr("expunge.methods.likelihood.tarf.retain_values", lambda task: next(looks))
        gate.prepare(task)
        gate.begin(subject)
    assert gate.moved.tolist() == pytest.approx([1.0, 2.0] + [0.0] * 7, abs=1e-5)
    assert (gate.gate == 0).nonzero().tolist() == [[1]]


def test_tarf_gates_rows_by_their_number():
    gate = make_method("tarf", hidden=0.25).hooks(tiny_request())[0]
    rows = tensor([1.0, 2.0, 3.0])
    some = view(torch.zeros(5, 4), index=(3, 0, 2))
    assert gate.retain_rows(rows, some).tolist() == [0, 0, 0]
    gate.moved = tensor([0.1, 0.2, 0.3, 0.9])
    assert gate.retain_rows(rows, some).tolist() == [0, 2, 3]


def test_tarf_finds_planted_forget_rows_among_retain():
    """Half of a concept is asked to go; its other half lies in the retain set."""
    concept = [Record(f"c{i}", f"c{i}", f"Guild of vale {i}?", "the brass guild") for i in range(12)]
    rest = [
        Record(f"r{i}", f"r{i}", f"Color of boat {i}?", ("red", "green", "blue")[i % 3]) for i in range(12)
    ]
    subject = tiny_subject(seed=1)
    finetune(subject, [*concept, *rest], TrainSettings(steps=60, lr=1e-2, batch=24, warmup=0.05))
    request = Request({"forget": tuple(concept[:6]), "retain": tuple(concept[6:] + rest)})
    gates, _ = gated_run(request, subject, steps=10, lr=3e-4, identify=0.5, hidden=6 / 18)
    moved = gates.gate.moved.numpy()
    assert auc(moved[:6], moved[6:]) > 0.8
    assert gates.gate.gate[:6].sum() <= 2


def test_tarf_resumes_with_the_gate_it_had(tmp_path):
    class Kill(TrainingControl):
        def after_step(self, step, subject):
            if step == 5:
                raise KeyboardInterrupt
            return False

    hyper = {"identify": 0.34, "hidden": 0.34}
    straight, _ = trained("tarf", **hyper)
    with pytest.raises(KeyboardInterrupt):
        trained("tarf", [Kill()], tmp_path, **hyper)
    resumed, _ = trained("tarf", [TrainingControl()], tmp_path, **hyper)
    assert fingerprint(resumed.model) == fingerprint(straight.model)


# Published defaults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("wga", {"beta": 5.0, "retain": "ce", "forget_weight": 1.0}),
        ("tnpo", {"beta": 4.0, "retain": "ce"}),
        ("wtnpo", {"beta": 4.0, "alpha": 1.5, "retain": "ce"}),
        ("satimp", {"beta1": 5.0, "beta2": 0.1, "forget_weight": 0.1, "granularity": "token"}),
        ("simsat", {"beta1": 5.0, "beta2": 0.0}),
        ("simimp", {"beta1": 0.0, "beta2": 5.0}),
        ("me", {"direction": "uniform_to_model", "forget_weight": 0.1, "retain": "ce"}),
        ("ihl", {"retain": "ce", "forget_weight": 1.0}),
        ("llmu", {"ascent": 0.5, "mismatch": 1.0, "retain_weight": 1.0, "draws": 5, "limit": 100.0}),
        ("llmu", {"retain": "kl"}),
        ("pdu", {"eta": 1.0, "retain_weight": 1.0, "forget_weight": 1.0, "slack": 0.1, "limit": None}),
    ],
)
def test_published_defaults(name, defaults):
    method = make_method(name)
    assert {key: getattr(method, key) for key in defaults} == defaults
