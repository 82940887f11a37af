"""Optimizers: each step by hand, bounds, quadratics, resume."""

import os
import signal
import sys
from dataclasses import replace

import pytest
import torch

from expunge.errors import MissingDependency
from expunge.methods import make_method
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace
from expunge.training.hooks import TrainingControl
from expunge.training.optimizers import Sophia, make_optimizer

GRADIENTS = torch.tensor([[0.5, -2.0, 1e-3, 0.0], [0.1, 3.0, -2e-3, 0.0], [-0.4, 1.0, 1e-4, 0.0]])


def settings(**more):
    return TrainSettings(**{"steps": 6, "batch": 3, "lr": 1e-2, "checkpoint_seconds": 0.0, **more})


def steps(optimizer, parameter, gradients):
    """The weights after each gradient."""
    seen = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        seen.append(parameter.detach().clone())
    return seen


def start():
    return torch.nn.Parameter(torch.tensor([1.0, -1.0, 0.5, 2.0]))


def test_sophia_by_hand():
    parameter = start()
    made = make_optimizer([parameter], settings(optimizer="sophia", weight_decay=0.1))
    found = steps(made, parameter, GRADIENTS)
    theta, mean, hessian = start().detach().double(), torch.zeros(4).double(), torch.zeros(4).double()
    for gradient, weights in zip(GRADIENTS.double(), found, strict=True):
        mean = 0.9 * mean + 0.1 * gradient
        hessian = 0.95 * hessian + 0.05 * gradient * gradient
        ratio = (mean.abs() / (0.04 * 5120 * hessian + 1e-15)).clamp(max=1)
        theta = theta * (1 - 1e-2 * 0.1) - 1e-2 * mean.sign() * ratio
        torch.testing.assert_close(weights.double(), theta, rtol=1e-6, atol=1e-7)
    assert 0 < float(ratio[0]) < 1
    assert float(ratio[2]) == 1


def test_no_coordinate_moves_more_than_lr():
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(50))
    made = Sophia([parameter], lr=0.01, weight_decay=0.0)
    before, largest = parameter.detach().clone(), 0.0
    for exponent in range(-12, 12):
        gradient = 10.0**exponent * torch.randn(50, generator=generator)
        (after,) = steps(made, parameter, [gradient])
        largest = max(largest, float((after - before).abs().max()))
        before = after
    assert 0.0099 < largest <= 0.01 * (1 + 1e-5)


def test_without_curvature_it_is_a_sign_step():
    parameter = start()
    made = Sophia([parameter], lr=0.01, betas=(0.9, 1.0), weight_decay=0.0)  # h stays zero
    (after,) = steps(made, parameter, GRADIENTS[:1])
    torch.testing.assert_close(after, start().detach() - 0.01 * GRADIENTS[0].sign())


def test_fewer_steps_than_sgd_on_a_diagonal_quadratic():
    curvature = torch.tensor([100.0, 1.0, 0.05])

    def count(make, limit=5000):
        theta = torch.nn.Parameter(torch.ones(3))
        optimizer = make([theta])
        for step in range(limit):
            if float(theta.detach().abs().max()) < 0.05:
                return step
            theta.grad = curvature * theta.detach()
            optimizer.step()
        return limit

    sophia = count(lambda p: Sophia(p, lr=0.01, batch_constant=1, weight_decay=0.0))
    sgd = min(count(lambda p, lr=lr: torch.optim.SGD(p, lr=lr)) for lr in (0.019, 0.015, 0.01))
    assert 90 <= sophia < sgd / 5


def test_sgd_and_adamw_by_hand():
    parameter = start()
    found = steps(
        make_optimizer([parameter], settings(optimizer="sgd", weight_decay=0.1)), parameter, GRADIENTS
    )
    theta = start().detach()
    for gradient, weights in zip(GRADIENTS, found, strict=True):
        theta = theta - 1e-2 * (gradient + 0.1 * theta)  # no momentum
        torch.testing.assert_close(weights, theta)
    parameter = start()
    found = steps(make_optimizer([parameter], settings(weight_decay=0.1)), parameter, GRADIENTS)
    theta, first, second = start().detach(), torch.zeros(4), torch.zeros(4)
    for t, (gradient, weights) in enumerate(zip(GRADIENTS, found, strict=True), 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        step = first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        theta = theta * (1 - 1e-3) - 1e-2 * step
        torch.testing.assert_close(weights, theta)


def test_betas_are_each_optimizers_own_unless_set():
    betas = lambda **more: make_optimizer([start()], settings(**more)).param_groups[0]["betas"]  # noqa: E731
    assert betas() == (0.9, 0.999)
    assert betas(optimizer="sophia") == (0.9, 0.95)
    assert betas(optimizer="sophia", betas=(0.8, 0.9)) == betas(betas=(0.8, 0.9)) == (0.8, 0.9)


class StopAt(TrainingControl):
    def __init__(self, step):
        self.step = step

    def after_step(self, step, subject):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)
        return False


def unlearn(optimizer, folder=None, stop=-1, width=32):
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    space = Workspace(settings(optimizer=optimizer), folder, controls=[StopAt(stop)])
    return make_method("graddiff").unlearn(tiny_subject(config=config), tiny_request(), space)


@pytest.mark.parametrize("optimizer", ["sophia", "sgd"])
def test_a_resumed_run_has_the_bits_of_a_straight_one(optimizer, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        unlearn(optimizer, tmp_path, stop=3)
    resumed = unlearn(optimizer, tmp_path)
    assert fingerprint(resumed.model) == fingerprint(unlearn(optimizer).model)


def test_missing_bitsandbytes_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependency, match=r"optimizer: adamw_8bit.*pip install bitsandbytes"):
        make_optimizer([start()], settings(optimizer="adamw_8bit"))


def test_8_bit_moments_train_and_resume(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the optional package bitsandbytes is not installed")
    with pytest.raises(KeyboardInterrupt):
        unlearn("adamw_8bit", tmp_path, stop=3, width=64)
    resumed, straight = unlearn("adamw_8bit", tmp_path, width=64), unlearn("adamw_8bit", width=64)
    assert fingerprint(resumed.model) == fingerprint(straight.model)
    exact = unlearn("adamw", width=64)
    pairs = zip(straight.model.parameters(), exact.model.parameters(), strict=True)
    assert all((a - b).abs().max() < 0.06 for a, b in pairs)  # six steps of at most lr


def test_moments_of_large_tensors_are_bytes():
    pytest.importorskip("bitsandbytes", reason="the optional package bitsandbytes is not installed")
    large, small = torch.nn.Parameter(torch.ones(64, 64)), torch.nn.Parameter(torch.ones(10))
    made = make_optimizer([large, small], settings(optimizer="adamw_8bit"))
    large.grad, small.grad = torch.ones(64, 64), torch.ones(10)
    made.step()
    assert made.state[large]["state1"].dtype is torch.uint8
    assert made.state[small]["state1"].dtype is torch.float32


# soul -----------------------------------------------------------------------------------------------------


def test_soul_is_gradient_difference_under_sophia():
    soul = make_method("soul")
    assert (soul.retain, soul.retain_weight, soul.forget_weight) == ("ce", 2.0, 1.0)
    chosen = soul.settings_for(TrainSettings(lr=1e-3), tiny_request())
    assert (chosen.optimizer, chosen.weight_decay, chosen.lr) == ("sophia", 0.1, 1e-3)
    kept = soul.settings_for(TrainSettings(optimizer="sgd", weight_decay=0.0), tiny_request())
    assert (kept.optimizer, kept.weight_decay) == ("sgd", 0.0)

    def run(method, **more):
        return make_method(method).unlearn(tiny_subject(), tiny_request(), Workspace(settings(**more)))

    plain = replace(make_method("graddiff"), retain_weight=2.0)
    same = Workspace(settings(optimizer="sophia", weight_decay=0.1))
    expected = plain.unlearn(tiny_subject(), tiny_request(), same)
    assert fingerprint(run("soul").model) == fingerprint(expected.model)
    assert fingerprint(run("soul", optimizer="adamw").model) != fingerprint(expected.model)
