"""stop_at_unseen: training ends at the first look at which forget is known no better than holdout."""

from dataclasses import replace

import pytest

from expunge.controls import Scene, make_control
from expunge.controls.bar import Bar, Probe
from expunge.errors import ConfigError, DataError
from expunge.methods import make_method
from expunge.metrics import make_metric
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, finetune

MEMORY = ("extraction_strength", "exact_memorization")


@pytest.fixture(scope="module")
def knowing():
    subject, request = tiny_subject(seed=1), tiny_request(6, 6)
    records = [*request.forget, *request.retain]
    finetune(subject, records, TrainSettings(steps=70, lr=1e-2, batch=12, warmup=0.05, schedule="cosine"))
    return subject, request


def memory(subject, records):
    return [Probe(subject, records, make_metric(name))(subject).value for name in MEMORY]


def unlearn(knowing, controls=True, request=None, every=0, **settings):
    subject, own = knowing
    metric = make_metric("probability")
    scene = Scene(Bar(metric, 0.9, Probe(subject, own["calibration"], metric)(subject)), own["calibration"])
    hooks = [make_control("stop_at_unseen", every=every).attach(scene)] if controls else []
    train = TrainSettings(**{"batch": 6, "lr": 1e-3, "warmup": 0.0, "schedule": "constant", **settings})
    workspace = Workspace(train, controls=hooks)
    return make_method("ga").unlearn(subject, request or own, workspace), workspace


def test_it_stops_at_the_first_look_at_the_level_of_unseen_text(knowing):
    subject, request = knowing
    levels = memory(subject, request["holdout"])
    assert all(v > level for v, level in zip(memory(subject, request.forget), levels, strict=True))
    result, workspace = unlearn(knowing, steps=60, every=2)
    assert workspace.result.status == "stopped"
    assert workspace.result.steps % 2 == 0
    assert all(v <= level for v, level in zip(memory(result, request.forget), levels, strict=True))
    before, _ = unlearn(knowing, controls=False, steps=workspace.result.steps - 2)
    assert any(v > level for v, level in zip(memory(before, request.forget), levels, strict=True))
    assert any("was reached" in n or "unseen text reached" in n for n in workspace.result.notes)


def test_looking_changes_nothing(knowing):
    watched, workspace = unlearn(knowing, steps=3, lr=1e-5)
    assert workspace.result.status == "finished"
    assert any("not reached" in note for note in workspace.result.notes)
    alone, _ = unlearn(knowing, controls=False, steps=3, lr=1e-5)
    assert fingerprint(watched.model) == fingerprint(alone.model)


def test_it_needs_holdout_and_a_sound_interval(knowing):
    _, request = knowing
    bare = replace(request, splits={k: v for k, v in request.splits.items() if k != "holdout"})
    with pytest.raises(DataError, match="holdout"):
        unlearn(knowing, request=bare, steps=1)
    with pytest.raises(ConfigError, match="every"):
        unlearn(knowing, every=-1, steps=1)


def test_both_measures_must_come_down(knowing, monkeypatch):
    """Levels (0.2, 0.3), then two measures a look: one at its level is not enough."""
    looks = iter([0.2, 0.3, 0.9, 0.9, 0.2, 0.4, 0.3, 0.3, 0.2, 0.3])
    monkeypatch.setattr("expunge.controls.stop_at_unseen._value", lambda probe, subject: next(looks))
    _, workspace = unlearn(knowing, steps=6, every=1, lr=1e-5)
    assert (workspace.result.status, workspace.result.steps) == ("stopped", 4)
