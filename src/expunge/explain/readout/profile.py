"""Where knowledge remains by layer, between the oracle and the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from expunge.errors import NotComputable

__all__ = ["Profile", "depth_profile"]


class Profile(NamedTuple):
    shares: dict[int, float | None]  # ρ_ℓ; None where the layer is undefined
    residual: float  # max over the layers where it is defined
    layer: int  # where that is


def depth_profile(
    original: Mapping[int, float],
    unlearned: Mapping[int, float],
    oracle: Mapping[int, float],
    *,
    noise: float = 0.0,
) -> Profile:
    """ρ_ℓ = (M_ℓ(u) − M_ℓ(r)) / (M_ℓ(o) − M_ℓ(r)): 1 as in the original, 0 as in the oracle; never clipped.

    A layer where the original does not beat the oracle by more than `noise` is undefined. Raises
    NotComputable where all are. Patil et al. 2023 (arXiv 2309.17410).

    >>> depth_profile({1: 0.1, 2: 0.6}, {1: 0.1, 2: 0.5}, {1: 0.1, 2: 0.1}).shares
    {1: None, 2: 0.8}
    """
    shares: dict[int, float | None] = {}
    for layer, most in original.items():
        gap = most - oracle[layer]
        shares[layer] = (unlearned[layer] - oracle[layer]) / gap if gap > noise else None
    defined = {layer: share for layer, share in shares.items() if share is not None}
    if not defined:
        raise NotComputable("at no layer does the original know more than the oracle")
    layer = max(defined, key=lambda at: defined[at])
    return Profile(shares, defined[layer], layer)
