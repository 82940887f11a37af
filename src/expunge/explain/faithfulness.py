"""Whether a mask is where the knowledge is: taking it out must hurt forget more than a random mask does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.errors import NotComputable
from expunge.explain.record_gradients import block_parameters
from expunge.progress import track
from expunge.stats import seed_from
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows, row_losses
from expunge.training.selections import Mask

__all__ = ["Faithfulness", "ablated", "faithfulness", "mask_size", "random_masks"]

Unit = Literal["weight", "neuron", "block"]
How = Literal["zero", "mean"]

MOST = 1024
"""Subsets of blocks that are looked at."""


@dataclass(frozen=True)
class Faithfulness:
    """Rise of the mean answer NLL when the mask's weights are taken out, beside that of random masks.

    `percentile`: share of random masks that hurt forget less (ties half); `selective` the same for the rise
    on forget minus that on retain. None without retain records.
    """

    forget: float
    retain: float | None
    random_forget: tuple[float, ...]
    random_retain: tuple[float, ...]
    percentile: float
    selective: float | None
    weights: int

    @property
    def faithful(self) -> bool:
        """Whether the mask hurts forget more than 95 of 100 random masks."""
        return self.percentile >= 0.95


def faithfulness(
    subject: Subject,
    mask: Mask,
    forget: Sequence[Record],
    retain: Sequence[Record] = (),
    *,
    unit: Unit = "weight",
    how: How = "zero",
    repeats: int = 20,
    seed: int = 0,
) -> Faithfulness:
    """Ablate the mask and `repeats` random ones of equal size; the subject is left as it was.

    Random masks have as many weights of every tensor (`unit` weight), as many neurons of every block
    (neuron), or as many whole blocks (block; each other set at most once, so there may be fewer than
    `repeats`). `mean` puts each tensor's mean in the place of its weights. Raises NotComputable where there
    is no other mask.
    """
    rows = {"forget": answer_rows(subject, forget), "retain": answer_rows(subject, retain) if retain else []}
    before = {side: _mean_nll(subject, some) for side, some in rows.items()}

    def rises(chosen: Mask) -> tuple[float, float]:
        with ablated(subject.model, chosen, how):
            found = {side: _mean_nll(subject, some) for side, some in rows.items()}
        return found["forget"] - before["forget"], found["retain"] - before["retain"]

    mine, drawn = rises(mask), []
    with track("faithfulness", repeats) as advance:
        for other in random_masks(subject.model, mask, unit, repeats, seed):
            drawn.append(rises(other))
            advance()
    if not drawn:
        raise NotComputable(
            "no other mask of that size exists: the mask is the whole of what it is drawn from"
        )
    random = np.array(drawn)
    return Faithfulness(
        mine[0],
        mine[1] if retain else None,
        tuple(random[:, 0].tolist()),
        tuple(random[:, 1].tolist()) if retain else (),
        _percentile(mine[0], random[:, 0]),
        _percentile(mine[0] - mine[1], random[:, 0] - random[:, 1]) if retain else None,
        mask_size(subject.model, mask),
    )


@contextmanager
def ablated(model: nn.Module, mask: Mask, how: How = "zero") -> Iterator[None]:
    """Inside, the mask's weights are zero, or each tensor's mean; they come back bit for bit."""
    parameters = dict(model.named_parameters())
    kept: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, chosen in mask.items():
            weight = parameters[name]
            kept[name] = weight.detach().clone()
            value = weight.mean() if how == "mean" else weight.new_zeros(())
            weight.copy_(
                value.expand_as(weight) if chosen is True else torch.where(_on(chosen, weight), value, weight)
            )
    try:
        yield
    finally:
        with torch.no_grad():
            for name, before in kept.items():
                parameters[name].copy_(before)


def random_masks(model: nn.Module, mask: Mask, unit: Unit, repeats: int, seed: int) -> Iterator[Mask]:
    """Masks as large as this one, tensor by tensor; never the same one for `block`."""
    if unit == "block":
        yield from islice(_other_blocks(model, mask, seed), repeats)
        return
    layer_of = {name: layer for layer, names in block_parameters(model).items() for name in names}
    for nth in range(repeats):
        drawn: dict[str, Tensor | bool] = {}
        for name, chosen in mask.items():
            if isinstance(chosen, bool):
                drawn[name] = chosen
            elif unit == "weight":
                order = _order(seed, nth, name, chosen.numel())
                drawn[name] = chosen.cpu().reshape(-1)[order].view(chosen.shape)
            else:  # a neuron is one row or column of several matrices: they are permuted alike
                drawn[name] = chosen.cpu()
                for dim, size in enumerate(chosen.shape):
                    order = _order(seed, nth, f"block {layer_of.get(name)}", size)
                    drawn[name] = drawn[name].index_select(dim, order)  # type: ignore[union-attr]
        yield drawn


def mask_size(model: nn.Module, mask: Mask) -> int:
    """How many weights are set."""
    parameters = dict(model.named_parameters())
    return sum(int(m.sum()) if isinstance(m, Tensor) else parameters[n].numel() for n, m in mask.items())


def _other_blocks(model: nn.Module, mask: Mask, seed: int) -> Iterator[Mask]:
    """The mask moved to every other set of as many blocks, in random order."""
    by_block = block_parameters(model)
    stems = {name: (layer, i) for layer, names in by_block.items() for i, name in enumerate(names)}
    mine = sorted({stems[name][0] for name in mask})
    sets = [s for s in islice(combinations(by_block, len(mine)), MOST) if list(s) != mine]
    for at in _order(seed, 0, "blocks", len(sets)).tolist():
        moved = dict(zip(mine, sets[at], strict=True))
        yield {by_block[moved[layer]][i]: mask[name] for name in mask for layer, i in [stems[name]]}


def _order(seed: int, nth: int, what: str, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_from(seed, "random mask", nth, what, size) % 2**63)
    return torch.randperm(size, generator=generator)


def _on(mask: Tensor | bool, like: Tensor) -> Tensor:
    assert isinstance(mask, Tensor)
    return mask.to(like.device)


def _percentile(value: float, others: np.ndarray) -> float:
    return float((others < value).mean() + 0.5 * (others == value).mean())


def _mean_nll(subject: Subject, rows: Sequence[Encoded], batch: int = 32) -> float:
    """Mean over rows of m_i; 0 without rows."""
    with subject.evaluating():
        losses = [row_losses(subject, rows[i : i + batch]) for i in range(0, len(rows), batch)]
    return float(torch.cat(losses).double().mean()) if losses else 0.0
