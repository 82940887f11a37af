"""The contract suite over every registered method, and over two methods a stranger might write."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny_settings import needed

from expunge.errors import ConfigError
from expunge.methods import METHODS, LoopMethod, Objective, make_method
from expunge.testing import METHOD_CHECKS, check_method

CARD = {
    "family": "toy",
    "erases": "influence",
    "targets": ["records"],
    "access": "weights",
    "needs": [],
    "cost": "1F+1B",
    "scale": "single",
    "source": "a test",
    "verified": [],
}


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", METHODS.names())
def test_contract(name, check):
    check(make_method(name, **needed(name)))


@pytest.fixture
def methods(monkeypatch):
    """The registry, forgetting at the end what a test registered."""
    monkeypatch.setattr(METHODS, "_live", dict(METHODS._live))
    monkeypatch.setattr(METHODS, "_live_cards", dict(METHODS._live_cards))
    return METHODS


def test_objective_of_a_stranger_passes(methods):
    @methods.register("toy_hinge", **CARD)
    @dataclass(frozen=True, kw_only=True)
    class ToyHinge(Objective):
        """Push each forget token's NLL up to a margin."""

        reads: ClassVar[tuple[str, ...]] = ("token_logprobs", "reference.token_logprobs")
        margin: float = 3.0

        def loss(self, forget):
            gap = self.margin - (forget.reference.token_logprobs - forget.token_logprobs)
            return forget.mean_rows(gap.clamp(min=0))

    check_method(ToyHinge, margin=1.5)


def test_loop_method_of_a_stranger_passes(methods):
    @methods.register("toy_sharpness", **CARD)
    @dataclass(frozen=True, kw_only=True)
    class ToySharpness(LoopMethod):
        """Ascent at the worst point nearby, with a radius that grows from step to step."""

        reads: ClassVar[tuple[str, ...]] = ("mean_nll",)
        rho: float = 0.05

        def setup(self, subject, request, seed):
            return {"radius": torch.tensor(self.rho)}

        def loss(self, forget, radius):
            return -forget.mean_nll

        def step(self, loop, number):
            loop.gradients(number)
            radius = float(loop.state["radius"])
            norm = torch.sqrt(sum(p.grad.square().sum() for p in loop.parameters))
            moves = [p.grad * (radius / norm) for p in loop.parameters]
            for sign in (1, -1):
                with torch.no_grad():
                    for parameter, move in zip(loop.parameters, moves, strict=True):
                        parameter.add_(move, alpha=sign)
                if sign == 1:
                    loop.optimizer.zero_grad()
                    terms = loop.gradients(number)
            loop.state["radius"] = loop.state["radius"] * 1.5
            return terms

    check_method(ToySharpness)


@dataclass(frozen=True, kw_only=True)
class Sound(Objective):
    """A sound method."""

    reads: ClassVar[tuple[str, ...]] = ("mean_nll",)

    def loss(self, forget):
        return -forget.mean_nll


class TokenMean(Sound):
    """Averages over the tokens of the micro-batch."""

    def loss(self, forget):
        return -forget.mean_nll * forget.num_tokens / forget.num_tokens.float().mean()


class ReadsLess(Sound):
    """Declares what it never reads."""

    reads = ("mean_nll", "reference.sum_nll")


class Deaf(Sound):
    """Its loss does not reach the weights."""

    def loss(self, forget):
        return -forget.mean_nll.detach()


class Moody(Sound):
    """Draws from a generator of the process, not from the seed."""

    def loss(self, forget):
        return -forget.mean_nll * torch.rand(len(forget), generator=CLOCK)


class Amnesiac(Sound):
    """Counts its steps outside the checkpoint."""

    def setup(self, subject, request, seed):
        object.__setattr__(self, "_calls", 0)
        return {}

    def loss(self, forget):
        object.__setattr__(self, "_calls", self._calls + 1)
        return -forget.mean_nll * self._calls


class Careless(Sound):
    """Unlearns the subject it was lent."""

    def unlearn(self, subject, request, workspace):
        with torch.no_grad():
            next(subject.model.parameters()).add_(0.1)
        return workspace.train(self, subject, request)


class Rowwise(Sound):
    """Weighs rows by their place in the batch."""

    def loss(self, forget):
        return -forget.mean_nll * torch.arange(len(forget))


CLOCK = torch.Generator()
FAULTS = {
    TokenMean: "check_accumulation",
    ReadsLess: "check_reads",
    Deaf: "check_accumulation",
    Moody: "check_same_seed_same_bits",
    Amnesiac: "check_resume",
    Careless: "check_one_step",
    Rowwise: "check_padding_and_order",
}


@pytest.mark.parametrize("cls", FAULTS, ids=lambda cls: cls.__name__)
def test_the_suite_finds(cls, methods):
    checks = {check.__name__: check for check in METHOD_CHECKS}
    method = methods.register("toy_fault", **CARD)(dataclass(frozen=True, kw_only=True)(cls))(retain="none")
    checks["check_card"](method)
    with pytest.raises(AssertionError):
        checks[FAULTS[cls]](method)


def test_the_suite_finds_an_incomplete_card(methods):
    card = {k: v for k, v in CARD.items() if k != "source"}
    with pytest.raises(AssertionError, match="source"):
        check_method(methods.register("toy_card", **card)(Sound))


def test_the_suite_finds_hyper_parameters_that_can_be_changed(methods):
    @methods.register("toy_loose", **CARD)
    class Loose(Sound):
        """Not frozen."""

        __setattr__ = object.__setattr__

    with pytest.raises(AssertionError, match="not frozen"):
        check_method(Loose)


def test_make_method_reports_everything_wrong():
    with pytest.raises(ConfigError, match="Did you mean npo"):
        make_method("nop")
    with pytest.raises(ConfigError) as caught:
        make_method("npo", bta=0.1, lambd=1)
    assert len(caught.value.problems) == 2
    assert "beta" in caught.value.problems[0].fix
    with pytest.raises(ConfigError, match="beta is 0"):
        make_method("npo", beta=0)
    with pytest.raises(ConfigError, match="valid number"):
        make_method("wga", beta="strong")
    with pytest.raises(ConfigError, match="Did you mean kl"):
        make_method("graddiff", retain="kll")
    assert make_method("npo", beta="0.2").beta == 0.2  # YAML reads 2e-1 as text
