"""The path of a wrapper: its strength, from the original to the wrapper as it is."""

from __future__ import annotations

import pytest
import torch

from expunge.controls.bar import Bar, Probe, choose_metric
from expunge.controls.model_mixing import MixingPath
from expunge.controls.paths import StrengthPath, path_of
from expunge.controls.uwc import UWC
from expunge.measure import EvidencePlan, take_evidence
from expunge.subjects.wrappers.contrast import Contrast, ContrastRule
from expunge.subjects.wrappers.guarded import Guarded, GuardRule
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, finetune


class Switch(Guarded):
    """A wrapper without a knob."""

    knob = False


@pytest.fixture(scope="module")
def known():
    """A model that knows the retain and calibration answers, and one that was taught them backwards."""
    subject, request = tiny_subject(seed=1), tiny_request(4, 4)
    kept = [*request.retain, *request["calibration"]]
    settings = TrainSettings(steps=70, lr=1e-2, batch=8, warmup=0.05, schedule="cosine")
    finetune(subject, kept, settings)
    backwards = tiny_subject(seed=1)
    finetune(backwards, [r.answered(r.answer[::-1]) for r in kept], settings)
    return subject, backwards, request


def test_the_path_fits_what_was_made(known, tmp_path):
    subject, other, _ = known
    guarded = Guarded(subject, GuardRule())
    assert isinstance(path_of(subject, guarded, tmp_path), StrengthPath)
    assert isinstance(path_of(subject.clone(), other, tmp_path), MixingPath)
    assert not list((tmp_path).glob("wrapper*"))


def test_its_ends_are_the_original_and_the_wrapper(known):
    subject, other, _ = known
    wrapped = Contrast(subject, ContrastRule(-1.0), {"plus": other}).at(0.8)
    path = StrengthPath(subject, wrapped)
    assert path.at(0.0) is subject
    assert path.at(1.0).fingerprint() == wrapped.fingerprint()
    assert path.at(0.5).strength == pytest.approx(0.4)
    assert path.at(0.5).base is subject
    for outside in (-0.1, 1.1):
        with pytest.raises(ValueError, match="outside"):
            path.at(outside)


def calibrate(path, subject, request):
    calibration = {"calibration": request["calibration"]}
    evidence = take_evidence(subject, calibration, plan=EvidencePlan(("gold",), generate=False))[
        "calibration"
    ]
    metric, score = choose_metric("probability", evidence)
    bar = Bar(metric, 0.9, score)
    probe = Probe(subject, request["calibration"], metric)
    entities = evidence.entities(score.per_record)
    found = UWC(taus=()).calibrate(bar, lambda a: probe(path.at(a)), entities).found[0.9]
    return found.alpha, bar, probe


def test_uwc_finds_the_strength_at_which_the_bar_still_holds(known):
    subject, backwards, request = known
    path = StrengthPath(subject, Contrast(subject, ContrastRule(2.0, 0.0), {"plus": backwards}))
    before = subject.fingerprint()
    alpha, bar, probe = calibrate(path, subject, request)
    assert 0 < alpha < 1
    assert bar.met_by(probe(path.at(alpha)).value)
    assert not bar.met_by(probe(path.at(min(1.0, alpha + 1 / 64))).value)
    assert not bar.met_by(probe(path.at(1.0)).value)
    assert subject.fingerprint() == before


def test_without_a_knob_the_bar_accepts_or_rejects(known):
    subject, _, request = known
    harsh = Switch(subject, GuardRule("No.", instruction="?"))
    path = StrengthPath(subject, harsh)
    assert [path.at(a) for a in (0.0, 1e-3, 0.5, 1.0)] == [subject, harsh, harsh, harsh]
    alpha, bar, probe = calibrate(path, subject, request)
    accepted = bar.met_by(probe(harsh).value)
    assert alpha == float(accepted)
    assert not accepted, "an instruction this model has never seen throws it off"
    mild = StrengthPath(subject, Switch(subject, GuardRule("No.")))
    assert calibrate(mild, subject, request)[0] == 1.0


def test_strength_acts_on_logits_as_stated(known):
    """z' − z_base = s·w·z_plus without a filter."""
    from expunge.data.batching import collate

    subject, other, request = known
    batch = collate([subject.encoder.encode(r) for r in request.retain], 0)
    path = StrengthPath(subject, Contrast(subject, ContrastRule(-1.5, 0.0), {"plus": other}))
    z, a = subject.logits(batch), other.logits(batch)
    for alpha in (0.25, 0.5, 1.0):
        assert torch.allclose(path.at(alpha).logits(batch), z - 1.5 * alpha * a, atol=1e-4)
