"""The textbook way, with plain transformers calls: what most unlearning code does.

A live reference copy, separate forwards for forget and retain, padded batches, logits at every position, one
pass over the data for each metric, padded greedy generation. Only the token ids come from expunge, so that
both ways answer the same question; the numbers are the same, and a test holds that.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.encoding import Encoded

__all__ = [
    "METRICS",
    "Padded",
    "generate",
    "graddiff_loss",
    "npo_loss",
    "pad",
    "rmu_loss",
    "row_losses",
    "suite",
    "train_step",
]


class Padded(NamedTuple):
    """Rows padded on the right; labels [B, T] are −100 outside the answer."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


def pad(rows: Sequence[Encoded], pad_id: int = 0) -> Padded:
    width = max(len(row.ids) for row in rows)
    ids, mask, labels = [], [], []
    for row in rows:
        empty = width - len(row.ids)
        ids.append([*row.ids, *[pad_id] * empty])
        mask.append([1] * len(row.ids) + [0] * empty)
        labels.append([-100] * row.num_prompt + list(row.ids[row.num_prompt :]) + [-100] * empty)
    return Padded(torch.tensor(ids), torch.tensor(mask), torch.tensor(labels))


def row_losses(model: nn.Module, batch: Padded) -> tuple[Tensor, Tensor]:
    """(sum, mean) of the negative log-likelihood of each row's answer, [B]."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
    targets = batch.labels[:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    )
    total = losses.view(targets.shape).sum(1)
    return total, total / (targets != -100).sum(1)


# Unlearning losses ---------------------------------------------------------------------------------------


def npo_loss(
    model: nn.Module, reference: nn.Module, forget: Padded, retain: Padded, beta: float = 0.1
) -> Tensor:
    with torch.no_grad():
        before, _ = row_losses(reference, forget)
    now, _ = row_losses(model, forget)
    forgetting = -2 / beta * F.logsigmoid(beta * (now - before)).mean()
    _, keeping = row_losses(model, retain)
    return forgetting + keeping.mean()


def graddiff_loss(model: nn.Module, forget: Padded, retain: Padded) -> Tensor:
    _, forgetting = row_losses(model, forget)
    _, keeping = row_losses(model, retain)
    return -forgetting.mean() + keeping.mean()


def rmu_loss(
    model: nn.Module, reference: nn.Module, forget: Padded, retain: Padded, *,
    layer: int, target: Tensor, weight: float,
) -> Tensor:  # fmt: skip
    """Misdirection of the states after block `layer`, by whole passes that keep every layer's states."""
    pushed = _mean_square(_states(model, forget, layer) - target, forget)
    with torch.no_grad():
        before = _states(reference, retain, layer)
    return pushed + weight * _mean_square(_states(model, retain, layer) - before, retain)


def _states(model: nn.Module, batch: Padded, layer: int) -> Tensor:
    out = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    return out.hidden_states[layer + 1]


def _mean_square(difference: Tensor, batch: Padded) -> Tensor:
    """Mean over width, over the positions that predict answer tokens, over rows."""
    answers = (batch.labels[:, 1:] != -100).float()
    squares = difference[:, :-1].square().mean(-1) * answers
    return (squares.sum(1) / answers.sum(1)).mean()


def train_step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], loss: Tensor) -> float:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


# Evaluation ----------------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """One row's answer positions in a padded batch: log-probabilities over the vocabulary, and the answer."""

    logp: Tensor  # [T, V], the end token in
    targets: Tensor  # [T]

    @property
    def picked(self) -> Tensor:
        return self.logp.gather(1, self.targets[:, None])[:, 0]

    @property
    def hits(self) -> Tensor:
        return (self.logp.argmax(-1) == self.targets)[:-1]


def _answers(model: nn.Module, batches: Sequence[Padded]) -> Iterator[_Answer]:
    """One pass over the data, the log-softmax over every position of the padded batch."""
    for batch in batches:
        with torch.no_grad():
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
            logp = torch.log_softmax(logits[:, :-1], dim=-1)
        for row, labels in zip(logp, batch.labels[:, 1:], strict=True):
            yield _Answer(row[labels != -100], labels[labels != -100])


def _suffix(answer: _Answer, _: str) -> float:
    for k in range(len(answer.hits) + 1):
        if answer.hits[k:].all():
            return 1 - k / len(answer.hits)
    raise AssertionError


def _lowest(values: Tensor, share: float) -> float:
    return float(values.sort().values[: max(1, int(share * len(values) + 1e-6))].mean())


def _normalized(answer: _Answer) -> Tensor:
    logp = answer.logp[:-1]
    p = logp.exp()
    mean = (p * logp).sum(-1)
    std = (p * (logp - mean[:, None]).square()).sum(-1).sqrt().clamp_min(1e-3)
    return (answer.picked[:-1] - mean) / std


METRICS: dict[str, Callable[[_Answer, str], float]] = {
    "nll": lambda a, _: -float(a.picked.mean()),
    "probability": lambda a, _: float(a.picked.mean().exp()),
    "perplexity": lambda a, _: float((-a.picked.mean()).exp()),
    "extraction_strength": _suffix,
    "exact_memorization": lambda a, _: float(a.hits.float().mean()),
    "mia_loss": lambda a, _: float(a.picked.mean()),
    "mia_zlib": lambda a, text: float(a.picked.mean()) / len(zlib.compress(text.encode(), 6)),
    "mia_min_k": lambda a, _: _lowest(a.picked[:-1], 0.2),
    "mia_min_k_40": lambda a, _: _lowest(a.picked[:-1], 0.4),
    "mia_min_k_plus_plus": lambda a, _: _lowest(_normalized(a), 0.2),
}
"""Ten metrics: (one row's answer, its text) → its value."""


def suite(model: nn.Module, batches: Sequence[Padded], texts: Sequence[str], metric: str) -> list[float]:
    """One metric, one pass: the value of each row."""
    answers = _answers(model, batches)
    return [METRICS[metric](answer, text) for answer, text in zip(answers, texts, strict=True)]


def generate(
    model: Any, rows: Sequence[Encoded], *, end: int, pad_id: int, max_new_tokens: int
) -> list[list[int]]:
    """Plain greedy generation of one batch, padded on the left; ids up to the end token."""
    prompts = [row.ids[: row.num_prompt] for row in rows]
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens,
            eos_token_id=end, pad_token_id=pad_id,
        )  # fmt: skip
    texts = out[:, width:].tolist()
    return [text[: text.index(end) + 1] if end in text else text for text in texts]
