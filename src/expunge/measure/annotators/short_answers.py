"""Short greedy answers, for metrics that read no more than some tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.measure.generate import followed, greedy_continue


@ANNOTATORS.register("short_answers", columns=["short_answer"])
@dataclass(frozen=True)
class ShortAnswers(Annotator):
    """The first `tokens` tokens of the greedy answer to each question, as text."""

    tokens: Annotated[int, Ge(1)] = 32

    def missing(self, asked: Asked) -> str | None:
        return None if "generate" in asked.subject.can else "the model does not generate"

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        encoder = asked.sheet.encoder
        of, prompts, texts = [], [], []
        for i, (line, row) in enumerate(zip(asked.sheet.lines, asked.evidence, strict=True)):
            if row.variant == "gold" and not line.record.is_document and not row.truncated:
                encoded = line.windows[0]
                of.append(i)
                prompts.append(encoded.ids[: encoded.num_prompt])
                sure = followed(encoded.answer_ids, row, 0) if asked.subject.drafts else ()
                texts.append(list(sure[: self.tokens]))
        greedy_continue(asked.subject, prompts, texts, encoder.stop_ids, self.tokens, encoder.pad_id)
        found: list[dict[str, Any]] = [{} for _ in asked.evidence]
        for i, ids in zip(of, texts, strict=True):
            found[i]["short_answer"] = encoder.decode(
                ids[:-1] if ids and ids[-1] in encoder.stop_ids else ids
            )
        return found
