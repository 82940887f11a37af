"""Likelihood of running text of any length: strided windows, each token scored once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from expunge.data.batching import collate, token_batches
from expunge.data.encoding import Encoded
from expunge.errors import NotComputable
from expunge.measure.score import batch_tokens, token_scores
from expunge.subjects.subject import Subject

__all__ = ["PackedPerplexity", "packed_perplexity", "strided", "window_logprobs"]


@dataclass(frozen=True)
class PackedPerplexity:
    """Perplexity per token and nll per UTF-8 byte; `window` and `stride` are part of the number."""

    perplexity: float
    nll_per_byte: float
    tokens: int
    window: int
    stride: int


def strided(ids: Sequence[int], window: int, stride: int) -> list[Encoded]:
    """Windows over `ids`: each token but the first is scored once, with window − stride ids before it.

    >>> [(w.ids, w.num_prompt) for w in strided([0, 1, 2, 3, 4, 5], 4, 2)]
    [((0, 1, 2, 3), 1), ((2, 3, 4, 5), 2)]
    """
    assert 0 < stride < window
    rows = [Encoded(tuple(ids[:window]), min(1, len(ids)), False)]
    for start in range(window, len(ids), stride):
        stop = min(start + stride, len(ids))
        begin = stop - window
        rows.append(Encoded(tuple(ids[begin:stop]), start - begin, False))
    return rows


def window_logprobs(subject: Subject, rows: Sequence[Encoded]) -> list[tuple[float, bool]]:
    """(Σ log p of the scored tokens, whether each of them is the arg max) of every row, in order."""
    subject.need("logprobs", what="scoring text")
    found = [(0.0, True)] * len(rows)
    asked = [i for i, row in enumerate(rows) if row.num_targets]
    for part in token_batches([len(rows[i].ids) for i in asked], batch_tokens(subject)):
        batch = collate([rows[asked[j]] for j in part], subject.encoder.pad_id).to(subject.device)
        scores = token_scores(subject.logits(batch), batch.targets)
        counts = batch.num_tokens.tolist()
        logprobs = scores.logprobs.double().split(counts)
        hits = (scores.greedy == batch.targets).split(counts)
        for j, logprob, hit in zip(part, logprobs, hits, strict=True):
            found[asked[j]] = (float(logprob.sum()), bool(hit.all()))
    return found


def packed_perplexity(
    subject: Subject, texts: Sequence[str], *, window: int | None = None, stride: int | None = None
) -> PackedPerplexity:
    """Perplexity of the texts as one text, blank lines between them, in windows of the model's context.

    Raises NotComputable where there is no token with a predecessor.
    """
    window = min(window or subject.encoder.max_length, subject.encoder.max_length)
    stride = stride or max(1, window // 2)
    text = "\n\n".join(texts)
    ids = text_ids(subject, text)
    rows = strided(ids, window, stride)
    tokens = sum(row.num_targets for row in rows)
    if not tokens:
        raise NotComputable("the text has no token to be scored")
    nats = -sum(logprob for logprob, _ in window_logprobs(subject, rows))
    try:
        perplexity = math.exp(nats / tokens)
    except OverflowError:
        perplexity = math.inf
    return PackedPerplexity(perplexity, nats / len(text.encode()), tokens, window, stride)


def text_ids(subject: Subject, text: str) -> list[int]:
    """The ids of a whole text behind what opens texts for this tokenizer: BOS, or the end token."""
    tokenizer = subject.tokenizer
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [*([] if first is None else [first]), *ids]
