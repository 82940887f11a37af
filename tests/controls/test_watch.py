"""watch: a training that wrecks the model is ended in time; one that does not is left alone."""

import math

import pytest

from expunge.controls import Scene, make_control
from expunge.controls.bar import Bar, Probe
from expunge.errors import ConfigError
from expunge.methods import make_method
from expunge.metrics import make_metric
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, finetune


@pytest.fixture(scope="module")
def knowing():
    subject, request = tiny_subject(seed=1), tiny_request(6, 6)
    records = [*request.forget, *request.retain, *request["calibration"]]
    finetune(subject, records, TrainSettings(steps=60, lr=1e-2, batch=16, warmup=0.05))
    return subject, request


def perplexity(subject, request):
    return Probe(subject, request["calibration"], make_metric("perplexity"))(subject).value


def run(knowing, method, watch=None, steps=40, folder=None, **settings):
    subject, request = knowing
    metric = make_metric("perplexity")
    scene = Scene(
        Bar(metric, 0.9, Probe(subject, request["calibration"], metric)(subject)), request["calibration"]
    )
    hooks = [] if watch is None else [make_control("watch", **watch).attach(scene)]
    plain = {"batch": 6, "lr": 5e-3, "warmup": 0.0, "schedule": "constant", "steps": steps}
    workspace = Workspace(TrainSettings(**{**plain, **settings}), folder, controls=hooks)
    return make_method(method).unlearn(subject, request, workspace), workspace


def test_a_wreck_is_ended_and_its_last_sound_weights_return(knowing):
    subject, request = knowing
    wreck, _ = run(knowing, "ga", lr=2e-3)
    saved, workspace = run(knowing, "ga", {"every": 1, "patience": 1, "ratio": 1.5}, lr=2e-3)
    start = perplexity(subject, request)
    assert perplexity(wreck, request) > 3 * start
    assert perplexity(saved, request) <= 1.5 * start
    assert workspace.result.status == "stopped"
    assert workspace.result.steps < 40
    assert "excessive unlearning" in workspace.result.notes[0]
    assert fingerprint(saved.model) != fingerprint(subject.model), "it had moved within reason"


def test_a_sound_training_is_not_touched(knowing):
    """Measuring changes no bit, and a dip within the patience is forgiven."""
    plain, _ = run(knowing, "graddiff", lr=3e-4, steps=20)
    watched, workspace = run(knowing, "graddiff", {"every": 1, "ratio": 50.0}, lr=3e-4, steps=20)
    assert fingerprint(plain.model) == fingerprint(watched.model)
    assert workspace.result.status == "finished"
    assert workspace.result.notes == []
    wreck, _ = run(knowing, "ga", steps=10)
    patient, _ = run(knowing, "ga", {"every": 1, "patience": 10}, steps=10)
    assert fingerprint(wreck.model) == fingerprint(patient.model)


def test_watch_resumes_to_the_same_bits(knowing, tmp_path, monkeypatch):
    from expunge.training import loop

    straight, _ = run(knowing, "ga", {"every": 2, "patience": 1}, checkpoint_seconds=0.0)
    saves, real = [], loop.save_checkpoint

    def die(*args):
        real(*args)
        saves.append(1)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        run(knowing, "ga", {"every": 2, "patience": 1}, folder=tmp_path, checkpoint_seconds=0.0)
    monkeypatch.setattr(loop, "save_checkpoint", real)
    resumed, _ = run(knowing, "ga", {"every": 2, "patience": 1}, folder=tmp_path, checkpoint_seconds=0.0)
    assert fingerprint(resumed.model) == fingerprint(straight.model)


def test_without_a_ratio_the_limit_is_a_uniform_guess(knowing):
    """A damaged model is left alone, one that is worse than guessing is not."""
    subject, request = knowing
    damaged, workspace = run(knowing, "ga", {"every": 1, "patience": 0}, lr=1e-3, steps=4)
    assert workspace.result.status == "finished"
    assert 1.5 * perplexity(subject, request) < perplexity(damaged, request) < subject.vocab_size
    saved, workspace = run(knowing, "ga", {"every": 1, "patience": 0}, lr=2e-3, steps=60)
    wreck, _ = run(knowing, "ga", lr=2e-3, steps=60)
    assert workspace.result.status == "stopped"
    assert perplexity(saved, request) <= subject.vocab_size < perplexity(wreck, request)


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match="ratio") as caught:
        make_control("watch", ratio=0.5, patience=-1).attach(None)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError):
        make_control("watch", ratio=math.nan).attach(None)
