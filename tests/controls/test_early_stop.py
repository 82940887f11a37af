"""early_stop: the last good checkpoint comes back, and measuring changes nothing."""

import math

import pytest
import torch

from expunge.controls import Scene, make_control
from expunge.controls.bar import Bar, Probe
from expunge.controls.early_stop import EarlyStop
from expunge.controls.uwc import UWC
from expunge.errors import ConfigError
from expunge.methods import make_method
from expunge.metrics import make_metric
from expunge.metrics.base import Score
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, finetune
from expunge.training.hooks import TrainingControl


@pytest.fixture(scope="module")
def knowing():
    subject, request = tiny_subject(seed=1), tiny_request(6, 6)
    records = [*request.forget, *request.retain, *request["calibration"]]
    finetune(subject, records, TrainSettings(steps=60, lr=1e-2, batch=16, warmup=0.05))
    return subject, request


def scene_of(subject, request, keep=0.9):
    metric = make_metric("probability")
    original = Probe(subject, request["calibration"], metric)(subject)
    return Scene(Bar(metric, keep, original), request["calibration"])


def run(knowing, controls, folder=None, steps=12, name="ga", **more):
    subject, request = knowing
    fixed = {"batch": 6, "lr": 1e-4, "warmup": 0.0, "schedule": "constant"}
    workspace = Workspace(TrainSettings(steps=steps, **{**fixed, **more}), folder, controls=controls)
    return make_method(name).unlearn(subject, request, workspace), workspace


class Marks(TrainingControl):
    """Keeps the fingerprint of every step, or of some."""

    def __init__(self, steps=None):
        self.marks, self.steps = {}, steps

    def begin(self, subject):
        self.marks[0] = fingerprint(subject.model)

    def after_step(self, step, subject):
        if self.steps is None or step in self.steps:
            self.marks[step] = fingerprint(subject.model)
        return False


# The worked example: a scripted curve -----------------------------------------------------------------

CURVE = dict(zip(range(0, 151, 25), [0.60, 0.58, 0.55, 0.51, 0.56, 0.50, 0.49], strict=True))


class Scripted(type(EarlyStop().attach(Scene(None, ())))):
    """Early stop on values given by step rather than measured."""

    def begin(self, subject):
        super().begin(subject)
        self._probe = lambda _: Score("probability", "calibration", self.script[self._last_step])


def scripted(script, every, patience, keep=0.9, steps=None):
    subject, request = tiny_subject(), tiny_request()
    original = Score("probability", "calibration", script[0])
    scene = Scene(Bar(make_metric("probability"), keep, original), request["calibration"])
    stop, marks = Scripted(EarlyStop(every=every, patience=patience), scene), Marks(script)
    stop.script = script
    settings = TrainSettings(steps=steps or max(script), batch=8, lr=1e-4, warmup=0.0)
    workspace = Workspace(settings, controls=[marks, stop])
    result = make_method("ga").unlearn(subject, request, workspace)
    kept = next(step for step, mark in marks.marks.items() if mark == fingerprint(result.model))
    return kept, workspace


@pytest.mark.parametrize(("patience", "stopped", "kept"), [(0, 75, 50), (1, 150, 100)])
def test_early_stop_returns_last_good_checkpoint(patience, stopped, kept):
    found, workspace = scripted(CURVE, 25, patience)
    assert found == kept
    assert workspace.result.steps == stopped
    assert workspace.result.status == "stopped"
    assert f"step {kept} were restored" in workspace.result.notes[0]


def test_early_stop_nonfinite_counts_as_failure():
    for bad in (None, math.nan):
        kept, workspace = scripted({0: 0.6, 2: 0.59, 4: bad}, 2, 0)
        assert (kept, workspace.result.steps) == (2, 4)


def test_early_stop_measures_the_last_step_too():
    kept, workspace = scripted({0: 0.6, 2: 0.59, 4: 0.58, 5: 0.1}, 2, 0, steps=5)
    assert kept == 4
    assert workspace.result.status == "finished"
    kept, _ = scripted({0: 0.6, 2: 0.59, 4: 0.58, 5: 0.57}, 2, 0, steps=5)
    assert kept == 5


# On a model -------------------------------------------------------------------------------------------


def test_early_stop_result_meets_bar_and_then_uwc_is_one(knowing):
    subject, request = knowing
    scene = scene_of(subject, request)
    result, workspace = run(knowing, [EarlyStop(every=2).attach(scene)], steps=30)
    assert workspace.result.status == "stopped"
    probe = Probe(subject, request["calibration"], scene.bar.metric)
    assert scene.bar.met_by(probe(result).value)
    assert fingerprint(result.model) != fingerprint(subject.model)
    free, _ = run(knowing, [], steps=30)
    assert not scene.bar.met_by(probe(free).value)
    found = UWC(taus=()).calibrate(scene.bar, lambda alpha: probe(result), ["a"] * 4)
    assert (found.found[0.9].alpha, found.passes) == (1.0, 1)


def test_early_stop_step_zero_fallback_is_original_bitwise(knowing):
    subject, request = knowing
    result, workspace = run(knowing, [EarlyStop(every=1).attach(scene_of(subject, request, 1.0))], lr=0.1)
    assert fingerprint(result.model) == fingerprint(subject.model)
    assert "could not move within the bar" in workspace.result.notes[0]


def test_early_stop_measurement_does_not_change_training(knowing):
    subject, request = knowing
    marks, plain = Marks(), Marks()
    run(knowing, [marks, EarlyStop(every=1, patience=99).attach(scene_of(subject, request))])
    run(knowing, [plain])
    assert marks.marks == plain.marks


def test_early_stop_logs_calibration_only_where_measured(knowing):
    subject, request = knowing
    _, workspace = run(knowing, [EarlyStop(every=3, patience=99).attach(scene_of(subject, request))])
    measured = [entry["step"] for entry in workspace.result.history if entry["calibration"] is not None]
    assert measured == [3, 6, 9, 12]


class DieAt(TrainingControl):
    def __init__(self, step):
        self.step = step

    def after_step(self, step, subject):
        if step == self.step:
            raise InterruptedError
        return False


@pytest.mark.parametrize("moment", [1, 4, 7, 11])
@pytest.mark.parametrize(("every", "patience"), [(3, 99), (5, 99), (2, 1)])
def test_killed_and_resumed_it_returns_the_same_checkpoint(knowing, tmp_path, moment, every, patience):
    subject, request = knowing

    def controls(step):
        scene = scene_of(subject, request, keep=0.85)
        return [EarlyStop(every=every, patience=patience).attach(scene), DieAt(step)]

    straight, workspace = run(knowing, controls(-1), steps=18)
    assert workspace.result.steps > 11
    with pytest.raises(InterruptedError):
        run(knowing, controls(moment), tmp_path, steps=18, checkpoint_seconds=0.0)
    resumed, again = run(knowing, controls(-1), tmp_path, steps=18, checkpoint_seconds=0.0)
    assert fingerprint(resumed.model) == fingerprint(straight.model) != fingerprint(subject.model)
    assert (again.result.status, again.result.notes) == (workspace.result.status, workspace.result.notes)


@pytest.mark.parametrize("keep", [0.02, 0.97], ids=["met", "missed"])
def test_killed_after_the_last_step_the_last_measurement_is_still_made(knowing, tmp_path, keep):
    subject, request = knowing

    class DieAtTheEnd(TrainingControl):
        def finish(self, _):
            if self.dies:
                raise InterruptedError

    def controls(dies):
        last = DieAtTheEnd()
        last.dies = dies
        return [last, EarlyStop(every=3, patience=9).attach(scene_of(subject, request, keep))]

    straight, _ = run(knowing, controls(False), steps=8)
    with pytest.raises(InterruptedError):
        run(knowing, controls(True), tmp_path, steps=8, checkpoint_seconds=0.0)
    resumed, _ = run(knowing, controls(False), tmp_path, steps=8, checkpoint_seconds=0.0)
    assert fingerprint(resumed.model) == fingerprint(straight.model)


def test_early_stop_after_divergence_returns_finite_weights(knowing):
    subject, request = knowing
    result, workspace = run(knowing, [EarlyStop(every=50).attach(scene_of(subject, request))], lr=1e18)
    assert workspace.result.status == "diverged"
    assert fingerprint(result.model) == fingerprint(subject.model)
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_settings_are_checked():
    for bad in ({"every": 0}, {"patience": -1}):
        with pytest.raises(ConfigError, match="patience"):
            make_control("early_stop", **bad).attach(Scene(None, ()))
