"""The gradient of linear maps by its two factors, ∇W = Σ_t g_t a_tᵀ, with directions taken out of either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.data.batching import collate, token_batches
from expunge.data.records import Record
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows

__all__ = [
    "Factors", "common_directions", "factors", "projected_gradients", "real_tokens", "shared_directions",
]  # fmt: skip

Factors = dict[str, tuple[list[Tensor], list[Tensor]]]
"""Weight name → inputs [N, d_in] and output gradients [N, d_out], batch by batch, real tokens only."""


@contextmanager
def factors(modules: Mapping[str, nn.Module], keep: Tensor) -> Iterator[Factors]:
    """Collect both factors of one forward and backward; `keep` [B, T] says which tokens count."""
    found: Factors = {name: ([], []) for name in modules}
    handles = []
    for name, module in modules.items():
        inputs, outputs = found[name]

        def forward(_: Any, args: Any, output: Tensor, inputs: Any = inputs, outputs: Any = outputs) -> None:
            inputs.append(args[0].detach()[keep])
            output.register_hook(lambda g: outputs.append(g.detach()[keep]))

        handles.append(module.register_forward_hook(forward))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def common_directions(values: Tensor, count: int) -> Tensor:
    """An orthonormal basis [count, d] of the mean of `values` [N, d] and their first principal directions.

    The mean is no principal direction of the centered values, so they are orthonormalized together.
    """
    values = values.float()
    mean = values.mean(0)
    room = max(0, min(count - 1, len(values) - 1, values.shape[1] - 1))
    principal = torch.linalg.svd(values - mean, full_matrices=False).Vh[:room]
    basis, upper = torch.linalg.qr(torch.cat([mean[None], principal]).T)
    size = upper.diagonal().abs()
    return basis.T[size > 1e-6 * size.max()]


def projected_gradients(
    found: Factors,
    modules: Mapping[str, nn.Module],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """∇W by name, with these orthonormal directions removed from inputs and output gradients.

    [d_out, d_in]; of a Conv1D, which stores its weight the other way round, [d_in, d_out].
    """
    without = lambda x, basis: x - (x @ basis.T) @ basis  # noqa: E731
    made = {}
    for name, (a, g) in found.items():
        if not g:
            continue
        acts = without(torch.cat(a).float(), inputs[name])
        grads = without(torch.cat(g).float(), outputs[name])
        made[name] = acts.T @ grads if isinstance(modules[name], Conv1D) else grads.T @ acts
    return made


def real_tokens(mask: Tensor) -> Tensor:
    """Tokens that are no padding and not the first of their row, [B, T] bool."""
    kept = mask.bool().clone()
    kept[:, 0] = False
    return kept


def shared_directions(
    subject: Subject,
    records: Sequence[Record],
    modules: Mapping[str, nn.Module],
    layers: Sequence[int],
    num_inputs: int,
    num_outputs: int,
) -> dict[str, Tensor]:
    """`acts.NAME` and `grads.NAME`: bases of both factors over the records, at the weights as they stand.

    The gradient is that of Σ ⟨o, sg(o)⟩/‖o‖², o what the layers' MLPs write at answer positions.
    """
    rows = answer_rows(subject, records)
    seen: Factors = {name: ([], []) for name in modules}
    for indices in token_batches([len(r.ids) for r in rows], 4096):
        batch = collate([rows[i] for i in indices], subject.encoder.pad_id).to(subject.device)
        with factors(modules, real_tokens(batch.attention_mask)) as found:
            out = forward(subject.model, batch, logits=False, layers=layers, site="mlp")
            loss = torch.zeros((), device=subject.device)
            for states in out.hidden.values():
                o = states[batch.row, batch.col].float()
                loss = loss + ((o * o.detach()).sum(-1) / o.detach().square().sum(-1)).sum()
            weights: list[Any] = [m.weight for m in modules.values()]
            torch.autograd.grad(loss, weights)
        for name, (a, g) in found.items():
            seen[name][0].extend(a)
            seen[name][1].extend(g)
    made = {f"acts.{n}": common_directions(torch.cat(a), num_inputs) for n, (a, _) in seen.items()}
    made |= {f"grads.{n}": common_directions(torch.cat(g), num_outputs) for n, (_, g) in seen.items()}
    return {name: basis.contiguous() for name, basis in made.items()}
