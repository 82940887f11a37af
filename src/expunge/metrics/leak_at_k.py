"""Chance that at least one of k samples gives the answer away; plain functions, no registered metric.

Sources: the estimator of Chen et al. 2021 (arXiv 2107.03374); bounds of Scholten et al. 2024
(arXiv 2410.03523); leak@k for unlearning: Reisizadeh et al. 2025 (arXiv 2511.04934).
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["dkw_half_width", "exact_leak", "expected_maximum", "guess_level", "leak_at_k"]


def leak_at_k(n: int, leaks: int, k: int) -> float:
    """1 − C(n−c, k)/C(n, k) = 1 − Π_{j<k} (1 − c/(n−j)): unbiased from n samples of which c leak.

    >>> round(leak_at_k(5, 2, 3), 6), round(leak_at_k(200, 3, 64), 6)
    (0.9, 0.687803)
    """
    if not 1 <= k <= n or not 0 <= leaks <= n:
        raise ValueError(f"leak@{k} from {leaks} leaks in {n} samples")
    if n - leaks < k:
        return 1.0
    return float(1 - np.prod(1 - leaks / (n - np.arange(k))))


def exact_leak(p: float, k: int) -> float:
    """1 − (1−p)^k, for an answer of known probability p.

    >>> exact_leak(0.5, 2), exact_leak(0.0, 128)
    (0.75, 0.0)
    """
    return 1.0 if p >= 1 else -math.expm1(k * math.log1p(-p))


def guess_level(answers: int, k: int) -> float:
    """What a blind guesser has in a closed set of equally likely answers: 1 − (1 − 1/A)^k.

    >>> round(guess_level(240, 128), 6), round(guess_level(10, 5), 5)
    (0.414007, 0.40951)
    """
    return exact_leak(1 / answers, k)


def expected_maximum(scores: np.ndarray, k: int) -> float:
    """Graded: E[max of k of the n scores] = Σ_j s_j C(j−1, k−1)/C(n, k), scores ascending.

    >>> round(expected_maximum(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), 2), 6)
    0.4
    """
    ascending, n = np.sort(np.asarray(scores, float)), len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"the maximum of {k} out of {n} scores")
    chosen = [math.comb(j, k - 1) / math.comb(n, k) for j in range(n)]
    return float(ascending @ np.array(chosen))


def dkw_half_width(n: int, confidence: float = 0.99) -> float:
    """Half-width of the band around an empirical distribution of n draws: √(ln(2/δ) / 2n).

    >>> round(dkw_half_width(128), 6)
    0.143863
    """
    return math.sqrt(math.log(2 / (1 - confidence)) / (2 * n))
