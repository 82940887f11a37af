"""What a filter in front of a model knows: phrases, kept as salted hashes, and a classifier of prompts.

A filter ships with the model. Neither form spells out whom it protects; whoever holds it can still test
guesses, because it has to recognize what it must stop.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from expunge.data.near import words
from expunge.stats import seed_from

__all__ = ["Phrases", "PromptClassifier", "fit_classifier", "phrases"]

BUCKETS = 2**20


@dataclass(frozen=True)
class Phrases:
    """Phrases as salted hashes of their words; they match whole words, in order, in any case."""

    salt: int = 0
    sizes: tuple[int, ...] = ()
    hashes: tuple[str, ...] = ()

    def found_in(self, text: str) -> bool:
        known, said = set(self.hashes), words(text)
        return any(_hash(self.salt, gram) in known for n in self.sizes for gram in _grams(said, n))


def phrases(texts: Iterable[str], seed: int = 0, *, longest: int = 5, but: Collection[str] = ()) -> Phrases:
    """The phrases in `texts`, cut into runs of at most `longest` words; what `but` also says is left out."""
    common = {gram for text in but for n in range(1, longest + 1) for gram in _grams(words(text), n)}
    found = {
        gram for text in texts if (said := words(text)) for gram in _grams(said, min(len(said), longest))
    }
    salt = seed_from(seed, "phrases")
    kept = sorted(found - common)
    return Phrases(salt, tuple(sorted({len(g) for g in kept})), tuple(sorted(_hash(salt, g) for g in kept)))


def _grams(said: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]


def _hash(salt: int, gram: Sequence[str]) -> str:
    return hashlib.blake2b(" ".join(gram).encode(), digest_size=8, key=salt.to_bytes(8, "little")).hexdigest()


@dataclass(frozen=True)
class PromptClassifier:
    """Logistic regression on a prompt's words and word pairs (hashed, presence over √count)."""

    weights: Mapping[int, float]
    bias: float

    def score(self, prompt: str) -> float:
        """The probability that the prompt asks for what must go."""
        logit = self.bias + sum(self.weights.get(i, 0.0) * x for i, x in _features(prompt).items())
        return float(1 / (1 + np.exp(-np.clip(logit, -50, 50))))


def fit_classifier(
    forget: Sequence[str], retain: Sequence[str], *, penalty: float = 1e-6
) -> PromptClassifier:
    """Fit by L-BFGS: mean log-loss with both sides weighing the same, + penalty/2·‖w‖². Deterministic."""
    rows = [_features(text) for text in (*forget, *retain)]
    names = sorted({i for row in rows for i in row})
    column = {name: k for k, name in enumerate(names)}
    x = np.zeros((len(rows), len(names) + 1))
    x[:, -1] = 1.0
    for n, row in enumerate(rows):
        for i, value in row.items():
            x[n, column[i]] = value
    sign = np.array([1.0] * len(forget) + [-1.0] * len(retain))
    weight = np.array([0.5 / len(forget)] * len(forget) + [0.5 / max(1, len(retain))] * len(retain))
    decay = np.full(len(names) + 1, penalty)
    decay[-1] = 0.0

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ w)
        value = float(weight @ np.logaddexp(0, -margin) + 0.5 * decay @ w**2)
        pull = -weight * sign / (1 + np.exp(np.clip(margin, -500, 500)))
        return value, x.T @ pull + decay * w

    found = minimize(loss, np.zeros(len(names) + 1), jac=True, method="L-BFGS-B").x
    return PromptClassifier({name: float(found[k]) for name, k in column.items()}, float(found[-1]))


def _features(prompt: str) -> dict[int, float]:
    said = words(prompt)
    grams = {" ".join(gram) for n in (1, 2) for gram in _grams(said, n)}
    return {zlib.crc32(gram.encode()) % BUCKETS: len(grams) ** -0.5 for gram in grams}
