"""Rows to tensors: padding on the right, masks from lengths, answer positions packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from expunge.data.encoding import Encoded

__all__ = ["Batch", "collate", "collate_shared", "shared_length", "token_batches"]


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of padded length T with A answer positions in all.

    `row`, `col` [A]: where the logits that *predict* an answer token sit (the one causal shift is done here);
    `targets` [A]: the gold ids; `num_tokens` [B]: answer tokens per row, end token included; for each answer
    where several share a row (`collate_shared`).
    """

    input_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, T], or [B, 1, T, T]: 0 where position i may see j, else the lowest number
    row: Tensor  # [A]
    col: Tensor  # [A]
    targets: Tensor  # [A]
    num_tokens: Tensor  # [B]
    position_ids: Tensor | None = None  # [B, T], where they are not 0, 1, 2, …

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device) -> Batch:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {n: part if part is None else part.to(device) for n, part in parts.items()}
        return Batch(**moved)


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad on the right. Rows without a prompt token lose their first, unpredictable, token to the prompt."""
    width = max(len(r.ids) for r in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    row: list[int] = []
    col: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for i, encoded in enumerate(rows):
        ids[i, : len(encoded.ids)] = torch.tensor(encoded.ids, dtype=torch.long)
        mask[i, : len(encoded.ids)] = 1
        start = max(1, encoded.num_prompt)
        counts.append(max(0, len(encoded.ids) - start))
        row += [i] * counts[-1]
        col += range(start - 1, len(encoded.ids) - 1)
        targets += encoded.ids[start:]
    as_long = lambda values: torch.tensor(values, dtype=torch.long)  # noqa: E731
    return Batch(ids, mask, as_long(row), as_long(col), as_long(targets), as_long(counts))


def collate_shared(groups: Sequence[Sequence[Encoded]], pad_id: int, dtype: torch.dtype) -> Batch:
    """A row per group: the prompt that all of its members have, then their answers, one after another.

    An answer sees the prompt and itself, at the positions it would have alone, so every member gets the
    logits of a row of its own. Answer positions come group by group, member by member.
    """
    widths = [shared_length(group) for group in groups]
    width = max(widths)
    ids = torch.full((len(groups), width), pad_id, dtype=torch.long)
    positions = torch.zeros((len(groups), width), dtype=torch.long)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(groups), 1, 1)  # padding sees itself: no empty row
    row: list[int] = []
    col: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for i, group in enumerate(groups):
        prompt = group[0].num_prompt
        ids[i, :prompt] = torch.tensor(group[0].ids[:prompt])
        positions[i, :prompt] = torch.arange(prompt)
        seen[i, :prompt, :prompt] = torch.ones(prompt, prompt, dtype=torch.bool).tril()
        at = prompt
        for member in group:
            answer = member.ids[prompt:]
            end = at + len(answer)
            ids[i, at:end] = torch.tensor(answer, dtype=torch.long)
            positions[i, at:end] = torch.arange(prompt, prompt + len(answer))
            seen[i, at:end, :prompt] = True
            seen[i, at:end, at:end] = torch.ones(len(answer), len(answer), dtype=torch.bool).tril()
            counts.append(len(answer))
            row += [i] * len(answer)
            col += [prompt - 1, *range(at, end - 1)] if answer else []
            targets += answer
            at = end
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
    as_long = lambda values: torch.tensor(values, dtype=torch.long)  # noqa: E731
    return Batch(ids, mask, as_long(row), as_long(col), as_long(targets), as_long(counts), positions)


def shared_length(group: Sequence[Encoded]) -> int:
    """Tokens of a row that these share: the prompt once, every answer."""
    return group[0].num_prompt + sum(len(member.ids) - member.num_prompt for member in group)


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices by length, longest first: at most `max_tokens` padded tokens, at least one row a batch."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
