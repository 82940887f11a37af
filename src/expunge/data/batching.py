"""Rows to tensors: padding on the right, masks from lengths, answer positions packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from expunge.data.encoding import Encoded

__all__ = ["Batch", "collate", "token_batches"]


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of padded length T with A answer positions in all.

    `row`, `col` [A]: where the logits that *predict* an answer token sit (the one causal shift is done here);
    `targets` [A]: the gold ids; `num_tokens` [B]: answer tokens per row, end token included.
    """

    input_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, T]
    row: Tensor  # [A]
    col: Tensor  # [A]
    targets: Tensor  # [A]
    num_tokens: Tensor  # [B]

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device) -> Batch:
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


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
