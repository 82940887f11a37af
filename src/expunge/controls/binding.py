"""Which methods a control inside the forget loss can bind."""

from __future__ import annotations

from typing import Any

from expunge.errors import ConfigError, Problem
from expunge.training.views import Reads

__all__ = ["likelihood", "likelihood_tokens"]

_LIKELIHOODS = frozenset({"sum_nll", "mean_nll", "token_logprobs"})


def likelihood(control: str, method: Any) -> None:
    """Raise ConfigError unless the method's loss reads likelihoods of the gold answers."""
    if not Reads.parse(method.reads).model.get("gold", frozenset()) & _LIKELIHOODS:
        what = f"{method.name} reads no likelihood of the forget answers, there is nothing to bind"
        raise ConfigError(Problem(f"control.{control}", what, f"Remove {control}"))


def likelihood_tokens(control: str, method: Any) -> None:
    """As `likelihood`, and the loss must hold for part of a row's tokens: no whole sums of a reference."""
    likelihood(control, method)
    reads = Reads.parse(method.reads)
    frozen = reads.reference.get("gold", frozenset()) | reads.teacher.get("gold", frozenset())
    if frozen & {"sum_nll", "mean_nll"}:
        what = f"{method.name} compares whole answers with the reference, not some of their tokens"
        fix = "Use it with ga, graddiff, simnpo or wga"
        raise ConfigError(Problem(f"control.{control}", what, fix))
