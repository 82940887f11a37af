"""One teacher-forced pass per split and model: token log-probabilities, hits, moments, nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge import ranks
from expunge.data.batching import Batch, collate, collate_shared, shared_length, token_batches
from expunge.evidence import Evidence, Row
from expunge.measure.sharing import grouped, sharing
from expunge.measure.sheet import ANSWERS, REFUSED_ELSEWHERE, Line, Sheet, text_sizes
from expunge.subjects.subject import Subject

__all__ = ["TokenScores", "batch_tokens", "per_token", "score_sheet", "token_scores"]


class TokenScores(NamedTuple):
    """Per answer position, natural logarithms, fp32."""

    logprobs: Tensor  # [A]
    greedy: Tensor  # [A]
    mean: Tensor  # [A] Σ_v p_v log p_v
    std: Tensor  # [A] sqrt Σ_v p_v (log p_v − mean)²
    kl: Tensor | None  # [A] KL(reference‖model)


def token_scores(logits: Tensor, targets: Tensor, reference_logits: Tensor | None = None) -> TokenScores:
    """Scores from logits [A, V], upcast to fp32 before the log-softmax; a logit of −inf is probability 0."""
    logp = torch.log_softmax(logits.float(), dim=-1)
    p = logp.exp()
    finite = logp.masked_fill(p == 0, 0.0)
    mean = (p * finite).sum(-1)
    std = (p * (finite - mean[:, None]).square()).sum(-1).sqrt()
    kl = None
    if reference_logits is not None:
        ref = torch.log_softmax(reference_logits.float(), dim=-1)
        q = ref.exp()
        kl = (q * (ref - logp)).masked_fill(q == 0, 0.0).sum(-1)  # what the reference forbids counts nothing
    return TokenScores(logp.gather(1, targets[:, None])[:, 0], logits.argmax(-1), mean, std, kl)


def batch_tokens(subject: Subject) -> int:
    """Padded tokens per batch: the logits of one batch stay near 256 MiB, and on a CPU near its caches."""
    most = 2_048 if subject.device.type == "cpu" else 16_384
    return int(min(most, max(1_024, 2**26 // subject.vocab_size)))


def score_sheet(
    subject: Subject,
    sheet: Sheet,
    *,
    reference: Subject | None = None,
    advance: Callable[[int], Any] | None = None,
) -> Evidence:
    """Ask every line of the sheet once, grouped by length; with `reference`, also KL(reference‖model)."""
    subject.need("logprobs", what="scoring answers")
    empty = [np.empty(0)] * (6 if reference is not None else 5)
    beside = () if reference is None else (reference,)
    read = lambda batch: _columns(batch, subject, reference)  # noqa: E731
    found = per_token(subject, sheet, read, beside=beside, advance=advance)
    vocabulary = subject.vocab_size
    rows = [
        _row(sheet, line, columns or empty, vocabulary)
        for line, columns in zip(sheet.lines, found, strict=True)
    ]
    return Evidence(sheet.split, rows)


def per_token(
    subject: Subject,
    sheet: Sheet,
    read: Callable[[Batch], Sequence[np.ndarray]],
    *,
    beside: Sequence[Subject] = (),
    advance: Callable[[int], Any] | None = None,
) -> list[list[np.ndarray]]:
    """For every line the columns that `read` gives of its answer tokens, in order.

    `read(batch)` returns arrays whose first axis are the batch's A answer positions; it asks `subject` and
    those `beside`. Answers to the same prompt share a row. A line without an answer token has no columns.
    Batches are divided over the ranks; they are those of one process, and so are the columns.
    """
    windows = [w for line in sheet.lines for w in line.windows]
    asked = [i for i, w in enumerate(windows) if w.num_targets]
    found: list[list[np.ndarray]] = [[] for _ in windows]
    shares = all(map(sharing, (subject, *beside)))
    width = int(subject.config.get_text_config().hidden_size)
    groups = grouped([windows[i] for i in asked], width) if shares else [[j] for j in range(len(asked))]
    members = [[windows[asked[j]] for j in group] for group in groups]
    lengths = [shared_length(group) for group in members]
    own: dict[int, list[np.ndarray]] = {}  # of this rank's batches
    for turn in ranks.turns(list(token_batches(lengths, batch_tokens(subject)))):
        part = ranks.mine(turn)
        rows, order = [members[g] for g in part], [j for g in part for j in groups[g]]
        if any(len(group) > 1 for group in rows):
            batch = collate_shared(rows, sheet.encoder.pad_id, next(subject.model.parameters()).dtype)
        else:
            batch = collate([group[0] for group in rows], sheet.encoder.pad_id)
        batch = batch.to(subject.device)
        columns = read(batch)
        bounds = np.concatenate([[0], batch.num_tokens.cpu().numpy().cumsum()])
        for at, j in enumerate(order):
            own[asked[j]] = [c[bounds[at] : bounds[at + 1]] for c in columns]
        if advance:
            advance(sum(len(groups[g]) for part in turn for g in part))
    for share in ranks.gather(own):
        for i, columns in share.items():
            found[i] = list(columns)
    lines, at = [], 0
    for line in sheet.lines:
        parts = [columns for columns in found[at : at + len(line.windows)] if columns]
        at += len(line.windows)
        lines.append([np.concatenate(c) for c in zip(*parts, strict=True)])
    return lines


def _columns(batch: Batch, subject: Subject, reference: Subject | None) -> list[np.ndarray]:
    """Log-probabilities, hits, greedy ids, mean, deviation and, with a reference, divergence, each [A]."""
    other = reference.logits(batch) if reference is not None else None
    scores = token_scores(subject.logits(batch), batch.targets, other)
    columns = [scores.logprobs, scores.greedy == batch.targets, scores.greedy, scores.mean, scores.std]
    if scores.kl is not None:
        columns.append(scores.kl)
    return [column.cpu().numpy() for column in columns]


def _row(sheet: Sheet, line: Line, columns: list[np.ndarray], vocabulary: int) -> Row:
    record = line.record
    answer = _answer_of(line)
    text_bytes, zlib_bytes = text_sizes(answer)
    first = line.windows[0]
    return Row(
        record_id=record.id,
        split=sheet.split,
        entity=record.entity,
        variant=line.variant,
        logprobs=columns[0].astype(np.float32),
        hits=columns[1].astype(bool),
        greedy_ids=columns[2].astype(np.int32),
        vocab_mean=columns[3].astype(np.float32),
        vocab_std=columns[4].astype(np.float32),
        has_end=first.has_end,
        truncated=first.truncated and not record.is_document,
        num_prompt_tokens=first.num_prompt,
        text_bytes=text_bytes,
        zlib_bytes=zlib_bytes,
        vocab_size=vocabulary,
        answer=answer,
        kl=columns[5].astype(np.float32) if len(columns) > 5 else None,
        label=line.label,
    )


def _answer_of(line: Line) -> str:
    """The answer text of the variant: for perturbed answers, choices and refusals not the record's own."""
    kind, _, j = line.variant.partition(":")
    record = line.record
    if kind in ("refusal", REFUSED_ELSEWHERE):
        return (record.refusal or "").strip()
    field = ANSWERS.get(kind)
    return (getattr(record, field)[int(j)] if field else record.answer).strip()
