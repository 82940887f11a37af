"""Hidden states of records at their answer positions, taken once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.data.batching import collate, token_batches
from expunge.data.records import Record
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows

__all__ = ["answer_states"]


def answer_states(
    subject: Subject, records: Sequence[Record], layers: Sequence[int], batch_tokens: int = 4096
) -> dict[int, Tensor]:
    """{block: [A, D]} after these blocks, at the positions that predict answer tokens; rows in order."""
    rows = answer_rows(subject, records)
    found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(rows) for layer in layers}
    with subject.evaluating() as model:
        for indices in token_batches([len(r.ids) for r in rows], batch_tokens):
            batch = collate([rows[i] for i in indices], subject.encoder.pad_id).to(subject.device)
            out = forward(model, batch, logits=False, layers=layers)
            for layer in layers:
                states = out.hidden[layer][batch.row, batch.col].float()
                for i, piece in zip(indices, states.split(batch.num_tokens.tolist()), strict=True):
                    found[layer][i] = piece
    return {layer: torch.cat(pieces) for layer, pieces in found.items()}
