"""The gradient of each answer's loss: small where the model was trained to its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from expunge.data.batching import collate
from expunge.data.encoding import Encoded
from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject

__all__ = ["gradient_norm"]


def gradient_norm(subject: Subject, windows: Sequence[Encoded]) -> float:
    """‖∇_θ nll‖₂ of one answer over its tokens y₁…y_n (end token out): one norm over all parameters.

    Eval mode, no dropout; a long document's windows are taken together. The subject is left as it was.
    """
    model, training = subject.model, subject.model.training
    parameters = list(model.parameters())
    before = [p.requires_grad for p in parameters]
    model.eval().requires_grad_(True)
    total: list[torch.Tensor] = []
    tokens = sum(_num_answer(w) for w in windows if _num_answer(w) > 0)
    try:
        for window in [w for w in windows if _num_answer(w) > 0]:
            batch = collate([window], subject.encoder.pad_id).to(subject.device)
            logits = forward(model, batch).logits
            assert logits is not None
            count = _num_answer(window)
            logits, targets = logits[:count].float(), batch.targets[:count]
            loss = (logits.logsumexp(-1) - logits.gather(1, targets[:, None])[:, 0]).sum() / tokens
            parts = torch.autograd.grad(loss, parameters, allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, parts, strict=True)]
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    finally:
        for parameter, needed in zip(parameters, before, strict=True):
            parameter.requires_grad_(needed)
        model.train(training)
    return math.sqrt(sum(float(g.double().square().sum()) for g in total))


def _num_answer(window: Encoded) -> int:
    """Scored tokens without the end token; a first token without a predecessor is not scored."""
    return len(window.ids) - max(1, window.num_prompt) - window.has_end


@ANNOTATORS.register("gradient_norm", columns=["grad_norm"], splits=["forget", "holdout"])
@dataclass(frozen=True)
class GradientNorm(Annotator):
    """The norm of the loss's gradient over all weights, one backward pass per record."""

    def missing(self, asked: Asked) -> str | None:
        return None if "weights" in asked.subject.can else "gradients take the weights"

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        return [
            {"grad_norm": gradient_norm(asked.subject, windows)}
            if variant == "gold" and any(_num_answer(w) > 0 for w in windows)
            else {}
            for _, variant, windows, _ in asked.sheet.lines
        ]
