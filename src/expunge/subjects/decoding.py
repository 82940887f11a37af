"""Greedy decoding of ids, by one model or by several that are blended at every step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Blend", "greedy_ids"]

Blend = Callable[[dict[str, Tensor]], Tensor]
"""{"base": [B, V], part: [B, V], …} → the logits that are decoded, [B, V]."""


def greedy_ids(
    model: Any,
    texts: Sequence[Sequence[int]],
    length: int,
    stop: Sequence[int],
    pad_id: int,
    *,
    parts: Mapping[str, Any] | None = None,
    blend: Blend | None = None,
) -> list[list[int]]:
    """At most `length` greedy tokens after each text, left-padded; what follows a stop id is meaningless.

    `blend` decides on the logits of the model and of `parts`, which read along with caches of their own.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    width = max(map(len, texts))
    ids = torch.tensor([[pad_id] * (width - len(t)) + list(t) for t in texts], device=model.device)
    mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts], device=model.device)
    config = GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad_id,
        eos_token_id=list(stop) or None,
    )
    along = LogitsProcessorList([_Along(parts or {}, mask, blend)]) if blend else None
    # what the model's own generation config asks for (a repetition penalty, say) is not greedy decoding
    own, model.generation_config = model.generation_config, config
    try:
        out = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=along
        )
    finally:
        model.generation_config = own
    found: list[list[int]] = out[:, width:].tolist()
    return found


class _Along:
    """Models that read the same tokens beside the one that generates, each new token once."""

    def __init__(self, parts: Mapping[str, Any], mask: Tensor, blend: Blend):
        self.parts, self.mask, self.blend = parts, mask, blend
        self.caches: dict[str, Any] = dict.fromkeys(parts)
        self.seen = 0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        grown = ids.shape[1] - self.mask.shape[1]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), grown)], dim=1)
        logits = {"base": scores}
        for name, model in self.parts.items():
            logits[name] = self._next(name, model, ids[:, self.seen :]).to(scores.dtype)
        self.seen = ids.shape[1]
        return self.blend(logits)

    def _next(self, name: str, model: Any, new: Tensor) -> Tensor:
        more = {}
        if "position_ids" in inspect.signature(model.forward).parameters:
            more["position_ids"] = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, self.seen :]
        out = model(
            input_ids=new, attention_mask=self.mask, past_key_values=self.caches[name], use_cache=True, **more
        )
        self.caches[name] = out.past_key_values
        last: Tensor = out.logits[:, -1]
        return last
