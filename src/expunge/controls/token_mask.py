"""Push only listed words: names, dates, keywords."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.controls.base import CONTROLS, Control, Scene
from expunge.controls.binding import likelihood_tokens
from expunge.data.encoding import Encoded, Encoder
from expunge.errors import ConfigError, DataError, Problem
from expunge.training.hooks import TrainingControl
from expunge.training.views import View

__all__ = ["TokenMask", "tokens_of_words"]


def tokens_of_words(row: Encoded, encoder: Encoder, words: Sequence[str]) -> list[bool]:
    """Which answer tokens of a row overlap one of the words, by characters; every piece of a cut word does.

    Case is ignored. A token's place is read from the text up to it, so the tokenizer needs no offsets.
    """
    ids = list(row.answer_ids)
    decode = lambda part: str(encoder.tokenizer.decode(part, skip_special_tokens=True))  # noqa: E731
    ends = [len(decode(ids[: k + 1])) for k in range(len(ids))]
    text = decode(ids)
    spans = [m.span() for word in words if word for m in re.finditer(re.escape(word), text, re.IGNORECASE)]
    starts = [0, *ends[:-1]]
    return [
        any(start < stop and begin < end for begin, stop in spans)
        for start, end in zip(starts, ends, strict=True)
    ]


@CONTROLS.register(
    "token_mask",
    when="during",
    bounds="which tokens are pushed",
    guarantee="no gradient outside the listed words",
    source="Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True)
class TokenMask(Control):
    """The forget loss counts only tokens that overlap a record's `keywords`, or `words` listed here.

    n counts the masked tokens. A record in which no word is found is an error, skipped, or pushed whole, by
    `on_missing`. Wang et al. 2025 (arXiv 2406.09179).
    """

    reads_bar = False

    words: tuple[str, ...] = ()
    on_missing: Literal["error", "skip", "all_tokens"] = "error"

    def attach(self, scene: Scene) -> TrainingControl:
        return _MaskHooks(self)


class _MaskHooks(TrainingControl):
    def __init__(self, settings: TokenMask):
        self.settings = settings
        self._masks: list[Tensor] = []
        self._found = 0

    def check(self, method: Any, accumulate: int) -> None:
        likelihood_tokens("token_mask", method)

    def prepare(self, task: Any) -> None:
        missing = []
        for record, row in task.sources["forget"]:
            words = (*record.keywords, *self.settings.words)
            mask = torch.tensor(tokens_of_words(row, task.subject.encoder, words)[-row.num_targets :])
            if mask.any():
                self._found += 1
            elif self.settings.on_missing == "error":
                missing.append(record.id)
            elif self.settings.on_missing == "all_tokens":
                mask[:] = True
            self._masks.append(mask)
        if missing:
            what = f"none of its words is in {len(missing)} forget records ({', '.join(missing[:3])})"
            fix = "Add `keywords` to the records, or set on_missing: skip or all_tokens"
            raise DataError(Problem("control.token_mask", what, fix))
        if not any(bool(mask.any()) for mask in self._masks):
            what = "no listed word is in any forget answer"
            raise ConfigError(Problem("control.token_mask", what, "Add `keywords` to the records"))

    def forget_view(self, view: View) -> View:
        mask = torch.cat([self._masks[i] for i in view.index]).to(view.row.device)
        self.active = float((~mask).float().mean())
        return view.only(mask)

    def finish(self, subject: Any) -> str | None:
        tokens = torch.cat(self._masks)
        share = f"{float(tokens.float().mean()):.0%} of the answer tokens"
        return f"token_mask: words found in {self._found} of {len(self._masks)} forget rows, {share}"
