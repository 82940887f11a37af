"""Localization by intervention: which clean state brings a spoiled answer back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from expunge.data.batching import Batch, collate
from expunge.data.encoding import Encoded, Encoder
from expunge.data.records import Record
from expunge.errors import DataError, Problem
from expunge.explain.base import LOCALIZERS, Case, Localization, Localizer
from expunge.explain.localization.masks import Part, block_mask, part_of
from expunge.measure.score import batch_tokens
from expunge.progress import track
from expunge.stats import seed_from
from expunge.subjects.architecture import blocks
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject

__all__ = ["CausalTracing", "mention"]


def mention(encoder: Encoder, row: Encoded, entity: str) -> range:
    """The tokens of the entity's first mention in the prompt; the whole prompt where it is not mentioned."""
    name, prompt = entity.strip().casefold(), row.ids[: row.num_prompt]

    def named(start: int, stop: int) -> bool:
        return name in encoder.decode(prompt[start:stop]).casefold()

    if not name or not named(0, len(prompt)):
        return range(len(prompt))
    stop = next(i for i in range(1, len(prompt) + 1) if named(0, i))
    start = next(i for i in range(stop - 1, -1, -1) if named(i, stop))
    return range(start, stop)


@LOCALIZERS.register(
    "causal_tracing",
    unit="block",
    access="states",
    localizes=True,
    cost="(1 + layers · prompt tokens) · samples forwards per record",
    source="Meng et al. 2022, arXiv 2202.05262",
)
@dataclass(frozen=True, kw_only=True)
class CausalTracing(Localizer):
    """Where a clean state, put into a run whose entity is noise, brings the answer back.

    The embeddings of the entity's tokens get Gaussian noise of `noise` standard deviations of the embedding
    matrix; then the output of one `part` (block, mlp, attention) at one prompt token is what it was in the
    clean run. Indirect effect = p(restored) − p(corrupted), p = exp(mean log-probability of the answer), mean
    over `samples` draws. `window` layers around are restored together. Map: the maximum over tokens, less its
    mean over `compare` retain records: first blocks help any name. Mask: that part of the `keep` layers with
    the largest mean. Meng et al. 2022 (arXiv 2202.05262): 3 deviations, 10 samples, windows of 10 of 48
    layers.
    """

    part: Part = "mlp"
    noise: Annotated[float, Gt(0)] = 3.0
    samples: Annotated[int, Ge(1)] = 10
    window: Annotated[int, Ge(1)] = 1
    keep: Annotated[int, Ge(1)] = 1
    compare: Annotated[int, Ge(0)] = 8

    def localize(self, subject: Subject, case: Case) -> Localization:
        subject.need("hidden", "weights", what="causal tracing")
        records = [record for record in case.forget if not record.is_document]
        if not records:
            what, fix = "needs records with a prompt", "Use gradient_saliency for documents"
            raise DataError(Problem("localizer.causal_tracing", what, fix))
        others = [record for record in case.retain if not record.is_document][: self.compare]
        effects, details = [], {}
        with track("causal tracing", len(records) + len(others)) as advance:
            for record in (*records, *others):
                found, total, span = self._trace(subject, record, case.seed)
                effects.append(found.max(axis=1))
                details[record.id] = {"effects": found.tolist(), "total": total, "entity": list(span)}
                advance()
        layers, found_map = tuple(range(len(blocks(subject.model)))), np.array(effects[: len(records)])
        if others:
            found_map = found_map - np.mean(effects[len(records) :], axis=0)
        best = np.argsort(-found_map.mean(0), kind="stable")[: self.keep].tolist()
        mask = block_mask(subject.model, best, self.part)
        return Localization(tuple(r.id for r in records), layers, found_map, mask, details=details)

    def _trace(self, subject: Subject, record: Record, seed: int) -> tuple[np.ndarray, float, range]:
        """(indirect effect [L, T] over prompt tokens, total effect, the entity's tokens)"""
        row = subject.encoder.encode(record)
        span, tokens = mention(subject.encoder, row, record.entity), range(row.num_prompt)
        parts = [part_of(block, self.part) for block in blocks(subject.model)]
        clean, states = self._clean(subject, row, parts)
        noise = self._noise(subject, len(span), seed_from(seed, "causal tracing", record.id))
        corrupted = float(self._asked(subject, row, span, noise, [], []).mean())
        effects = np.zeros((len(parts), len(tokens)))
        group = max(1, batch_tokens(subject) // (self.samples * len(row.ids)))
        for layer in range(len(parts)):
            low = max(0, layer - self.window // 2)
            near = range(low, min(len(parts), low + self.window))
            patches = [(parts[i], states[i]) for i in near]
            for start in range(0, len(tokens), group):
                places = list(tokens[start : start + group])
                p = self._asked(subject, row, span, noise, patches, places)
                effects[layer, places] = p.view(len(places), -1).mean(1).cpu().numpy() - corrupted
        return effects, clean - corrupted, span

    def _clean(
        self, subject: Subject, row: Encoded, parts: Sequence[nn.Module]
    ) -> tuple[float, list[Tensor]]:
        states: list[Tensor] = []
        with ExitStack() as hooks:
            for part in parts:
                hooks.enter_context(_changed(part, lambda output: states.append(output.clone())))
            p = _probability(subject, collate([row], subject.encoder.pad_id).to(subject.device))
        return float(p), [state[0] for state in states]

    def _noise(self, subject: Subject, length: int, seed: int) -> Tensor:
        """[samples, length, D], the same for every layer and token"""
        weight = subject.model.get_input_embeddings().weight.detach()  # type: ignore[operator]
        generator = torch.Generator().manual_seed(seed % 2**63)
        drawn = torch.randn(self.samples, length, weight.shape[1], generator=generator)
        return (self.noise * float(weight.float().std()) * drawn).to(weight)

    def _asked(
        self,
        subject: Subject,
        row: Encoded,
        span: range,
        noise: Tensor,
        patches: Sequence[tuple[nn.Module, Tensor]],
        places: Sequence[int],
    ) -> Tensor:
        """p(answer) [max(1, places) · samples], place by place: noisy runs with these states restored."""
        copies = max(1, len(places))
        batch = collate([row] * (copies * len(noise)), subject.encoder.pad_id).to(subject.device)
        rows = torch.arange(len(batch), device=subject.device)
        at = torch.tensor(places, device=subject.device).repeat_interleave(len(noise))

        def spoil(embedded: Tensor) -> Tensor:
            embedded = embedded.clone()
            embedded[:, span.start : span.stop] += noise.repeat(copies, 1, 1)
            return embedded

        def restore(clean: Tensor) -> Any:
            return lambda output: output.index_put((rows, at), clean[at])

        with ExitStack() as hooks:
            embeddings = subject.model.get_input_embeddings()  # type: ignore[operator]
            hooks.enter_context(_changed(embeddings, spoil))
            for part, clean in patches:
                hooks.enter_context(_changed(part, restore(clean)))
            return _probability(subject, batch)


def _probability(subject: Subject, batch: Batch) -> Tensor:
    """exp(mean log-probability of the answer) [B]"""
    with subject.evaluating() as model:
        logits = forward(model, batch).logits
    assert logits is not None
    logprobs = logits.float().log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
    sums = logprobs.new_zeros(len(batch)).index_add(0, batch.row, logprobs)
    return (sums / batch.num_tokens).exp()


@contextmanager
def _changed(module: nn.Module, change: Any) -> Iterator[None]:
    """The module's output (its first part, where it has several) goes through `change`; None leaves it."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return change(output)
        changed = change(output[0])
        return None if changed is None else (changed, *output[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
