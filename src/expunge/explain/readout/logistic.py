"""Multinomial logistic regression with a ridge, for a few hundred states at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from expunge.stats import seed_from

__all__ = ["choose_ridge", "fit_logistic"]

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 5
ROUGH = 40
"""Iterations of a fit that only has to rank the ridge constants."""

Classifier = Callable[[np.ndarray], np.ndarray]


def fit_logistic(x: np.ndarray, labels: np.ndarray, ridge: float, iterations: int = 200) -> Classifier:
    """min over W, b of mean_i [logsumexp(z_i) − z_i[y_i]] + ½·ridge·‖W‖², z = (x − mean)/std @ W + b.

    Columns are standardized by x [N, D]. With N < D the fit runs in the span of the rows: it is the same.
    """
    classes, y = np.unique(labels, return_inverse=True)
    center, scale = x.mean(0), np.maximum(x.std(0), 1e-8)
    basis, inputs = np.eye(x.shape[1]), (x - center) / scale
    if len(x) < x.shape[1]:
        basis = np.linalg.svd(inputs, full_matrices=False)[2].T  # [D, N]
        inputs = inputs @ basis
    width, count = inputs.shape[1], len(classes)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[: width * count].reshape(width, count), flat[width * count :]
        z = inputs @ weights + bias
        log_sum = logsumexp(z, axis=1)
        slope = np.exp(z - log_sum[:, None])
        slope[np.arange(len(y)), y] -= 1
        slope /= len(y)
        value = (log_sum - z[np.arange(len(y)), y]).mean() + 0.5 * ridge * (weights**2).sum()
        return value, np.concatenate([(inputs.T @ slope + ridge * weights).ravel(), slope.sum(0)])

    start = np.zeros(width * count + count)
    best = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "gtol": 1e-4, "ftol": 1e-7},
    ).x
    weights, bias = best[: width * count].reshape(width, count), best[width * count :]

    def classify(states: np.ndarray) -> np.ndarray:
        return classes[(((states - center) / scale) @ basis @ weights + bias).argmax(1)]

    return classify


def choose_ridge(x: np.ndarray, labels: np.ndarray, groups: Sequence[str], seed: int) -> float:
    """The constant with the most hits over folds of groups; of equal ones the largest."""
    names = np.unique(groups)
    order = np.random.default_rng(seed_from(seed, "probe folds")).permutation(len(names))
    fold_of = {names[i]: nth % FOLDS for nth, i in enumerate(order)}
    folds = np.array([fold_of[group] for group in groups])
    hits = dict.fromkeys(RIDGES, 0)
    for k in np.unique(folds):
        inside, outside = folds != k, folds == k
        if len(np.unique(labels[inside])) > 1:
            for ridge in RIDGES:
                classify = fit_logistic(x[inside], labels[inside], ridge, ROUGH)
                hits[ridge] += int((classify(x[outside]) == labels[outside]).sum())
    return max(RIDGES, key=lambda ridge: (hits[ridge], ridge))
