"""The dual multiplier: once per optimizer step, never negative, warm-up, maximum, resume."""

import math

import pytest

from expunge.errors import ConfigError
from expunge.methods import make_method
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace
from expunge.training.dual import DualMultiplier
from expunge.training.hooks import TrainingControl
from expunge.training.retain import retain_values


def dual(start=1.0, **settings):
    multiplier = DualMultiplier(limit=1.0, **settings)
    assert multiplier.weights(0.3, start) == (0.3, start)
    return multiplier


def after(multiplier, *values):
    for value in values:
        multiplier.observe({"forget": -5.0, "retain": value})
    return multiplier.weights(1.0, 1.0)[1]


def test_dual_worked_example():
    assert after(dual(eta=0.5), 1.4) == pytest.approx(1.2)
    assert after(dual(eta=0.5), -2.0) == 0.0


def test_dual_rises_iff_violated():
    assert after(dual(), 1.01) > 1.0
    assert after(dual(), 1.0) == 1.0
    assert after(dual(), 0.99) < 1.0


def test_dual_lambda_never_negative():
    multiplier = dual(eta=3.0)
    assert after(multiplier, 0.0, 0.0) == 0.0
    assert after(multiplier, 1.5) == 1.5, "and it comes back from zero at once"


def test_dual_stays_at_its_maximum_and_says_so():
    multiplier = dual(eta=10.0, maximum=4.0)
    assert after(multiplier, *[2.0] * 9) == 4.0
    assert "infeasible" not in multiplier.finish(None)
    after(multiplier, 2.0)
    assert "infeasible" in multiplier.finish(None)


def test_dual_without_a_retain_term_does_nothing():
    multiplier = dual()
    multiplier.observe({"forget": -1.0})
    assert multiplier.weights(1.0, 1.0) == (1.0, 1.0)
    assert multiplier.finish(None) is None


# In training ------------------------------------------------------------------------------------------


class Seen(TrainingControl):
    """The task, and λ and R of every step; stands behind the multiplier."""

    def __init__(self):
        self.lambdas, self.retain = [], []

    def prepare(self, task):
        self.task, self.start = task, retain_values(task)

    def weights(self, forget, retain):
        self.now = retain
        return forget, retain

    def observe(self, terms):
        self.lambdas.append(self.now)
        self.retain.append(terms["retain"])


def run(multiplier, folder=None, controls=(), retain="ce", **settings):
    seen = Seen()
    train = TrainSettings(**{"steps": 6, "batch": 8, "lr": 1e-3, "warmup": 0.0, **settings})
    workspace = Workspace(train, folder, controls=[multiplier, seen, *controls])
    result = make_method("graddiff", retain=retain).unlearn(tiny_subject(), tiny_request(), workspace)
    return result, seen, workspace


def test_dual_updates_per_optimizer_step():
    """Four micro-batches or one: the same λ, from the mean over all rows of the step."""
    lambdas = []
    for accumulate in (1, 4):
        _, seen, _ = run(DualMultiplier(eta=0.2, limit=5.0), accumulate=accumulate)
        assert len(seen.lambdas) == 6
        lambdas.append(seen.lambdas)
    expected = [1.0]
    for value in seen.retain[:-1]:
        expected.append(max(0.0, expected[-1] + 0.2 * (value - 5.0)))
    assert lambdas[1] == pytest.approx(expected)
    assert lambdas[0] == pytest.approx(lambdas[1], rel=1e-4)
    assert len(set(lambdas[0])) > 1


def test_dual_limit_is_the_start_value_of_the_whole_retain_set_with_slack():
    multiplier = DualMultiplier(slack=0.25)
    _, seen, workspace = run(multiplier)
    assert multiplier.limit == pytest.approx(1.25 * float(seen.start.mean()), rel=1e-6)
    assert any("dual λ: ended at" in note for note in workspace.result.notes)


def test_dual_needs_a_limit_for_a_loss_on_weights():
    with pytest.raises(ConfigError, match="l2"):
        run(DualMultiplier(), retain="l2")


def test_dual_warm_up_is_a_share_of_the_steps():
    _, seen, _ = run(DualMultiplier(eta=0.2, limit=5.0, warmup=0.5))
    assert seen.lambdas[:4] == [1.0] * 4
    assert seen.lambdas[4] == pytest.approx(1.0 + 0.2 * (seen.retain[3] - 5.0))


def test_dual_lambda_survives_resume(tmp_path):
    class Kill(TrainingControl):
        def after_step(self, step, subject):
            if step == 5:
                raise KeyboardInterrupt
            return False

    make = lambda: DualMultiplier(eta=0.2, warmup=0.2)  # noqa: E731
    straight, expected, _ = run(make(), controls=[TrainingControl()])
    with pytest.raises(KeyboardInterrupt):
        run(make(), tmp_path, controls=[Kill()], checkpoint_seconds=0.0)
    resumed, seen, _ = run(make(), tmp_path, controls=[TrainingControl()], checkpoint_seconds=0.0)
    assert seen.lambdas == expected.lambdas[-len(seen.lambdas) :]
    assert 0 < len(seen.lambdas) < 6
    assert fingerprint(resumed.model) == fingerprint(straight.model)


def test_dual_state_is_plain_numbers():
    multiplier = dual(eta=0.5)
    after(multiplier, 1.4, 1.4)
    plain, tensors = multiplier.state()
    assert not tensors
    other = DualMultiplier(limit=1.0, eta=0.5)
    other.load_state(plain, tensors)
    assert other.weights(1.0, 1.0) == multiplier.weights(1.0, 1.0)
    assert math.isfinite(plain["value"])
