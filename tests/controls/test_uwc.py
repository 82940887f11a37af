"""uwc: the bar, its metric, the calibration record and the interval of α*."""

import math
import subprocess
import sys

import numpy as np
import pytest

from expunge.controls import CONTROLS
from expunge.controls.bar import Bar, Probe, choose_metric, within_noise
from expunge.controls.model_mixing import MixingPath
from expunge.controls.uwc import UWC, alpha_interval
from expunge.errors import ConfigError, NotComputable
from expunge.evidence import Evidence, Row
from expunge.measure.take import EvidencePlan, take_evidence
from expunge.metrics import make_metric
from expunge.metrics.base import Score
from expunge.subjects import fingerprint, load_subject, save_subject
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, finetune


def scores(function, entities, spread=0.05):
    """A measure(α) whose per-record values scatter around function(α), one deviation per entity."""
    rng = np.random.default_rng(0)
    names = sorted(set(entities))
    shift = dict(zip(names, rng.normal(0, spread, len(names)), strict=True))

    def measure(alpha):
        values = {f"r{i}": function(alpha) + shift[e] * alpha for i, e in enumerate(entities)}
        mean = sum(values.values()) / len(values)
        interval = (mean - 0.01, mean + 0.01)
        return Score("probability", "calibration", mean, *interval, len(values), per_record=values)

    return measure


def bar_of(measure, keep=0.9, metric="probability"):
    return Bar(make_metric(metric), keep, measure(0.0))


ENTITIES = [f"e{i // 4}" for i in range(120)]


def line(alpha):
    return 0.8 - 0.4 * alpha


# Calibration ------------------------------------------------------------------------------------------


def test_calibration_keeps_every_probe_and_every_bar():
    measure = scores(line, ENTITIES)
    result = UWC(taus=(0.6, 0.8)).calibrate(bar_of(measure), measure, ENTITIES)
    assert set(result.found) == {0.9, 0.8, 0.6}
    assert result.passes == len(result.scores) - 1
    assert list(result.scores) == sorted(result.scores)
    assert {0.0, 1.0, *(g / 8 for g in range(9))} <= set(result.scores)
    assert result.found[0.9].alpha == pytest.approx(0.2, abs=0.05)
    assert result.found[0.6].alpha >= result.found[0.8].alpha >= result.found[0.9].alpha
    assert bar_of(measure).met_by(result.scores[result.found[0.9].alpha].value)


def test_uwc_deterministic():
    measure = scores(line, ENTITIES)
    first, second = (UWC().calibrate(bar_of(measure), measure, ENTITIES) for _ in range(2))
    assert first.found == second.found
    assert first.interval == second.interval
    assert first.interval != UWC().calibrate(bar_of(measure), measure, ENTITIES, seed=1).interval


def test_missing_scores_are_infeasible_and_leave_no_interval():
    def measure(alpha):
        if alpha == 0:
            return scores(line, ENTITIES)(0)
        return Score("probability", "calibration", None, reason="nonfinite_evidence")

    result = UWC().calibrate(bar_of(measure), measure, ENTITIES)
    assert result.found[0.9].alpha == 0
    assert result.interval is None


def test_an_original_within_its_noise_is_warned_of():
    noisy = Score("probability", "calibration", 0.1, -0.1, 0.3)
    assert within_noise(noisy)
    assert not within_noise(Score("probability", "calibration", 0.1, 0.05, 0.15))
    bar = Bar(make_metric("probability"), 0.9, noisy)
    result = UWC(taus=()).calibrate(bar, lambda alpha: noisy, ["a"])
    assert "within its noise" in result.warnings[0]


# The interval of α* -----------------------------------------------------------------------------------


def interval(entities, spread=0.05, function=line, keep=0.9):
    measure = scores(function, entities, spread)
    return alpha_interval({a / 16: measure(a / 16) for a in range(17)}, bar_of(measure, keep), entities, 0)


def test_interval_holds_the_exact_crossing_and_shrinks_with_more_entities():
    exact = 0.2  # 0.8 − 0.4α = 0.9 · 0.8
    wide = interval(ENTITIES[:24], spread=0.1)
    narrow = interval([f"e{i}" for i in range(400)], spread=0.1)
    assert wide[0] < exact < wide[1]
    assert narrow[0] < exact + 0.02
    assert narrow[1] > exact - 0.02
    assert narrow[1] - narrow[0] < 0.5 * (wide[1] - wide[0])


def test_interval_without_scatter_is_the_crossing():
    low, high = interval(ENTITIES, spread=0.0)
    assert low == pytest.approx(0.2)
    assert high == pytest.approx(0.2)


def test_interval_takes_records_of_one_entity_together():
    """Forty records of eight entities say no more than eight."""
    alone = interval([f"e{i}" for i in range(8)], 0.1)
    together = interval([f"e{i % 8}" for i in range(40)], 0.1)
    assert alone == pytest.approx(together)


def test_interval_ends_at_one_where_the_bar_holds_everywhere():
    assert interval(ENTITIES, function=lambda alpha: 0.8 - 0.01 * alpha) == (1.0, 1.0)


def test_interval_takes_the_first_crossing_of_a_curve_that_comes_back():
    low, high = interval(ENTITIES, 0.0, lambda alpha: 0.8 - 0.4 * math.sin(math.pi * alpha))
    exact = math.asin(0.2) / math.pi
    assert low == pytest.approx(exact, abs=0.01)
    assert high == pytest.approx(exact, abs=0.01)


def test_no_interval_where_it_would_say_nothing():
    assert interval(["same"] * 10) is None
    measure = scores(line, ENTITIES)
    bar = bar_of(measure)
    assert alpha_interval({0.0: measure(0.0)}, bar, ENTITIES, 0) is None
    other = {a: Score("perplexity", "calibration", 9.0, per_record=measure(a).per_record) for a in (0.0, 1.0)}
    assert alpha_interval(other, bar, ENTITIES, 0) is None, "perplexity is no mean over records"


def test_a_wide_interval_is_warned_of():
    few = ["a", "b", "c"]
    measure = scores(line, few, spread=0.3)
    result = UWC(taus=()).calibrate(bar_of(measure), measure, few)
    assert any("calibration is small" in warning for warning in result.warnings)


# The bar's metric -------------------------------------------------------------------------------------


def made(hits, probability, entities=20):
    """Calibration evidence of records whose first tokens miss or hit."""
    rows = []
    for i in range(40):
        found = np.array(hits if isinstance(hits, list) else [hits] * 4, dtype=bool)
        logp = np.full(4, math.log(probability), dtype=np.float32)
        zeros = np.zeros(4, dtype=np.float32)
        rows.append(
            Row(f"r{i}", "calibration", f"e{i % entities}", "gold", logp, found, zeros.astype(np.int32),
                zeros - 1, zeros + 1, False, False, 3, 9, 12, 258, "an answer")
        )  # fmt: skip
    return Evidence("calibration", rows)


def test_auto_takes_extraction_strength_then_probability_then_perplexity():
    assert choose_metric("auto", made(True, 0.9))[0].name == "extraction_strength"
    assert choose_metric("auto", made(False, 0.5))[0].name == "probability"
    assert choose_metric("auto", made(False, 0.001))[0].name == "perplexity"


def test_a_bar_that_says_nothing_is_refused():
    with pytest.raises(NotComputable, match="scores 0"):
        choose_metric("extraction_strength", made(False, 0.5))
    with pytest.raises(NotComputable, match="empty_split"):
        choose_metric("auto", Evidence("calibration", []))
    for name in ("mia_loss", "forget_quality", "privleak"):
        with pytest.raises(ConfigError, match="neither higher nor lower"):
            choose_metric(name, made(True, 0.9))


def test_bar_values():
    measure = scores(line, ENTITIES)
    assert bar_of(measure).value == pytest.approx(0.72)
    lower = Bar(make_metric("perplexity"), 0.8, Score("perplexity", "calibration", 4.0))
    assert lower.value == 5.0
    assert lower.met_by(5.0)
    assert not lower.met_by(5.01)
    with pytest.raises(ConfigError, match="outside"):
        _ = bar_of(measure, keep=1.1).value


# On models --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    """A model that knows calibration records, a wreck, and the records."""
    subject, records = tiny_subject(seed=1), tiny_request()["calibration"]
    finetune(subject, records, TrainSettings(steps=60, lr=1e-2, batch=4, warmup=0.05))
    return subject, tiny_subject(seed=9), records


@pytest.mark.parametrize("name", ["probability", "extraction_strength", "perplexity"])
def test_probe_gives_the_score_of_the_evidence(models, name):
    subject, _, records = models
    metric = make_metric(name)
    stored = take_evidence(subject, {"calibration": records})
    assert Probe(subject, records, metric)(subject).value == pytest.approx(
        metric.score(stored, "calibration").value, rel=1e-5
    )


def test_probe_generates_for_a_metric_on_text(models):
    subject, _, records = models
    metric = make_metric("rougeL_recall")
    stored = take_evidence(subject, {"calibration": records}, plan=EvidencePlan(skip_generation=()))
    value = Probe(subject, records, metric)(subject).value
    assert value == metric.score(stored, "calibration").value > 0


def test_uwc_exported_model_meets_bar_after_reload(models, tmp_path):
    subject, wreck, records = models
    metric = make_metric("probability")
    probe = Probe(subject, records, metric)
    bar = Bar(metric, 0.95, probe(subject))
    path = MixingPath(subject.clone(), wreck, tmp_path)
    entities = [r.entity for r in records]
    result = UWC().calibrate(bar, lambda alpha: probe(path.at(alpha)), entities)
    alpha = result.found[0.95].alpha
    assert 0 < alpha < 0.5
    mixed = path.at(alpha)
    reloaded = load_subject(save_subject(mixed, tmp_path / "model"), max_length=128)
    assert bar.met_by(probe(reloaded).value)
    assert probe(reloaded).value == result.scores[alpha].value
    assert not bar.met_by(probe(path.at(result.found[0.95].bracket[1])).value)
    assert fingerprint(path.at(0.0).model) == fingerprint(subject.model)


# The registry -----------------------------------------------------------------------------------------


def test_cards_are_complete():
    cards = CONTROLS.cards()
    assert {"cap", "early_stop", "hinge_cap", "model_mixing", "uwc"} <= {card.name for card in cards}
    for card in cards:
        assert 0 < len(card.summary) <= 110
        assert set(card.fields) == {"when", "bounds", "guarantee", "source"}
        assert CONTROLS.make(card.name).when == card.fields["when"]


def test_listing_methods_and_controls_loads_no_torch():
    code = (
        "import sys; from expunge.controls import CONTROLS; from expunge.methods import METHODS;"
        "CONTROLS.cards(), METHODS.cards();"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
