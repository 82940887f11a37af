"""What a loss sees of a batch: lazy views, declared beforehand so that the cheapest forward can be planned.

Shapes: B rows, A answer positions (packed; positions that *predict* an answer token, end token included), V
vocabulary, D hidden width. Prompt and padding are never among the A positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["QUANTITIES", "Reads", "ReferenceView", "UndeclaredRead", "View", "sum_rows"]

QUANTITIES = ("sum_nll", "mean_nll", "token_logprobs", "logits", "hidden")


def sum_rows(values: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Σ over each row's answer positions: [A] → [B]."""
    return torch.zeros(num_rows, dtype=values.dtype, device=values.device).index_add(0, row, values)


@dataclass(frozen=True)
class Reads:
    """Declared reads by variant: what of the model, what of the reference.

    Written as `[variant.][reference.]quantity`, variant `gold` unless said: `("sum_nll",
    "reference.sum_nll")`, `("refusal.sum_nll",)`.
    """

    model: Mapping[str, frozenset[str]]
    reference: Mapping[str, frozenset[str]]

    @classmethod
    def parse(cls, reads: Iterable[str]) -> Reads:
        model: dict[str, set[str]] = {}
        reference: dict[str, set[str]] = {}
        for text in reads:
            *where, quantity = text.split(".")
            from_reference = "reference" in where
            variant = next((w for w in where if w != "reference"), "gold")
            if quantity not in QUANTITIES:
                raise ValueError(f"unknown quantity in reads: {text!r}; known: {QUANTITIES}")
            (reference if from_reference else model).setdefault(variant, set()).add(quantity)
        for variant in reference:
            model.setdefault(variant, set())
        freeze = lambda d: {k: frozenset(v) for k, v in d.items()}  # noqa: E731
        return cls(freeze(model), freeze(reference))

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.model)


class UndeclaredRead(RuntimeError):
    """A loss reads what it did not declare; a mistake in the method, not of the user."""


class _Declared:
    """Attribute access that fails loudly when a quantity was not declared."""

    _declared: frozenset[str]
    _where: str

    def _check(self, quantity: str) -> None:
        if quantity not in self._declared:
            raise UndeclaredRead(f"{self._where}.{quantity} is read but not declared in `reads`")


class ReferenceView(_Declared):
    """The same quantities under θ_o: cached, from a live frozen model, or from the base under the adapter."""

    def __init__(
        self,
        fetch: Callable[[str], Tensor],
        row: Tensor,
        num_tokens: Tensor,
        declared: frozenset[str],
        where: str,
    ):
        self._fetch, self._row, self._num_tokens = fetch, row, num_tokens
        self._declared, self._where = declared, f"{where}.reference"

    @property
    def token_logprobs(self) -> Tensor:
        """[A]"""
        self._check("token_logprobs")
        return self._fetch("token_logprobs")

    @property
    def sum_nll(self) -> Tensor:
        """[B]"""
        self._check("sum_nll")
        return self._fetch("sum_nll")

    @property
    def mean_nll(self) -> Tensor:
        """[B]"""
        self._check("mean_nll")
        return self._fetch("sum_nll") / self._num_tokens

    @property
    def logits(self) -> Tensor:
        """[A, V]"""
        self._check("logits")
        return self._fetch("logits")

    @property
    def hidden(self) -> Tensor:
        """[A, D] after the method's layer."""
        self._check("hidden")
        return self._fetch("hidden")


@dataclass(frozen=True)
class View(_Declared):
    """One part of a batch (the forget rows in one variant, or the retain rows).

    `forget.refusal` (and any other declared variant) is the view of the same rows with that answer.
    """

    targets: Tensor  # [A]
    row: Tensor  # [A] which row a position belongs to
    num_tokens: Tensor  # [B]
    raw_logits: Tensor | None
    raw_hidden: Tensor | None
    reference: Any
    variants: Mapping[str, View]
    _declared: frozenset[str]
    _where: str = "forget"
    cap: float | None = None  # nats; see the control `cap`

    def __len__(self) -> int:
        return len(self.num_tokens)

    def __getattr__(self, name: str) -> View:
        variants = self.__dict__.get("variants", {})
        if name in variants:
            return variants[name]
        raise AttributeError(f"{self.__dict__.get('_where', 'view')}.{name} is not declared in `reads`")

    @property
    def logits(self) -> Tensor:
        """[A, V], fp32"""
        self._check("logits")
        return self._logits

    @property
    def token_logprobs(self) -> Tensor:
        """log p(y_a), [A]"""
        self._check("token_logprobs")
        return self._token_logprobs

    @property
    def sum_nll(self) -> Tensor:
        """S_i = Σ_t −log p_t, [B]"""
        self._check("sum_nll")
        return -self.sum_rows(self._token_logprobs)

    @property
    def mean_nll(self) -> Tensor:
        """m_i = S_i / n_i, [B]"""
        self._check("mean_nll")
        return -self.sum_rows(self._token_logprobs) / self.num_tokens

    @property
    def hidden(self) -> Tensor:
        """[A, D] after the method's layer, at the positions that predict answer tokens"""
        self._check("hidden")
        assert self.raw_hidden is not None
        return self.raw_hidden.float()

    @property
    def has_likelihood(self) -> bool:
        """Whether the loss reads likelihoods of this view: others (states, logits) no cap on NLL can bind."""
        return bool(self._declared & {"sum_nll", "mean_nll", "token_logprobs"})

    def hidden_behind(self, variants: Mapping[str, View]) -> View:
        """A view of which nothing was declared but these variants."""
        nothing: frozenset[str] = frozenset()
        reference = ReferenceView(self.reference._fetch, self.row, self.num_tokens, nothing, "forget")
        return replace(
            self, raw_logits=None, raw_hidden=None, reference=reference, variants=variants,
            _declared=nothing, _where="forget",
        )  # fmt: skip

    def row_nll(self) -> Tensor:
        """S_i, [B], for controls: they bind any likelihood loss, declared or not."""
        return -self.sum_rows(self._token_logprobs)

    def sum_rows(self, values: Tensor) -> Tensor:
        """[A] → [B], Σ over each row's positions."""
        return sum_rows(values, self.row, len(self))

    def mean_rows(self, values: Tensor) -> Tensor:
        """[A] → [B], mean over each row's positions: invariant to accumulation."""
        return self.sum_rows(values) / self.num_tokens

    def capped(self, nats: float) -> View:
        """The same view with every token's NLL cut at `nats`: no gradient beyond."""
        return replace(self, cap=nats)

    @property
    def _logits(self) -> Tensor:
        assert self.raw_logits is not None
        return self.raw_logits.float()

    @property
    def _token_logprobs(self) -> Tensor:
        if "_logp" not in self.__dict__:
            picked = self._logits.gather(1, self.targets[:, None])[:, 0]
            object.__setattr__(self, "_logp", picked - self._logits.logsumexp(-1))
        logp: Tensor = self.__dict__["_logp"]
        return (
            logp
            if self.cap is None
            else torch.where(logp > -self.cap, logp, torch.full_like(logp, -self.cap))
        )
