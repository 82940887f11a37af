"""What a model holds: each tensor with its weights, zeros and stored bits, and what a token costs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.metrics.compression import Stored
from expunge.subjects.architecture import blocks, output_head

__all__ = ["Flops", "flops_per_token", "inventory"]

EXPERT = re.compile(r"\bexperts\.")


def inventory(
    model: nn.Module, bits: Mapping[str, float] | None = None, *, compressed: bool = False
) -> list[Stored]:
    """Every parameter once, however often it is tied.

    `bits`: what the matrices of the blocks take as stored, by their names there; others take their dtype's.
    `compressed`: whether these matrices were compressed at all (pruning stores them as they are).
    """
    bits = bits or {}
    inner = {id(p): name for name, p in blocks(model).named_parameters() if p.ndim >= 2}
    return [
        Stored(
            name,
            p.numel(),
            bits.get(inner.get(id(p), ""), 8.0 * p.element_size() * p.numel()),
            p.numel() - int(torch.count_nonzero(p)),
            compressed and id(p) in inner,
        )
        for name, p in model.named_parameters()
    ]


class Flops(NamedTuple):
    """Operations per token of a forward pass; `theoretical`: with kernels that skip every zero weight."""

    dense: float
    theoretical: float


def flops_per_token(model: nn.Module) -> Flops:
    """2·N, N the weights a token is multiplied with: the blocks' matrices and the head.

    Of experts a token passes the share that is routed to. Attention scores, norms and the embedding's look-up
    are not counted (Kaplan et al. 2020, arXiv 2001.08361).
    """
    parts: list[tuple[Tensor, float]] = [
        (p, _share(model.config, name, p)) for name, p in blocks(model).named_parameters() if p.ndim >= 2
    ]
    parts.append((output_head(model).weight, 1.0))  # type: ignore[arg-type]
    dense = sum(share * p.numel() for p, share in parts)
    theoretical = sum(share * int(torch.count_nonzero(p)) for p, share in parts)
    return Flops(2 * dense, 2 * theoretical)


def _share(config: Any, name: str, parameter: Tensor) -> float:
    """Share of a parameter's weights that one token meets: of experts, those it is routed to."""
    if not EXPERT.search(f"{name}."):
        return 1.0
    text = config.get_text_config()
    counts = (getattr(text, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    experts = next((n for n in counts if n), None) or (parameter.shape[0] if parameter.ndim == 3 else 1)
    return min(1.0, float(getattr(text, "num_experts_per_tok", experts)) / float(experts))
