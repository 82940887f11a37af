"""Gradient conflict, and the table of what was retained."""

from __future__ import annotations

import pytest
import torch
from tests.explain.small_facts import KNOWN, PLANTED, knowing, nll, planted
from tests.tiny_models import make_subject, some_records
from torch.nn.functional import cosine_similarity

from expunge.controls.model_mixing import MixingPath
from expunge.data.request import Request
from expunge.explain.conflict import ConflictLog, conflict_along, gradient_conflict
from expunge.explain.record_gradients import block_parameters
from expunge.explain.retained import RetainedRow, explains, retained_table
from expunge.runs.api import unlearn
from expunge.training import TrainSettings
from expunge.training.gradients import mean_gradient

RECORDS = some_records(6)


def test_conflict_is_the_cosine_by_block():
    subject = make_subject()
    ours, theirs = mean_gradient(subject, RECORDS[:2]), mean_gradient(subject, RECORDS[2:])
    found = gradient_conflict(subject, RECORDS[:2], RECORDS[2:])

    def cosine(names):
        a, b = (torch.cat([g[n].reshape(-1) for n in names]) for g in (ours, theirs))
        return float(cosine_similarity(a, b, dim=0))

    assert found.whole == pytest.approx(cosine(list(ours)), rel=1e-4)
    for layer, names in block_parameters(subject.model).items():
        assert found.layers[layer] == pytest.approx(cosine(names), rel=1e-4)
    same = gradient_conflict(subject, RECORDS[:2], RECORDS[:2])
    assert same.whole == pytest.approx(1.0)
    assert same.forget_norm == pytest.approx(same.retain_norm)


def test_conflict_along_a_path_starts_and_ends_at_its_models(tmp_path):
    start, end = make_subject(seed=0), make_subject(seed=1)
    path = MixingPath(start.clone(), end, tmp_path)
    found = conflict_along(path.at, [0.0, 0.5, 1.0], RECORDS[:2], RECORDS[2:])
    assert [point.at for point in found] == [0.0, 0.5, 1.0]
    for point, subject in ((found[0], start), (found[2], end)):
        assert point.whole == pytest.approx(
            gradient_conflict(subject, RECORDS[:2], RECORDS[2:]).whole, rel=1e-4
        )


def test_conflict_is_logged_step_by_step():
    subject, log = make_subject(), ConflictLog(RECORDS[:2], RECORDS[2:4], every=2)
    before = subject.fingerprint()
    log.begin(subject)
    first = log.found[0]
    assert subject.fingerprint() == before
    for step in range(1, 5):
        assert log.after_step(step, subject) is False
    assert [point.at for point in log.found] == [0, 2, 4]
    assert first.whole == gradient_conflict(subject, RECORDS[:2], RECORDS[2:4]).whole


def test_retained_row_is_measured_on_both_models():
    before, after = planted(1), knowing()
    rows = retained_table(before, after, PLANTED, KNOWN[:6])
    assert sorted(row.record for row in rows) == sorted(record.id for record in KNOWN[:6])
    assert [row.damage for row in rows] == sorted((row.damage for row in rows), reverse=True)
    row, record = rows[0], next(r for r in KNOWN if r.id == rows[0].record)
    g_f, g_i = mean_gradient(before, PLANTED), mean_gradient(before, [record])
    assert row.damage == pytest.approx(sum(float((g_f[n] * g_i[n]).sum()) for n in g_f), rel=1e-3, abs=1e-9)
    assert -row.before == pytest.approx(nll(before, [record]), rel=1e-3)
    assert -row.after == pytest.approx(nll(after, [record]), rel=1e-3)
    assert row.change == row.after - row.before
    assert row.nearest in {r.id for r in PLANTED}
    assert -1 <= row.similarity <= 1


def test_nearness_explains_who_fell():
    """Climbing the loss of facts in one model: those whose gradient points the same way lose more."""
    subject = knowing()
    climbed = subject.clone()
    gradient = mean_gradient(climbed, KNOWN[:3])
    scale = 0.5 / float(sum(g.square().sum() for g in gradient.values()) ** 0.5)
    with torch.no_grad():
        for name, parameter in climbed.model.named_parameters():
            parameter += scale * gradient[name]
    rows = retained_table(subject, climbed, KNOWN[:3], KNOWN[3:])
    assert explains(rows)["damage"] > 0.4
    flat = [RetainedRow("a", "", 0.0, 0.0, "f", 0.0, -1.0, -1.0) for _ in range(4)]
    assert explains(flat) == {"damage": None, "conflict": None, "similarity": None}


def test_the_log_watches_a_training_and_changes_nothing():
    request = Request({"forget": tuple(KNOWN[:4]), "retain": tuple(KNOWN[4:])})
    settings = TrainSettings(steps=4, lr=1e-3, batch=4)
    log = ConflictLog(request.forget, request.retain, every=2)
    watched = unlearn(knowing(), request, "npo", settings, controls=[log])
    alone = unlearn(knowing(), request, "npo", settings)
    assert watched.fingerprint() == alone.fingerprint()
    assert [point.at for point in log.found] == [0, 2, 4]
    start = gradient_conflict(knowing(), request.forget, request.retain)
    end = gradient_conflict(watched, request.forget, request.retain)
    assert log.found[0].whole == pytest.approx(start.whole, rel=1e-4)
    assert log.found[-1].whole == pytest.approx(end.whole, rel=1e-4)
