"""Attributions against brute force, against retraining, and on memorized facts."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.explain.small_facts import ASKED_OTHERWISE, KNOWN, blank, knowing, nll
from tests.tiny_models import make_subject, some_records

from expunge.data.records import Record
from expunge.errors import ConfigError, MissingDependency
from expunge.explain.attribution.ekfac import Influence
from expunge.explain.attribution.gradient_dot import GradientDot
from expunge.explain.attribution.tracin import TracIn
from expunge.explain.base import ATTRIBUTIONS
from expunge.subjects import save_subject
from expunge.training.curvature import language_problem, linear_weights
from expunge.training.gradients import answer_rows, differentiable, row_losses


def brute_gradient(subject, record) -> torch.Tensor:
    """One plain backward pass over the answer's mean NLL, by the library's own loss."""
    row = subject.encoder.encode(record)
    labels = torch.tensor([[-100] * row.num_prompt + list(row.answer_ids)])
    subject.model.zero_grad()
    subject.model(torch.tensor([row.ids]), labels=labels).loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in subject.model.parameters()])


@pytest.mark.parametrize("cosine", [False, True])
def test_gradient_dot_is_brute_force(cosine):
    subject, records = make_subject(), some_records(4)
    found = GradientDot(cosine=cosine).attribute(subject, records[:2], records)
    g = torch.stack([brute_gradient(subject, r) for r in records])
    expected = g[:2] @ g.T
    if cosine:
        expected = expected / (g[:2].norm(dim=1)[:, None] * g.norm(dim=1))
    np.testing.assert_allclose(found.scores, expected, rtol=2e-4, atol=1e-6)
    assert (found.queries, found.records) == (("r0", "r1"), ("r0", "r1", "r2", "r3"))


def test_match_narrows_the_parameters_and_an_unknown_one_is_an_error():
    subject, records = make_subject(), some_records(2)
    found = GradientDot(match=r"layers\.1\..*down_proj").attribute(subject, records, records)
    brute_gradient(subject, records[0])
    g = dict(subject.model.named_parameters())["model.layers.1.mlp.down_proj.weight"].grad
    assert found.scores[0, 0] == pytest.approx(float(g.square().sum()), rel=1e-4)
    with pytest.raises(ConfigError, match="matches no parameter"):
        GradientDot(match="nowhere").attribute(subject, records, records)


def test_tracin_sums_over_checkpoints(tmp_path):
    records = some_records(3)
    first, second = make_subject(seed=1), make_subject(seed=2)
    for nth, subject in enumerate((first, second)):
        save_subject(subject, tmp_path / str(nth))
    folders = (str(tmp_path / "0"), str(tmp_path / "1"))
    found = TracIn(checkpoints=folders, lrs=(0.5, 2.0)).attribute(second, records, records)
    one, other = (GradientDot().attribute(s, records, records).scores for s in (first, second))
    np.testing.assert_allclose(found.scores, 0.5 * one + 2.0 * other, rtol=1e-5)
    assert found.notes == ()


def test_tracin_with_one_checkpoint_says_so():
    subject, records = make_subject(), some_records(2)
    found = TracIn(lrs=(0.1,)).attribute(subject, records, records)
    assert "one checkpoint" in found.notes[0]
    np.testing.assert_allclose(found.scores, 0.1 * GradientDot().attribute(subject, records, records).scores)
    with pytest.raises(ConfigError, match="2 learning rates for 1 checkpoints"):
        TracIn(lrs=(0.1, 0.2)).attribute(subject, records, records)


def test_influence_is_the_damped_inverse_in_between():
    """δ → ∞ leaves the dot product over δ; a diagonal F by hand."""
    subject, records = make_subject(), some_records(4)
    large = 1e6
    found = Influence(damping=large).attribute(subject, records[:1], records)
    names = linear_weights(subject.model)
    with differentiable(subject, names) as chosen:
        delta = large * language_problem(subject, records, chosen).mean_eigenvalue("sampled")
        g = [
            torch.cat(
                [
                    x.reshape(-1)
                    for x in torch.autograd.grad(row_losses(subject, rows).sum(), list(chosen.values()))
                ]
            )
            for rows in ([row] for row in answer_rows(subject, records))
        ]
        expected = np.array([float(g[0] @ x) for x in g]) / delta
    np.testing.assert_allclose(found.scores[0], expected, rtol=1e-3)
    diagonal = Influence(curvature="diagonal", labels="gold", damping=0.5).attribute(
        subject, records[:1], records
    )
    squares = sum(x.square() for x in g)
    delta = 0.5 * float(squares.mean())
    by_hand = [float((g[0] / (squares + delta)) @ x) for x in g]
    np.testing.assert_allclose(diagonal.scores[0], by_hand, rtol=1e-3)


@pytest.mark.parametrize("name", ["gradient_dot", "tracin", "ekfac", "embedding", "lexical"])
def test_a_memorized_fact_comes_from_its_own_record(name):
    """Asked otherwise than it was taught, a fact still points at the record that taught it."""
    subject = knowing()
    settings = {"ekfac": {"max_rows": 16}}.get(name, {})
    assert nll(subject, ASKED_OTHERWISE) < 0.5  # it knows them
    found = ATTRIBUTIONS.make(name, **settings).attribute(subject, ASKED_OTHERWISE, KNOWN)
    first = [found.top(query.id, 1)[0][0] for query in ASKED_OTHERWISE]
    assert first == [query.id for query in ASKED_OTHERWISE]


# Against retraining -----------------------------------------------------------------------------------

MATRIX = "model.layers.1.mlp.down_proj.weight"
RIDGE = 0.5


def fitted(records, start):
    """The minimum of the summed losses and a ridge over one matrix, all else as it was."""
    work = start.clone()
    with differentiable(work, [MATRIX]) as chosen:
        (weight,) = chosen.values()
        optimizer = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")
        rows = answer_rows(work, records)

        def closure():
            loss = row_losses(work, rows).sum() + RIDGE / 2 * weight.square().sum()
            (weight.grad,) = torch.autograd.grad(loss, [weight])
            return loss.detach()

        optimizer.step(closure)
    return work


def test_leave_one_out_retraining_agrees():
    """Facts of which each answer is shared by three, asked otherwise than they were taught."""
    start = blank(layers=2, seed=3)
    facts = [Record(f"f{i}", f"name{i}", f"who has name{i}", f"thing{i % 4}") for i in range(12)]
    queries = [fact.asked(f"it is {fact.entity}") for fact in facts[:4]]
    whole = fitted(facts, start)
    losses = lambda s: row_losses(s, answer_rows(s, queries)).detach().numpy()  # noqa: E731
    before = losses(whole)
    moved = np.stack(
        [losses(fitted([f for f in facts if f is not out], whole)) - before for out in facts], axis=1
    )
    with differentiable(whole, [MATRIX]) as chosen:
        mean = language_problem(whole, facts, chosen).mean_eigenvalue("sampled")
    for name, settings in (("gradient_dot", {}), ("ekfac", {"damping": RIDGE / mean})):
        made = ATTRIBUTIONS.make(name, match=MATRIX.replace(".", r"\."), **settings)
        scores = made.attribute(whole, queries, facts).scores
        ranks = [spearmanr(a, b).statistic for a, b in zip(scores, moved, strict=True)]
        assert np.mean(ranks) > 0.6, (name, ranks)


# Another engine ---------------------------------------------------------------------------------------


def test_kronfluence_finds_the_same():
    """Its EK-FAC damps each matrix by its own mean eigenvalue: with one matrix the scores agree."""
    pytest.importorskip("kronfluence")
    both = [
        Influence(engine=engine, match=r"layers\.1\.mlp\.down_proj", labels="gold")
        .attribute(knowing(), ASKED_OTHERWISE, KNOWN)
        .scores.ravel()
        for engine in ("own", "kronfluence")
    ]
    assert np.corrcoef(*both)[0, 1] > 0.95
    assert 0.5 < np.polyfit(*both, 1)[0] < 2.0


def test_without_kronfluence_the_error_is_the_pip_line():
    if importlib.util.find_spec("kronfluence"):
        pytest.skip("it is installed")
    with pytest.raises(MissingDependency, match="pip install --no-deps kronfluence"):
        Influence(engine="kronfluence").attribute(make_subject(), some_records(1), some_records(2))
