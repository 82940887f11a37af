"""Every delivered loss against hand-computed numbers, documented facts, and autograd of its formula.

Numbers are for five answer positions over four tokens in two rows of two and three tokens, in float64.
"""

import math

import pytest
import torch
from torch import tensor
from torch.nn.functional import logsigmoid

from expunge.data.request import Request
from expunge.methods import make_method
from expunge.training.retain import RETAIN_LOSSES
from expunge.training.views import sum_rows
from golden_fixture import (
    GOLD,
    H_REF,
    LENGTHS,
    REFUSAL,
    ROW,
    Z_REF,
    H,
    Z,
    close,
    floats,
    frozen,
    leaf,
    logp_of,
    loss_and_gradient,
    seq_mean,
    states,
    view,
)

pytestmark = pytest.mark.usefixtures("doubles")

REQUEST = Request({})


# Values -----------------------------------------------------------------------------------------------


def test_fixture_quantities():
    v = view(floats(Z))
    close(v.token_logprobs.exp().tolist(), [0.710100, 0.830953, 0.365529, 0.643914, 0.579259])
    close(v.sum_nll.tolist(), [0.527532, 1.992605])
    close(v.mean_nll.tolist(), [0.263766, 0.664202])
    close(v.reference.sum_nll.tolist(), [0.153898, 0.716697])
    close(v.reference.mean_nll.tolist(), [0.153898 / 2, 0.716697 / 3])


@pytest.mark.parametrize(
    ("name", "settings", "value"),
    [
        ("ga", {}, -0.463984),
        ("graddiff", {}, -0.463984),
        ("ga_kl", {}, -0.463984),
        ("npo", {"beta": 0.1}, 13.060253),
        ("npo", {"beta": 1.0}, 0.769897),
        ("simnpo", {"beta": 2.5, "margin": 0.0}, 0.236330),
        ("wga", {"beta": 5.0}, -0.048944),
    ],
)
def test_golden_value(name, settings, value):
    close(make_method(name, **settings).loss(view(floats(Z))).mean().item(), value)


def test_golden_values_of_retain_losses():
    close(RETAIN_LOSSES.get("ce")().loss(view(floats(Z))).mean().item(), 0.463984)
    close(RETAIN_LOSSES.get("kl")().loss(view(floats(Z))).mean().item(), 0.137957)
    close(RETAIN_LOSSES.get("hidden_mse")().loss(states(floats(H), H_REF)).mean().item(), 0.666667)


def test_golden_value_of_rmu():
    loss = make_method("rmu", steering=2.0).loss(states(floats(H)), direction=floats([1, 0, 0]))
    close(loss.mean().item(), 6.333333)


class Constant:
    """A view of given sums, for losses that read nothing else."""

    def __init__(self, sums, reference=None, refusal=None):
        self.sum_nll = floats(sums).requires_grad_()
        self.reference, self.refusal = reference, refusal


def dpo_views(win=(4.0, 5.0), win_ref=(4.5, 5.2), lose=(0.527532, 1.992605), lose_ref=(0.153898, 0.716697)):
    refusal = Constant(win, Constant(win_ref))
    return Constant(lose, Constant(lose_ref), refusal)


def test_golden_value_of_dpo():
    rows = make_method("dpo", beta=0.1).loss(dpo_views())
    close(rows.mean().item(), 12.724914, 2e-6)
    delta = floats([0.873634, 1.475908])
    close(rows.tolist(), (-(2 / 0.1) * logsigmoid(0.1 * delta)).tolist(), 2e-5)


def test_golden_value_of_idk():
    refusal = view(floats(Z), REFUSAL)
    expected = seq_mean(-logp_of(floats(Z), REFUSAL)).item()
    close(make_method("idk").loss(view(floats(Z), variants={"refusal": refusal})).mean().item(), expected)


def test_golden_gradient_coefficients_at_position_0():
    """Every loss in p_y alone moves the logits along u = e_y − q; the coefficient says how hard."""
    p = floats(Z).softmax(-1)[0]
    q = torch.cat([floats([0]), p[1:] / (1 - p[0])])
    close(q.tolist(), [0, 0.331499, 0.121952, 0.546549])
    u = floats([1, 0, 0, 0]) - q
    close(u.norm().item(), 1.193097)
    for name, settings, coefficient in (("ga", {}, 0.289900), ("wga", {"beta": 5.0}, 0.052341)):
        _, gradient = loss_and_gradient(make_method(name, **settings), leaf())
        close((gradient[0] * 2 * LENGTHS[0]).tolist(), (coefficient * u).tolist(), 2e-6)


@pytest.mark.parametrize(
    ("name", "settings", "weights"),
    [
        ("npo", {"beta": 1.0}, [0.815326, 0.436495]),
        ("simnpo", {"beta": 2.5}, [0.681742 / 2, 0.319389 / 3]),
    ],
)
def test_golden_row_weights(name, settings, weights):
    """The gradient of a row is its weight times that of ascent on the row's sum."""
    logits = leaf()
    ascent = torch.autograd.grad(-view(logits).sum_nll.mean(), logits)[0]
    _, gradient = loss_and_gradient(make_method(name, **settings), logits)
    for row, weight in enumerate(weights):
        torch.testing.assert_close(gradient[row == ROW], weight * ascent[row == ROW], rtol=2e-6, atol=1e-7)


# Gradient equals autograd of the formula written by itself --------------------------------------------


def formulas():
    def nll(z):
        return -logp_of(z, GOLD)

    def sums(z):
        return sum_rows(nll(z), ROW, 2)

    s_ref = sums(floats(Z_REF))
    npo = lambda z, b: (2 / b) * torch.log1p(torch.exp(-b * (sums(z) - s_ref))).mean()  # noqa: E731
    sim = lambda z, b, g: (2 / b) * torch.log1p(torch.exp(-b * (sums(z) / LENGTHS - g))).mean()  # noqa: E731
    weight = torch.exp(-3.0 * nll(floats(Z)))  # a constant: p at the point where the gradient is taken
    return {
        ("ga",): (lambda z: -seq_mean(nll(z)), {}),
        ("npo",): (lambda z: npo(z, 0.3), {"beta": 0.3}),
        ("simnpo",): (lambda z: sim(z, 2.0, 0.4), {"beta": 2.0, "margin": 0.4}),
        ("wga",): (lambda z: -seq_mean(weight * nll(z)), {"beta": 3.0}),
    }


@pytest.mark.parametrize("key", formulas(), ids=lambda key: key[0])
def test_gradient_equals_autograd_of_the_formula(key):
    formula, settings = formulas()[key]
    logits = leaf()
    expected = torch.autograd.grad(formula(logits), logits)[0]
    _, gradient = loss_and_gradient(make_method(key[0], **settings), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_gradient_of_dpo_equals_autograd_of_the_formula():
    views = dpo_views()
    make_method("dpo", beta=0.3).loss(views).mean().backward()
    win, lose = floats([4.0, 5.0]).requires_grad_(), floats([0.527532, 1.992605]).requires_grad_()
    delta = (floats([4.5, 5.2]) - win) - (floats([0.153898, 0.716697]) - lose)
    ((2 / 0.3) * torch.log1p(torch.exp(-0.3 * delta))).mean().backward()
    torch.testing.assert_close(views.refusal.sum_nll.grad, win.grad)
    torch.testing.assert_close(views.sum_nll.grad, lose.grad)
    assert (win.grad > 0).all(), "descent must make the refusal likelier"
    assert (lose.grad < 0).all(), "descent must make gold unlikelier"


def test_gradient_of_kl_is_p_minus_p_reference():
    """∂KL(ref‖θ)/∂z = p − p_ref; the reversed divergence has another gradient."""
    logits = leaf()
    loss = RETAIN_LOSSES.get("kl")().loss(view(logits)).mean()
    gradient = torch.autograd.grad(loss, logits)[0]
    per_token = (1 / (2 * LENGTHS))[ROW][:, None]
    expected = (floats(Z).softmax(-1) - floats(Z_REF).softmax(-1)) * per_token
    torch.testing.assert_close(gradient, expected)


# Documented facts -------------------------------------------------------------------------------------


def test_ga_is_minus_the_mean_nll_and_its_gradient_minus_that_of_cross_entropy():
    value, gradient = loss_and_gradient(make_method("ga"), leaf())
    logits = leaf()
    ce = RETAIN_LOSSES.get("ce")().loss(view(logits)).mean()
    assert value == -ce.item()
    assert torch.equal(gradient, -torch.autograd.grad(ce, logits)[0])


def test_ga_is_the_mean_over_rows_of_means_not_over_tokens():
    v = view(floats(Z))
    assert make_method("ga").loss(v).mean().item() != pytest.approx(v.token_logprobs.mean().item(), abs=1e-3)
    close(-v.token_logprobs.mean().item(), 0.504027)


def test_npo_at_the_reference_is_two_over_beta_log_two_with_the_gradient_of_ascent_on_the_sum():
    for beta in (0.1, 1.0):
        logits = leaf(Z_REF)
        value, gradient = loss_and_gradient(make_method("npo", beta=beta), logits)
        close(value, 2 / beta * math.log(2))
        ascent = torch.autograd.grad(-view(logits).sum_nll.mean(), logits)[0]
        torch.testing.assert_close(gradient, ascent)


def test_npo_is_positive_with_row_weights_below_two():
    method = make_method("npo", beta=0.5)
    for shift in (-50.0, -1.0, 0.0, 1.0, 50.0):
        views = Constant([10.0, 3.0], Constant([10.0 - shift, 3.0 - shift]))
        rows = method.loss(views)
        rows.sum().backward()
        assert (rows >= 0).all()
        weights = -views.sum_nll.grad
        assert ((weights > 0) & (weights <= 2)).all()
        torch.testing.assert_close(weights, floats([2 / (1 + math.exp(0.5 * shift))] * 2))


def test_npo_with_small_beta_points_along_ascent():
    logits = leaf()
    _, gradient = loss_and_gradient(make_method("npo", beta=1e-4), logits)
    ascent = torch.autograd.grad(-view(logits).sum_nll.mean(), logits)[0]
    assert torch.cosine_similarity(gradient.flatten(), ascent.flatten(), dim=0) > 0.999


def test_npo_vanishes_for_what_is_forgotten():
    assert make_method("npo").loss(Constant([1e4], Constant([1.0]))).item() < 1e-9


def test_simnpo_at_its_margin_is_two_over_beta_log_two():
    v = view(floats(Z))
    for row, margin in enumerate(v.mean_nll.tolist()):
        value = make_method("simnpo", beta=2.5, margin=margin).loss(v)[row].item()
        close(value, 2 / 2.5 * math.log(2))


def test_simnpo_is_independent_of_length_at_equal_token_nll_and_npo_is_not():
    targets, row, lengths = tensor([0] * 7), tensor([0, 0, 1, 1, 1, 1, 1]), tensor([2, 5])
    same = floats([[1.0, 0, 0, 0]] * 7)
    v = view(same, targets, row, lengths, frozen(floats([[3.0, 0, 0, 0]] * 7), targets, row, lengths))
    short, long = make_method("simnpo").loss(v).tolist()
    assert short == pytest.approx(long, abs=1e-12)
    short, long = make_method("npo").loss(v).tolist()
    assert abs(short - long) > 0.01


def test_simnpo_at_perfect_memorization_has_the_gradient_of_ascent():
    logits = leaf([[9.0, 0, 0, 0], [0, 9.0, 0, 0], [9.0, 0, 0, 0], [0, 0, 9.0, 0], [0, 0, 0, 9.0]])
    _, gradient = loss_and_gradient(make_method("simnpo"), logits)
    _, ascent = loss_and_gradient(make_method("ga"), logits)
    torch.testing.assert_close(gradient, ascent, rtol=2e-3, atol=0)


def test_wga_with_beta_zero_is_ga_bit_for_bit():
    value, gradient = loss_and_gradient(make_method("wga", beta=0.0), leaf())
    ascent, expected = loss_and_gradient(make_method("ga"), leaf())
    assert value == ascent
    assert torch.equal(gradient, expected)


def test_wga_weight_carries_no_gradient():
    """Differentiating through the weight would give p^β(1 − βℓ) instead of p^β."""
    logits = leaf()
    _, gradient = loss_and_gradient(make_method("wga", beta=5.0), logits)
    nll = -logp_of(logits, GOLD)
    through = torch.autograd.grad(-seq_mean(torch.exp(-5 * nll) * nll), logits)[0]
    assert not torch.allclose(gradient, through, rtol=0.05)


def test_wga_leaves_forgotten_tokens_alone():
    logits = leaf([[-20.0, 0, 0, 0], *Z[1:]])
    _, gradient = loss_and_gradient(make_method("wga"), logits)
    assert gradient[0].abs().max() < 1e-12
    assert gradient[1].abs().max() > 1e-3


def test_dpo_at_the_reference_is_two_over_beta_log_two_and_points_from_gold_to_refusal():
    views = dpo_views(win_ref=(4.0, 5.0), lose_ref=(0.527532, 1.992605))
    loss = make_method("dpo", beta=0.1).loss(views).mean()
    loss.backward()
    close(loss.item(), 2 / 0.1 * math.log(2))
    torch.testing.assert_close(views.refusal.sum_nll.grad, floats([0.5, 0.5]))
    torch.testing.assert_close(views.sum_nll.grad, floats([-0.5, -0.5]))


def test_dpo_with_the_refusal_equal_to_gold_is_constant():
    logits = leaf()
    refusal = view(logits)
    loss = make_method("dpo").loss(view(logits, variants={"refusal": refusal})).mean()
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12


def test_idk_gives_gold_no_gradient():
    gold, refusal = leaf(), leaf()
    loss = make_method("idk").loss(view(gold, variants={"refusal": view(refusal, REFUSAL)})).mean()
    assert torch.autograd.grad(loss, gold, allow_unused=True)[0] is None
    assert torch.autograd.grad(seq_mean(-logp_of(refusal, REFUSAL)), refusal)[0].abs().max() > 0


def test_kl_at_the_reference_is_zero_with_zero_gradient_and_positive_elsewhere():
    loss = RETAIN_LOSSES.get("kl")()
    logits = leaf(Z_REF)
    value = loss.loss(view(logits)).mean()
    close(value.item(), 0, 1e-12)
    assert torch.autograd.grad(value, logits)[0].abs().max() < 1e-12
    assert (loss.loss(view(floats(Z))) > 0).all()


def test_kl_is_that_of_the_reference_to_the_model_not_reversed():
    swapped = view(floats(Z_REF), ref=frozen(floats(Z), GOLD, ROW, LENGTHS))
    close(RETAIN_LOSSES.get("kl")().loss(swapped).mean().item(), 0.190646)


def test_kl_is_not_the_cross_entropy_between_the_two():
    p_ref = floats(Z_REF).softmax(-1)
    entropy = seq_mean(-(p_ref * p_ref.log()).sum(-1)).item()
    cross = seq_mean(-(p_ref * floats(Z).log_softmax(-1)).sum(-1)).item()
    close(RETAIN_LOSSES.get("kl")().loss(view(floats(Z))).mean().item(), cross - entropy)


def test_rmu_is_zero_only_on_its_target_whose_norm_is_the_steering():
    from expunge.testing import tiny_subject

    method = make_method("rmu", steering=4.0)
    direction = method.setup(tiny_subject(), REQUEST, seed=3)["direction"].double()
    close((4.0 * direction).norm().item(), 4.0, 1e-6)
    assert (direction >= 0).all(), "drawn uniformly from [0, 1), not from a Gaussian"
    on_target = states((4.0 * direction).expand(2, -1))
    assert method.loss(on_target, direction=direction).abs().max() < 1e-12
    again = method.setup(tiny_subject(), REQUEST, seed=3)["direction"].double()
    assert torch.equal(direction, again)
    assert not torch.equal(direction, method.setup(tiny_subject(), REQUEST, seed=4)["direction"].double())


def test_rmu_normalizes_per_row_whatever_the_lengths():
    hidden = floats([[1, 0, 0], [2, 0, 0], [2, 0, 0], [2, 0, 0]])
    method = make_method("rmu", steering=1.0)
    loss = method.loss(states(hidden, lengths=(1, 3)), direction=floats([0, 0, 1]))
    close(loss.tolist(), [2 / 3, 5 / 3])


def test_rmu_layer_keeps_the_published_proportion():
    from transformers import LlamaConfig

    from expunge.errors import ConfigError
    from expunge.testing import tiny_subject

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    deep = tiny_subject(config=LlamaConfig(num_hidden_layers=32, **sizes))
    method = make_method("rmu")
    assert method.layers_of(deep) == (7,)
    assert method.selects(deep) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6, 7)}
    with pytest.raises(ConfigError, match="31"):
        make_method("rmu", layer=32).layers_of(deep)


def test_hidden_mse_at_the_reference_is_zero_with_zero_gradient():
    hidden = floats(H_REF).requires_grad_()
    loss = RETAIN_LOSSES.get("hidden_mse")().loss(states(hidden, H_REF)).mean()
    assert loss.item() == 0
    assert torch.autograd.grad(loss, hidden)[0].abs().max() == 0


def test_hidden_mse_keeps_one_value_per_row_for_unequal_lengths():
    """A [B] over [B, 1] division would broadcast to [B, B]."""
    hidden = floats([[3, 0, 0], [0, 3, 0], [0, 0, 3], [0, 0, 0]])
    loss = RETAIN_LOSSES.get("hidden_mse")().loss(states(hidden, [[0.0] * 3] * 4, (1, 3)))
    close(loss.tolist(), [3.0, 2.0])


# Published defaults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("npo", {"beta": 0.1, "retain": "ce", "retain_weight": 1.0}),
        ("simnpo", {"beta": 2.5, "margin": 0.0, "forget_weight": 0.1375, "retain_weight": 1.0}),
        ("wga", {"beta": 5.0, "retain": "ce"}),
        ("dpo", {"beta": 0.1, "retain_weight": 1.0}),
        ("rmu", {"steering": 6.5, "retain_weight": 1200.0, "retain": "hidden_mse"}),
        ("ga", {"retain": "none"}),
        ("graddiff", {"retain": "ce", "retain_weight": 1.0}),
        ("ga_kl", {"retain": "kl", "retain_weight": 1.0}),
        ("idk", {"retain": "ce"}),
    ],
)
def test_published_defaults(name, defaults):
    method = make_method(name)
    assert {key: getattr(method, key) for key in defaults} == defaults
