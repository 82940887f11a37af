"""The search for α*: worked numbers, and what must hold for every curve."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.controls.bar import is_met
from expunge.controls.search import Curve, search_alpha
from expunge.errors import ConfigError, NotComputable


def parabola(alpha):
    return 1 - alpha**2


def search(function, taus, better="higher", **more):
    curve = Curve(function, function(0.0))
    return search_alpha(curve, function(0.0), taus, better, **more), curve


# Worked numbers ---------------------------------------------------------------------------------------


def test_parabola_without_scan():
    found, curve = search(parabola, [0.75], grid=1, tol=1 / 16)
    assert (found[0.75].alpha, found[0.75].bracket) == (0.5, (0.5, 0.5625))
    assert curve.order == [1, 0.5, 0.75, 0.625, 0.5625]
    found, curve = search(parabola, [0.9], grid=1, tol=1 / 64)
    assert (found[0.9].alpha, found[0.9].bracket) == (0.3125, (0.3125, 0.328125))
    assert curve.order == [1, 0.5, 0.25, 0.375, 0.3125, 0.34375, 0.328125]


@pytest.mark.parametrize(("grid", "passes"), [(8, 17), (1, 16)])
def test_parabola_with_three_bars_shares_its_probes(grid, passes):
    found, curve = search(parabola, [0.4, 0.6, 0.9], grid=grid, tol=1 / 64)
    assert [found[t].alpha for t in (0.4, 0.6, 0.9)] == [0.765625, 0.625, 0.3125]
    assert curve.passes == passes


def zigzag(alpha):
    """Linear between (0, 1), (¼, 0.5), (½, 0.8), (¾, 0.4), (1, 0.2)."""
    values = [1, 0.5, 0.8, 0.4, 0.2]
    cell = min(3, int(alpha * 4))
    return values[cell] + (alpha * 4 - cell) * (values[cell + 1] - values[cell])


def test_zigzag_plain_bisection_lands_beyond_an_infeasible_stretch():
    found, _ = search(zigzag, [0.72], grid=1, tol=1 / 64)
    assert found[0.72].alpha == 0.546875
    assert found[0.72].monotone  # it cannot know


def test_uwc_nonmonotone_warns_and_is_feasible():
    found, _ = search(zigzag, [0.72], grid=4, tol=1 / 64)
    assert found[0.72].alpha == 0.125
    assert found[0.72].max_feasible_seen == 0.5
    assert not found[0.72].monotone
    assert "not monotone" in found[0.72].warnings[0]
    assert zigzag(0.125) >= 0.72


# Invariants -------------------------------------------------------------------------------------------


@st.composite
def curves(draw):
    """Any curve through random values at random places, from a positive start; some values are missing."""
    points = draw(st.lists(st.floats(0, 2), min_size=2, max_size=12))
    start = draw(st.floats(0.1, 1))
    missing = draw(st.sets(st.integers(0, 128), max_size=3))

    def curve(alpha):
        if alpha > 0 and round(alpha * 128) in missing:
            return None if round(alpha * 128) % 2 else math.nan
        values = [start, *points]
        at = alpha * (len(values) - 1)
        cell = min(int(at), len(values) - 2)
        return values[cell] + (at - cell) * (values[cell + 1] - values[cell])

    return curve


taus = st.lists(st.floats(0.05, 1), min_size=1, max_size=4)


@given(curves(), taus, st.sampled_from([1, 4, 8]), st.sampled_from([1 / 16, 1 / 128]))
@settings(deadline=None)
def test_uwc_alpha_is_feasible_and_maximal_within_tolerance(function, taus, grid, tol):
    found, curve = search(function, taus, grid=grid, tol=tol)
    original = curve.values[0.0]
    for tau, result in found.items():
        assert result.alpha in curve.values, "α* itself was measured"
        assert is_met(curve.values[result.alpha], original, tau, "higher")
        low, high = result.bracket
        assert low == result.alpha
        if result.alpha < 1:
            assert 0 < high - low <= tol
            assert not is_met(curve.values[high], original, tau, "higher"), (
                "the upper end was measured infeasible"
            )
        if grid > 1:  # connected to the original on the grid
            before = [g / grid for g in range(grid + 1) if g / grid <= result.alpha]
            if result.alpha < 1:
                assert all(is_met(curve.values[a], original, tau, "higher") for a in before)
        assert result.max_feasible_seen >= result.alpha


@given(function=curves(), taus=taus, grid=st.sampled_from([1, 8]))
@settings(deadline=None)
def test_uwc_alpha_nonincreasing_in_tau(function, taus, grid):
    found, _ = search(function, taus, grid=grid)
    ordered = [found[tau].alpha for tau in sorted(found)]
    assert ordered == sorted(ordered, reverse=True)


@given(points=st.lists(st.floats(0, 2), min_size=2, max_size=12), taus=taus)
@settings(deadline=None)
def test_uwc_multi_tau_equals_single_runs(points, taus):
    def function(alpha):
        return 1.0 if alpha == 0 else points[min(int(alpha * len(points)), len(points) - 1)]

    together, _ = search(function, taus)
    for tau in taus:
        alone, _ = search(function, [tau])
        assert (alone[tau].alpha, alone[tau].bracket) == (together[tau].alpha, together[tau].bracket)
        if together[tau].alpha < 1:
            assert alone[tau] == together[tau]


@given(end=st.floats(0, 0.999), power=st.floats(0.2, 5), tau=st.floats(0.01, 1))
@settings(deadline=None)
def test_monotone_curves_need_no_guard_and_find_the_crossing(end, power, tau):
    def function(alpha):
        return 1 - (1 - end) * alpha**power

    found, _ = search(function, [tau])
    exact = 1.0 if function(1.0) >= tau else ((1 - tau) / (1 - end)) ** (1 / power)
    assert found[tau].monotone
    assert exact - 1 / 128 - 1e-9 <= found[tau].alpha <= exact + 1e-9


def test_uwc_short_circuits_at_one():
    found, curve = search(lambda alpha: 1 - 0.01 * alpha, [0.95, 0.9])
    assert all(result.alpha == 1 and result.bracket == (1, 1) for result in found.values())
    assert curve.order == [1.0]


def test_uwc_original_as_unlearned_gives_one():
    found, curve = search(lambda alpha: 0.4, [1.0])
    assert found[1.0].alpha == 1
    assert curve.passes == 1


def test_uwc_pass_count():
    """1 + (G − 1) + J·log₂(1/(G·tol)) for J bars that do not short-circuit in different cells."""
    found, curve = search(parabola, [0.4, 0.6, 0.9])
    assert curve.passes == 1 + 7 + 3 * 4 == 20
    assert all(result.alpha < 1 for result in found.values())


def test_a_dip_below_the_bar_is_reported_and_one_stays_one():
    def dip(alpha):
        return 0.5 if 0.3 < alpha < 0.6 else 1 - 0.1 * alpha

    found, _ = search(dip, [0.9, 0.95])
    assert found[0.9].alpha == 1
    assert not found[0.9].monotone
    assert "dips" in found[0.9].warnings[0]


def test_uwc_wreck_gives_feasible_alpha():
    for wreck in (lambda alpha: 1.0 if alpha == 0 else 0.0, lambda alpha: 1.0 if alpha == 0 else None):
        found, _ = search(wreck, [0.95])
        assert found[0.95].alpha == 0
        assert found[0.95].bracket == (0, 1 / 128)


def test_uwc_lower_better_metric():
    """Perplexity: the bar is M(θ_o)/τ."""

    def perplexity(alpha):
        return 4 + 4 * alpha

    found, _ = search(perplexity, [0.8], better="lower")
    assert found[0.8].alpha == 0.25  # 4 + 4α ≤ 5
    found, _ = search(lambda alpha: math.inf if alpha > 0.5 else 4.0, [0.8], better="lower")
    assert found[0.8].alpha == 0.5


def test_uwc_bar_uses_original_model():
    """A bar from the unlearned model's own score would always be met."""
    found, _ = search(lambda alpha: 1 - 0.9 * alpha, [0.95])
    assert found[0.95].alpha < 0.06


def test_uwc_zero_baseline_not_computable():
    with pytest.raises(NotComputable, match="0 on calibration"):
        search(lambda alpha: 0.0, [0.9])


def test_every_bad_setting_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        search(parabola, [0.0, 1.2, 0.5], tol=0)
    assert len(caught.value.problems) == 3


def test_comparison_has_slack_for_rounding_only():
    assert is_met(0.1 + 0.2, 0.3 / 0.95, 0.95, "higher")
    assert is_met(0.95 * 0.7 * (1 - 1e-13), 0.7, 0.95, "higher")
    assert not is_met(0.95 * 0.7 * (1 - 1e-11), 0.7, 0.95, "higher")
    assert is_met(2 / 0.9 * (1 + 1e-13), 2.0, 0.9, "lower")
    assert not is_met(2 / 0.9 * (1 + 1e-11), 2.0, 0.9, "lower")
    for missing in (None, math.nan):
        assert not is_met(missing, 1.0, 0.5, "higher")
        assert not is_met(missing, 1.0, 0.5, "lower")
