"""Answers to one prompt share a row: the prompt is read once, however many answers are scored after it."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from expunge.data.batching import collate, collate_shared
from expunge.data.encoding import Encoded
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject

__all__ = ["LONGEST", "grouped", "sharing"]

LONGEST = 1024
"""Tokens of a shared row: its mask grows with the square."""

ATTENTION = 3.0
"""How much more slowly attention works than a product of matrices with as many operations."""

_SHARES: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def grouped(windows: Sequence[Encoded], width: int, longest: int = LONGEST) -> list[list[int]]:
    """Indices of windows with the same prompt, in order; a row takes an answer where that saves operations.

    A prompt not read again saves 24·w²·P operations a block of width w; an answer of A tokens behind T others
    costs 4·w·((T+A)² − T²) of attention, and alone 4·w·(P+A)².
    """
    groups: list[list[int]] = []
    open_: dict[tuple[int, ...], tuple[int, int]] = {}  # prompt → (its last group, that row's length)
    for i, window in enumerate(windows):
        prompt, answer = window.ids[: window.num_prompt], len(window.ids) - window.num_prompt
        at, length = open_.get(prompt, (-1, longest))
        saved = 6 * width * len(prompt) / ATTENTION + (len(prompt) + answer) ** 2
        if not prompt or length + answer > longest or (length + answer) ** 2 - length**2 >= saved:
            groups.append([i])
            at, length = len(groups) - 1, len(prompt)
        else:
            groups[at].append(i)
        open_[prompt] = (at, length + answer)
    return groups


def sharing(subject: Subject) -> bool:
    """Whether the model scores answers in a shared row as it does alone: tried once, on five tokens.

    Not where something else answers in the model's place, where attention has a window or a kernel without
    masks, and in a lower precision than fp32 where the try shows nothing.
    """
    if type(subject).logits is not Subject.logits:
        return False
    model = subject.model
    if model not in _SHARES:
        _SHARES[model] = _plain_attention(subject) and _same(subject)
    return _SHARES[model]


def _plain_attention(subject: Subject) -> bool:
    config = subject.config.get_text_config()
    kernel = getattr(subject.config, "_attn_implementation", None)
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kernel in ("sdpa", "eager") and not windowed and layers == {"full_attention"}


def _same(subject: Subject) -> bool:
    pad, ids = subject.encoder.pad_id, [token % subject.vocab_size for token in (3, 5, 7, 11, 13)]
    first = Encoded((ids[0], ids[1], ids[2], ids[3]), 2, False)
    second = Encoded((ids[0], ids[1], ids[4]), 2, False)
    dtype = next(subject.model.parameters()).dtype
    alone = collate([first, second], pad).to(subject.device)
    together = collate_shared([[first, second]], pad, dtype).to(subject.device)
    try:
        with subject.evaluating() as model:
            a, b = (forward(model, batch).logits for batch in (alone, together))
    except (TypeError, ValueError, RuntimeError):  # no position ids, or no mask of this form
        return False
    assert a is not None
    assert b is not None
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    return bool(torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance))
