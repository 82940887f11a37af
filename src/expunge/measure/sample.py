"""Many samples of one prompt, decoded together: what they have in common is read once.

A row of the cache is a prefix, not a sample: a model that knows says the same thing many times.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from expunge.data.batching import collate
from expunge.data.encoding import Encoded
from expunge.stats import seed_from
from expunge.subjects.subject import Subject

__all__ = ["sample_ids"]

MAX_ROWS = 512
CACHE_BYTES = 2**31
"""What the keys and values of one batch may take."""


def sample_ids(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    n: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    advance: Callable[[int], Any] | None = None,
) -> list[list[list[int]]]:
    """For each prompt n samples of at most its length, top-p 1; a stop id ends a sample and is left out.

    At temperature 0 every sample is the greedy one. Deterministic in the seed.
    """
    found: list[list[list[int]]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], len(prompts[i])))
    widest = max((len(prompts[i]) + lengths[i] for i in order), default=0)
    rows = _rows(subject, widest)
    repeats, size = min(n, rows), max(1, rows // min(n, rows))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        for done in range(0, n, repeats):
            count = min(repeats, n - done)
            device = subject.device
            generator = torch.Generator(device).manual_seed(seed_from(seed, "sample", start, done) % 2**63)
            draw = _Draw(temperature, generator)
            new = _decode(subject, [prompts[i] for i in part], max(lengths[i] for i in part), count, draw)
            for at, i in enumerate(part):
                texts = new[at * count : (at + 1) * count]
                found[i] += [_ended(text[: lengths[i]], subject.encoder.stop_ids) for text in texts]
        if advance:
            advance(len(part))
    return found


class _Draw:
    """Chooses the next ids [B] from logits [B, V]."""

    def __init__(self, temperature: float, generator: torch.Generator):
        self.temperature, self.generator = temperature, generator

    def __call__(self, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        p = torch.softmax(logits.float() / self.temperature, dim=-1)
        return torch.multinomial(p, 1, generator=self.generator)[:, 0]


def _decode(
    subject: Subject, prompts: Sequence[Sequence[int]], length: int, n: int, draw: _Draw
) -> list[list[int]]:
    if type(subject).logits is not Subject.logits:  # what is asked is not the model itself
        return _decode_slowly(subject, prompts, length, n, draw)
    pad, stop = subject.encoder.pad_id, torch.tensor(subject.encoder.stop_ids, device=subject.device)
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=subject.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=subject.device)
    with subject.evaluating() as model:
        out = _read(model, ids, mask, None)
        cache, logits = out.past_key_values, out.logits[:, -1]
        at = torch.arange(len(prompts), device=subject.device).repeat_interleave(
            n
        )  # sample → row that it is in
        alive = torch.arange(len(at), device=subject.device)
        texts = torch.full((len(at), length), int(stop[0]) if len(stop) else pad, device=subject.device)
        for step in range(length):
            new = draw(logits[at])
            texts[alive, step] = new
            open_ = ~torch.isin(new, stop)
            if step + 1 == length or not open_.any():
                break
            alive, at, new = alive[open_], at[open_], new[open_]
            # samples that are equal so far are one row
            pairs, at = torch.unique(at * logits.shape[-1] + new, return_inverse=True)
            rows, new = pairs // logits.shape[-1], pairs % logits.shape[-1]
            cache.batch_select_indices(rows)
            mask = torch.cat([mask[rows], mask.new_ones(len(rows), 1)], dim=1)
            out = _read(model, new[:, None], mask, cache)
            logits = out.logits[:, -1]
    found: list[list[int]] = texts.tolist()
    return found


def _read(model: Any, ids: Tensor, mask: Tensor, cache: Any) -> Any:
    more: dict[str, Any] = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        more["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        more["logits_to_keep"] = 1
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)


def _decode_slowly(
    subject: Subject, prompts: Sequence[Sequence[int]], length: int, n: int, draw: _Draw
) -> list[list[int]]:
    """Token by token from the subject's own next-token distributions, without a cache."""
    pad, stop = subject.encoder.pad_id, set(subject.encoder.stop_ids)
    asked = [tuple(p) for p in prompts for _ in range(n)]
    found: list[list[int]] = [[] for _ in asked]
    for _ in range(length):
        open_ = [i for i, new in enumerate(found) if not (new and new[-1] in stop)]
        if not open_:
            break
        # the id at the end stands for what is asked
        rows = [Encoded((*asked[i], *found[i], pad), len(asked[i]) + len(found[i]), False) for i in open_]
        new_ids = draw(subject.logits(collate(rows, pad).to(subject.device))).tolist()
        for i, token in zip(open_, new_ids, strict=True):
            found[i].append(token)
    return found


def _ended(ids: list[int], stop: Sequence[int]) -> list[int]:
    ends = [k for k, token in enumerate(ids) if token in stop]
    return ids[: ends[0]] if ends else ids


def _rows(subject: Subject, width: int) -> int:
    """Rows whose keys and values stay within the budget."""
    config = subject.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * size * next(subject.model.parameters()).element_size()
    return int(max(1, min(MAX_ROWS, CACHE_BYTES // max(1, token * width))))
