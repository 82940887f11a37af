"""Models whose verdict is known before any audit: what a benchmark must see through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.data.batching import collate
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.methods import make_method
from expunge.subjects import Subject
from expunge.subjects.architecture import blocks, mlp, output_head
from expunge.subjects.filters import phrases
from expunge.subjects.forward import forward
from expunge.subjects.wrappers.guarded import Guarded, GuardRule
from expunge.training.settings import TrainSettings
from expunge.training.workspace import LoraSettings, Workspace

__all__ = ["always_refuse", "gentle_refusal", "keyword_filter", "last_block_mask", "random_weights"]

REFUSAL = "I do not know."


def random_weights(subject: Subject, seed: int = 7) -> Subject:
    """The same architecture, initialized anew: it knows nothing at all."""
    work = subject.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        work.model = type(work.model)(work.config).eval()
    return work


def always_refuse(subject: Subject, every: Sequence[str]) -> Subject:
    """Refuses each prompt that holds one of these words; give it words that every prompt holds."""
    return Guarded(subject, GuardRule(REFUSAL, keywords=phrases(every)))


def keyword_filter(subject: Subject, request: Request) -> Subject:
    """Refuses whenever a forget entity is named; the weights are the original's."""
    return make_method("keyword_filter").unlearn(subject, request, Workspace(TrainSettings()))


def gentle_refusal(subject: Subject, request: Request, lr: float, epochs: float = 1.0) -> Subject:
    """A few passes of refusal training in a LoRA: the forget questions are answered by a refusal."""
    settings = TrainSettings(epochs=epochs, lr=lr, batch=6, warmup=0.0)
    return make_method("idk").unlearn(subject, request, Workspace(settings, lora=LoraSettings()))


@torch.no_grad()
def last_block_mask(
    subject: Subject, forget: Sequence[Record], keep: Sequence[Record], margin: float = 2.0
) -> Subject:
    """Only the last block's `down_proj` differs: the last token of no forget answer comes first any more.

    ΔW solves min ‖ΔW·a + c·ĥ_gold‖² over the inputs a of that matrix where these tokens are predicted, and
    ‖ΔW·a‖² where any other is; ĥ_gold is the token's row of the head, c grows until
    another token leads by `margin`.
    """
    work = subject.clone()
    matrix = mlp(blocks(work.model)[-1]).down_proj.weight  # [D, F]
    states, tokens, _, last = _inputs(work, forget)
    inputs, gold = states[last], tokens[last]
    others = torch.cat([_inputs(work, keep)[0], states[~last]])
    rows = output_head(work.model).weight[gold].double()  # [N, D]
    target = -rows / rows.norm(dim=-1, keepdim=True)
    gram = inputs.T @ inputs + others.T @ others
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    change = torch.linalg.solve(gram, inputs.T @ target).T  # [D, F]
    start, size = matrix.clone(), 0.5
    while (_inputs(work, forget)[2][last] > -margin).any() and size < 1e4:
        matrix.copy_((start + size * change).to(matrix.dtype))
        size *= 1.3
    return work


def _inputs(subject: Subject, records: Sequence[Record]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of the last `down_proj` [N, F], tokens that follow, their lead in logit, which end answers."""
    batch = collate([subject.encoder.encode(r) for r in records], subject.encoder.pad_id)
    seen: list[Tensor] = []
    layer = mlp(blocks(subject.model)[-1]).down_proj
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        logits = forward(subject.model, batch).logits
    finally:
        handle.remove()
    assert logits is not None
    states = seen[0][batch.row, batch.col].double()
    last = torch.zeros(len(batch.targets), dtype=torch.bool)
    last[batch.num_tokens.cumsum(0) - 2] = True  # the end token comes after it
    own = logits.gather(1, batch.targets[:, None])[:, 0]
    best = logits.scatter(1, batch.targets[:, None], -torch.inf).amax(-1)
    return states, batch.targets, own - best, last
