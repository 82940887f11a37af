"""What goes into the linear maps of a block: second moments over the tokens of some rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.batching import Batch, collate, token_batches
from expunge.data.encoding import Encoded
from expunge.interventions.matrices import linear_maps, matrices
from expunge.measure.score import batch_tokens
from expunge.subjects.architecture import blocks
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject

__all__ = ["Inputs", "calibrated", "inputs_of"]


@dataclass
class Inputs:
    """Sums over the tokens that went into one linear map, fp64."""

    gram: Tensor  # [in, in] Σ x xᵀ
    size: Tensor  # [in] Σ |x|
    count: int = 0

    @property
    def norms(self) -> Tensor:
        """‖x_j‖₂ of every input channel, [in]."""
        return self.gram.diagonal().sqrt()

    def error(self, change: Tensor) -> float:
        """‖ΔW X‖² = tr(ΔW H ΔWᵀ) for a change [out, in]: what it moves the outputs by, summed over tokens."""
        change = change.double()
        return float(((change @ self.gram) * change).sum())


@torch.no_grad()
def inputs_of(
    subject: Subject, rows: Sequence[Encoded], layers: Sequence[int] | None = None
) -> dict[str, Inputs]:
    """The inputs of every linear map in these blocks (all: None) by name; padding counts nothing.

    The pass ends behind the last of the blocks. A map that no token reaches (an expert) is not there.
    """
    layers = range(len(blocks(subject.model))) if layers is None else layers
    wanted = {n: m for n, m in linear_maps(subject.model).items() if int(n.partition(".")[0]) in set(layers)}
    found: dict[str, Inputs] = {}
    for part in token_batches([len(r.ids) for r in rows], batch_tokens(subject)):
        batch = collate([rows[i] for i in part], subject.encoder.pad_id).to(subject.device)
        with _summing(wanted, batch, found), subject.evaluating() as model:
            forward(model, batch, logits=False, layers=[max(layers)])
    return found


@torch.no_grad()
def calibrated(subject: Subject, rows: Sequence[Encoded]) -> Iterator[tuple[Tensor, Inputs | None]]:
    """Every matrix of the blocks as a view [..., out, in], with its inputs as the model now gives them.

    To be changed while it is iterated: a block's inputs are taken when all before it are done. None: no token
    of `rows` reaches the matrix.
    """
    for layer in range(len(blocks(subject.model))):
        found = inputs_of(subject, rows, [layer])
        for name, weight in matrices(subject.model):
            if int(name.partition(".")[0]) == layer:
                yield weight, found.get(name)


@contextmanager
def _summing(modules: Mapping[str, nn.Module], batch: Batch, found: dict[str, Inputs]) -> Iterator[None]:
    real = batch.attention_mask.reshape(-1).bool()

    def add(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].reshape(-1, given[0].shape[-1]).double()
            x = x[real] if len(x) == len(real) else x  # a router hands on the tokens it chose
            if not len(x):
                return
            if name not in found:
                found[name] = Inputs(x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1]))
            sums = found[name]
            sums.gram += x.T @ x
            sums.size += x.abs().sum(0)
            sums.count += len(x)

        return hook

    handles = [module.register_forward_pre_hook(add(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
