"""Localization of neurons: integrated gradients over the activations inside each MLP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from expunge.data.batching import collate
from expunge.data.records import Record
from expunge.explain.base import LOCALIZERS, Case, Localization, Localizer
from expunge.explain.localization.masks import inner_width, neuron_mask
from expunge.progress import track
from expunge.subjects.architecture import blocks
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows, differentiable
from expunge.training.linear_memory import mlp_output
from expunge.training.selections import keep_largest
from expunge.training.selections.base import Share

__all__ = ["IntegratedGradients"]


@LOCALIZERS.register(
    "integrated_gradients",
    unit="neuron",
    access="gradients",
    localizes=True,
    cost="layers · steps · (1F+1B) per record",
    source="Dai et al. 2021, arXiv 2104.08696",
)
@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(Localizer):
    """Knowledge neurons: what each MLP activation adds to an answer's probability, beyond its part in others.

    attr = w ⊙ (1/m) Σ_k ∂P((k − ½)/m · w)/∂w, the activations w [T, F] of one block's MLP scaled from nothing
    to what they are, summed over tokens; P the mean probability of the answer's tokens. Sums over neurons
    add up to P(w) − P(0) as m = `steps` grows. The mean over retain records is taken out, as Dai et al. drop
    neurons that facts share. Map: the sum by block. Keeps the `share` of all neurons with the largest mean
    over forget. Dai et al. 2021 (arXiv 2104.08696): 20 steps.
    """

    steps: Annotated[int, Ge(1)] = 20
    share: Share = 0.01

    def localize(self, subject: Subject, case: Case) -> Localization:
        layers = range(len(blocks(subject.model)))
        widths = [inner_width(subject.model, layer) for layer in layers]
        records = [*case.forget, *case.retain]
        with track("integrated gradients", len(records)) as advance, differentiable(subject, ()):
            found = []
            for record in records:
                found.append(
                    torch.stack([_padded(self.attributed(subject, record, i), max(widths)) for i in layers])
                )
                advance()
        forget = torch.stack(found[: len(case.forget)])  # [R, L, F]
        if case.retain:
            forget = forget - torch.stack(found[len(case.forget) :]).mean(0)
        scores = {str(i): forget.mean(0)[i, : widths[i]].clamp(min=0) for i in layers}
        kept = keep_largest(scores, self.share)
        chosen = {
            i: torch.ones(widths[i], dtype=torch.bool) if (some := kept[str(i)]) is True else some
            for i in layers
            if str(i) in kept
        }
        return Localization(
            tuple(r.id for r in case.forget),
            tuple(layers),
            forget.sum(-1).cpu().numpy(),
            neuron_mask(subject.model, chosen),  # type: ignore[arg-type]
            neurons=forget.cpu().numpy(),
        )

    def attributed(self, subject: Subject, record: Record, layer: int) -> Tensor:
        """[F]: attr summed over tokens, mean over the record's windows; inside `differentiable`."""
        module, total = mlp_output(subject.model, layer), torch.tensor(0.0)
        rows = answer_rows(subject, [record])
        for row in rows:
            batch = collate([row] * self.steps, subject.encoder.pad_id).to(subject.device)
            share = (torch.arange(self.steps, device=subject.device) + 0.5) / self.steps
            scaled: list[Tensor] = []
            with _scaled_input(module, share, scaled):
                logits = forward(subject.model, batch).logits
            assert logits is not None
            p = logits.float().softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            (slope,) = torch.autograd.grad(p.sum() / row.num_targets, scaled)
            activations = scaled[0].detach() / share.to(slope.dtype)[:, None, None]
            total = total + (slope * activations).float().mean(0).sum(0) / len(rows)
        return total


def _padded(values: Tensor, width: int) -> Tensor:
    return nn.functional.pad(values, (0, width - len(values)))


@contextmanager
def _scaled_input(module: nn.Module, share: Tensor, kept: list[Tensor]) -> Iterator[None]:
    """Row k of what goes into the module is scaled by share[k], and is what is differentiated by."""

    def scale(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append((inputs[0].detach() * share.to(inputs[0].dtype)[:, None, None]).requires_grad_())
        return (kept[-1], *inputs[1:])

    handle = module.register_forward_pre_hook(scale)
    try:
        yield
    finally:
        handle.remove()
