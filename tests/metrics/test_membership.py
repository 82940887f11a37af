"""Membership attacks and privacy leak."""

import math

import numpy as np
import pytest
from made_evidence import forget, model, row

from expunge.evidence import Evidence
from expunge.metrics import compute, make_metric
from expunge.metrics.mia import MiaLoss, MiaMinK, MiaMinKPlusPlus, MiaReference, MiaZlib, lowest_mean

ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_reference")


def by_loss(members, nonmembers, oracle=None, **settings):
    """mia_loss on one-token records whose signal −nll is the given number."""

    def side(split, values):
        rows = [
            row(0.5, logprobs=np.array([v - 100], dtype=np.float32), record=f"{split}{i}", split=split)
            for i, v in enumerate(values)
        ]
        return Evidence(split, rows)

    def who(pair):
        return {"forget": side("forget", pair[0]), "holdout": side("holdout", pair[1])}

    oracle = who(oracle) if oracle else None
    return compute("mia_loss", who((members, nonmembers)), "forget", oracle=oracle, **settings)


def test_auc_orientation_member_is_one():
    assert by_loss([5, 6], [1, 2]).value == 1.0


def test_auc_ties_count_half():
    assert by_loss([3, 1, 2], [2, 0, 1]).value == pytest.approx(7 / 9)
    assert by_loss([1, 1], [1, 1]).value == 0.5


def test_auc_below_half_is_not_folded():
    result = by_loss([1, 2], [5, 6])
    assert result.value == 0.0
    assert result.details["distance"] == 0.5


def test_target_is_the_oracles_auc_or_half_with_a_flag():
    result = by_loss([5, 6], [1, 2], oracle=([1, 3], [2, 0]))
    assert result.details["target"] == 0.75
    assert result.details["distance"] == 0.25
    assert "no_oracle" not in result.flags
    alone = by_loss([5, 6], [1, 2])
    assert alone.details["target"] == 0.5
    assert "no_oracle" in alone.flags
    assert alone.better == "target"


def test_tpr_does_not_interpolate():
    result = by_loss([18.5, 19.5, 20, 5, 19.5], range(20))
    assert result.details["tpr_at_5_fpr"] == pytest.approx(0.8)
    assert result.details["tpr_at_1_fpr"] == pytest.approx(0.6)
    assert "coarse_fpr" in result.flags
    assert "coarse_fpr" not in by_loss([1, 2], range(100)).flags


def test_tpr_looks_at_both_tails():
    result = by_loss([-3, -2, -1], range(20))
    assert result.details["tpr_at_1_fpr"] == 0.0
    assert result.details["tpr_at_1_fpr_low"] == 1.0


def test_empty_span_is_not_the_surest_member():
    evidence = {
        **forget(row(0.5, record="a"), row(record="b"), row(0.5, record="c", has_end=True)),
        **forget(row(0.6, record="d"), split="holdout"),
    }
    for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):
        result = compute(name, evidence, "forget")
        assert result.value == 0.0
        assert result.skipped == {"empty_answer": 2}


def test_one_side_empty_is_not_computable():
    evidence = forget(row(0.5))
    assert compute("mia_loss", evidence, "forget").reason == "no_nonmembers"
    evidence |= forget(row(record="x"), split="holdout")
    assert compute("mia_loss", evidence, "forget").reason == "every_record_skipped on holdout: empty_answer"


MIN_K = row(0.9, 0.1, 0.5, 0.8, 0.05)


def test_min_k_takes_lowest_not_highest():
    assert MiaMinK(k=0.4).signal(MIN_K, None) == pytest.approx(-2.649159, abs=1e-6)
    assert MiaMinK(k=0.2).signal(MIN_K, None) == pytest.approx(-2.995732, abs=1e-6)
    assert MiaMinK().signal(row(0.3), None) == pytest.approx(math.log(0.3))


def test_min_k_share_survives_floating_point():
    # 0.29 · 100 is 28.999… in floating point.
    values = np.arange(100.0)
    assert lowest_mean(values, 0.29) == np.arange(29).mean()


def test_min_k_keeps_last_document_token():
    assert MiaMinK(k=0.2).signal(row(0.9, 0.5, 0.9, 0.9, 0.01), None) == pytest.approx(math.log(0.01))
    ends = row(0.9, 0.5, 0.9, 0.9, 0.01, has_end=True)
    assert MiaMinK(k=0.2).signal(ends, None) == pytest.approx(math.log(0.5))


def from_distributions(distributions, tokens):
    """A row as the model page defines it: moments Σ p log p, weighted by p, from raw distributions."""
    mean = [sum(p * math.log(p) for p in d if p) for d in distributions]
    square = [sum(p * math.log(p) ** 2 for p in d if p) for d in distributions]
    std = [math.sqrt(max(0.0, s - m * m)) for s, m in zip(square, mean, strict=True)]
    return row(
        *(d[t] for d, t in zip(distributions, tokens, strict=True)),
        vocab_mean=np.array(mean, dtype=np.float32),
        vocab_std=np.array(std, dtype=np.float32),
    )


@pytest.mark.parametrize(("token", "z"), [(1, -1.0), (0, 1.0)])
def test_min_k_plus_plus_moments_are_probability_weighted(token, z):
    made = from_distributions([(0.5, 0.25, 0.25)], [token])
    assert made.vocab_mean[0] == pytest.approx(-1.039721, abs=1e-6)
    assert made.vocab_std[0] == pytest.approx(0.346574, abs=1e-6)
    assert MiaMinKPlusPlus().signal(made, None) == pytest.approx(z, abs=1e-6)


@pytest.mark.parametrize("distribution", [(1.0, 0.0, 0.0, 0.0), (0.25, 0.25, 0.25, 0.25)])
def test_min_k_plus_plus_zero_sigma(distribution):
    assert MiaMinKPlusPlus().signal(from_distributions([distribution], [0]), None) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize(("sigma", "z"), [(0.0, -2.0), (0.01, -0.2)])
def test_min_k_plus_plus_floor_is_a_thousandth(sigma, z):
    made = row(
        0.5,
        logprobs=np.array([-1.002], dtype=np.float32),
        vocab_std=np.array([sigma], dtype=np.float32),
    )
    assert MiaMinKPlusPlus().signal(made, None) == pytest.approx(z, abs=1e-3)


def test_min_k_plus_plus_equals_a_slow_computation():
    rng = np.random.default_rng(0)
    distributions = rng.dirichlet(np.ones(12), size=9)
    tokens = rng.integers(0, 12, size=9)
    z = []
    for p, t in zip(distributions, tokens, strict=True):
        draws = np.log(p)
        mu = np.average(draws, weights=p)
        z.append((draws[t] - mu) / math.sqrt(np.average((draws - mu) ** 2, weights=p)))
    got = MiaMinKPlusPlus(k=0.34).signal(from_distributions(distributions.tolist(), tokens.tolist()), None)
    assert got == pytest.approx(np.mean(sorted(z)[:3]), abs=1e-5)


EXAMPLE = row(0.5, 0.25, 0.125, zlib_bytes=43, has_end=True)


def test_zlib_uses_bytes_of_answer_only():
    assert MiaZlib().signal(EXAMPLE, None) == pytest.approx(-0.032239, abs=1e-6)
    assert MiaLoss().signal(EXAMPLE, None) == pytest.approx(-1.386294, abs=1e-6)


def test_reference_sign():
    reference = row(0.5, logprobs=np.array([-2.0], dtype=np.float32))
    assert MiaReference().signal(EXAMPLE, reference) == pytest.approx(0.613706, abs=1e-6)


def test_reference_attack_needs_the_oracle_and_finds_it_at_half():
    stranger, oracle = model("stranger", 1), model("stranger", 2)
    alone = compute("mia_reference", stranger, "forget")
    assert alone.value is None
    assert "no_oracle" in alone.reason
    itself = compute("mia_reference", oracle, "forget", oracle=oracle)
    assert (itself.value, itself.details["target"]) == (0.5, 0.5)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_recognize_the_memorizer(name):
    result = compute(name, model("memorizer"), "forget", oracle=model("stranger"))
    assert result.value > 0.95
    assert result.details["tpr_at_1_fpr"] > 0.8


def privleak(ours, theirs):
    """Both as (members, nonmembers) of one-token log-probabilities."""

    def who(pair):
        sides = {}
        for split, values in zip(("forget", "holdout"), pair, strict=True):
            rows = [
                row(0.5, logprobs=np.array([v], dtype=np.float32), record=f"{split}{i}")
                for i, v in enumerate(values)
            ]
            sides |= forget(*rows, split=split)
        return sides

    return compute("privleak", who(ours), "forget", oracle=who(theirs) if theirs else None)


def with_auc(share):
    """25 · 4 comparisons of which this share is won by the members."""
    wins = round(share * 100)
    members = [-(25 - wins // 4) - 0.5] * 4
    for i in range(wins % 4):
        members[i] += 1
    return members, [-float(i) for i in range(25, 0, -1)]


def test_privleak_example():
    result = privleak(with_auc(0.9), with_auc(0.52))
    assert result.value == pytest.approx(79.166667, abs=1e-6)
    assert result.details["privleak"] == pytest.approx(-79.166667, abs=1e-6)
    assert result.details["auc_difference"] == pytest.approx(0.38)
    assert privleak(with_auc(0.0), with_auc(0.52)).details["privleak"] == pytest.approx(108.333333, abs=1e-6)
    assert privleak(with_auc(0.52), with_auc(0.52)).value == 0.0


def test_privleak_sign_full_memorizer_is_minus_100():
    assert privleak(with_auc(1.0), with_auc(0.52)).details["privleak"] == -100.0


def test_privleak_zero_reference_not_computable():
    result = privleak(with_auc(0.9), with_auc(1.0))
    assert result.value is None
    assert result.reason == "oracle_separates_holdout"
    assert result.details["auc_difference"] == pytest.approx(-0.1)
    assert "small_reference" in privleak(with_auc(0.9), with_auc(0.88)).flags


def test_privleak_missing_oracle_never_defaults_to_half():
    result = privleak(with_auc(0.9), None)
    assert result.value is None
    assert result.reason == "no_oracle"


def test_privleak_interval_covers_its_value_and_is_zero_for_the_oracle():
    oracle = model("stranger", 3)
    result = compute("privleak", model("stranger", 4), "forget", oracle=oracle)
    assert result.low <= result.value <= result.high
    itself = compute("privleak", oracle, "forget", oracle=oracle)
    assert (itself.value, itself.low, itself.high) == (0.0, 0.0, 0.0)


def test_k_is_a_recorded_setting():
    assert make_metric("mia_min_k", k=0.4).settings == {"k": 0.4, "nonmembers": "holdout"}
