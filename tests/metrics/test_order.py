"""Two orders against each other, and what a compressed model takes."""

from __future__ import annotations

import doctest

import pytest

from expunge.metrics import compression, order
from expunge.metrics.base import Score
from expunge.metrics.compression import Stored, average_bits, sparsity, stored_bytes
from expunge.metrics.order import order_free_error, order_sensitivity


def both(one: float | None, other: float | None, better: str = "higher", **more) -> dict:
    return {
        ("u", "q"): Score("m", "report", one, n=9, better=better, **more),
        ("q", "u"): Score("m", "report", other, n=7, better=better, **more),
    }


@pytest.mark.parametrize(
    ("one", "other", "better", "error", "sensitivity"),
    [(0.55, 0.40, "higher", 0.45, 0.15), (0.30, 0.26, "lower", 0.26, 0.04)],
)
def test_composition_respects_direction(one, other, better, error, sensitivity):
    scores = both(one, other, better)
    assert order_free_error("u", "q", scores).value == pytest.approx(error)
    assert order_sensitivity("u", "q", scores).value == pytest.approx(sensitivity)
    assert order_sensitivity("q", "u", scores).signed == pytest.approx(other - one)
    assert order_free_error("u", "q", scores).n == 7


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_composition_symmetric_in_pair(better):
    scores = both(0.8, 0.3, better)
    for metric in (order_free_error, order_sensitivity):
        assert metric("u", "q", scores).value == metric("q", "u", scores).value


@pytest.mark.parametrize(
    ("i", "j", "scores", "reason"),
    [
        ("u", "u", both(0.5, 0.4), "one_intervention"),
        ("u", "p", both(0.5, 0.4), "not_measured: u → p"),
        ("u", "q", both(0.5, None, reason="nonfinite_evidence"), "q → u: nonfinite_evidence"),
        ("u", "q", both(0.5, 7.2), "no_share: m is 7.2"),
        ("u", "q", both(0.5, 0.4, "target"), "no_direction"),
    ],
)
def test_what_cannot_be_compared_says_why(i, j, scores, reason):
    for metric in (order_free_error, order_sensitivity):
        found = metric(i, j, scores)
        assert found.value is None
        assert reason in found.reason


def four_bits(name: str, weights: int = 1280, point: int = 16, **more) -> Stored:
    """Groups of 128, one 16-bit scale and one zero point each."""
    return Stored(name, weights, 4 * weights + weights / 128 * (16 + point), compressed=True, **more)


def test_average_bits_counts_scales():
    assert average_bits([four_bits("w")]) == (4.25, 4.25)
    assert average_bits([four_bits("w", point=4)]).compressed == 4.15625
    model = [*map(four_bits, "abc"), Stored("embedding", 1280, 16 * 1280)]
    assert average_bits(model) == (4.25, 7.1875)
    assert stored_bytes(model) == 7.1875 * 4 * 1280 / 8


def test_sparsity_counts_exact_zeros():
    model = [four_bits("w", zeros=320), Stored("norm", 1280, 16 * 1280, zeros=0)]
    assert sparsity(model) == (0.25, 0.125)
    assert sparsity(model[1:]) == (None, 0.0)
    with pytest.raises(ValueError, match="weight"):
        sparsity([])


def test_examples():
    for module in (compression, order):
        assert doctest.testmod(module).attempted
        assert not doctest.testmod(module).failed
