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

__all__ = ["QUANTITIES", "FrozenView", "Reads", "UndeclaredRead", "View", "sum_rows"]

QUANTITIES = ("sum_nll", "mean_nll", "token_logprobs", "logits", "hidden")
MODELS = ("reference", "teacher")


def sum_rows(values: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Σ over each row's answer positions: [A] → [B]."""
    return torch.zeros(num_rows, dtype=values.dtype, device=values.device).index_add(0, row, values)


@dataclass(frozen=True)
class Reads:
    """Declared reads by variant: what of the model, of the reference, of the method's teacher.

    Written as `[variant.][reference.|teacher.]quantity`, variant `gold` unless said: `("sum_nll",
    "reference.sum_nll")`, `("refusal.sum_nll",)`, `("teacher.logits",)`.
    """

    model: Mapping[str, frozenset[str]]
    reference: Mapping[str, frozenset[str]]
    teacher: Mapping[str, frozenset[str]]

    @classmethod
    def parse(cls, reads: Iterable[str]) -> Reads:
        found: dict[str, dict[str, set[str]]] = {"model": {}, "reference": {}, "teacher": {}}
        for text in reads:
            *where, quantity = text.split(".")
            model = next((w for w in where if w in MODELS), "model")
            variant = next((w for w in where if w not in MODELS), "gold")
            if quantity not in QUANTITIES:
                raise ValueError(f"unknown quantity in reads: {text!r}; known: {QUANTITIES}")
            found[model].setdefault(variant, set()).add(quantity)
            found["model"].setdefault(variant, set())
        freeze = lambda d: {k: frozenset(v) for k, v in d.items()}  # noqa: E731
        return cls(*(freeze(found[m]) for m in ("model", *MODELS)))

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.model)


class UndeclaredRead(RuntimeError):
    """A loss reads what it did not declare; a mistake in the method, not of the user."""


class _Declared:
    """Access that fails loudly when a quantity was not declared."""

    _declared: frozenset[str]
    _where: str

    def _check(self, quantity: str) -> None:
        if quantity not in self._declared:
            raise UndeclaredRead(f"{self._where}.{quantity} is read but not declared in `reads`")


class FrozenView(_Declared):
    """The same quantities under a frozen model: the reference θ_o, or the method's teacher."""

    def __init__(
        self,
        fetch: Callable[..., Tensor],
        row: Tensor,
        num_tokens: Tensor,
        declared: frozenset[str],
        where: str,
        kept: Tensor | None = None,
    ):
        self._fetch, self._row, self._num_tokens = fetch, row, num_tokens
        self._declared, self._where, self._kept = declared, where, kept

    @property
    def token_logprobs(self) -> Tensor:
        """[A]"""
        self._check("token_logprobs")
        return self._at(self._fetch("token_logprobs"))

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
        return self._at(self._fetch("logits"))

    def hidden(self, layer: int) -> Tensor:
        """[A, D] after this block"""
        self._check("hidden")
        return self._at(self._fetch("hidden", layer))

    def _at(self, values: Tensor) -> Tensor:
        return values if self._kept is None else values[self._kept]

    def only(self, mask: Tensor, num_tokens: Tensor) -> FrozenView:
        """See View.only."""
        assert not self._declared & {"sum_nll", "mean_nll"}, "whole-row sums know no token mask"
        kept = mask if self._kept is None else self._kept.nonzero()[:, 0][mask]
        return FrozenView(self._fetch, self._row[mask], num_tokens, self._declared, self._where, kept)


@dataclass(frozen=True)
class View(_Declared):
    """One part of a batch (the forget rows in one variant, or the retain rows).

    `forget.refusal` (and any other declared variant) is the view of the same rows with that answer.
    """

    targets: Tensor  # [A]
    row: Tensor  # [A] which row a position belongs to
    num_tokens: Tensor  # [B]
    raw_logits: Tensor | None
    raw_hidden: Mapping[int, Tensor]  # by block, [A, D]
    reference: Any
    teacher: Any
    variants: Mapping[str, View]
    _declared: frozenset[str]
    _where: str = "forget"
    index: tuple[int, ...] = ()  # [B] numbers of the rows in their part: the same in every epoch
    progress: float = 0.0  # share of the optimizer steps that are done, [0, 1)
    cap: float | None = None  # nats; see the control `cap`
    temperature: float = 1.0  # of the likelihoods, not of `logits`; see the control `temperature`

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
        return -self.mean_rows(self._token_logprobs)

    def hidden(self, layer: int) -> Tensor:
        """[A, D] after this block, at the positions that predict answer tokens"""
        self._check("hidden")
        return self.raw_hidden[layer].float()

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose states are there."""
        return tuple(self.raw_hidden)

    @property
    def has_likelihood(self) -> bool:
        """Whether the loss reads likelihoods of this view: others (states, logits) no cap on NLL can bind."""
        return bool(self._declared & {"sum_nll", "mean_nll", "token_logprobs"})

    def hidden_behind(self, variants: Mapping[str, View]) -> View:
        """A view of which nothing was declared but these variants."""
        nothing: frozenset[str] = frozenset()
        blind = lambda model: FrozenView(_nothing, self.row, self.num_tokens, nothing, f"forget.{model}")  # noqa: E731
        return replace(
            self, raw_logits=None, raw_hidden={}, reference=blind("reference"), teacher=blind("teacher"),
            variants=variants, _declared=nothing, _where="forget",
        )  # fmt: skip

    def row_nll(self) -> Tensor:
        """S_i, [B], for controls: they bind any likelihood loss, declared or not."""
        return -self.sum_rows(self._token_logprobs)

    def token_nll(self) -> Tensor:
        """−log p(y_a), [A], for controls, as `row_nll`."""
        return -self._token_logprobs

    def sum_rows(self, values: Tensor) -> Tensor:
        """[A] → [B], Σ over each row's positions."""
        return sum_rows(values, self.row, len(self))

    def mean_rows(self, values: Tensor) -> Tensor:
        """[A] → [B], mean over each row's positions: invariant to accumulation."""
        return self.sum_rows(values) / self.num_tokens.clamp(min=1)

    def capped(self, nats: float) -> View:
        """The same view with every token's NLL cut at `nats`: no gradient beyond."""
        return replace(self, cap=nats)

    def tempered(self, temperature: float) -> View:
        """The same view with likelihoods from logits / temperature."""
        return replace(self, temperature=temperature)

    def only(self, mask: Tensor) -> View:
        """The same rows with these positions alone, [A] bool; a row left with none has the value 0."""
        num_tokens = self.sum_rows(mask.to(torch.long))
        return replace(
            self,
            targets=self.targets[mask],
            row=self.row[mask],
            num_tokens=num_tokens,
            raw_logits=None if self.raw_logits is None else self.raw_logits[mask],
            raw_hidden={layer: states[mask] for layer, states in self.raw_hidden.items()},
            reference=self.reference.only(mask, num_tokens),
            teacher=self.teacher.only(mask, num_tokens),
        )

    @property
    def _logits(self) -> Tensor:
        assert self.raw_logits is not None
        return self.raw_logits.float()

    @property
    def _token_logprobs(self) -> Tensor:
        if "_logp" not in self.__dict__:
            logits = self._logits / self.temperature if self.temperature != 1 else self._logits
            picked = logits.gather(1, self.targets[:, None])[:, 0]
            object.__setattr__(self, "_logp", picked - logits.logsumexp(-1))
        logp: Tensor = self.__dict__["_logp"]
        return (
            logp
            if self.cap is None
            else torch.where(logp > -self.cap, logp, torch.full_like(logp, -self.cap))
        )


def _nothing(*_: Any) -> Tensor:
    raise AssertionError("nothing was declared of this view")
