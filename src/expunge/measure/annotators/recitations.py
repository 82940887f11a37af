"""How a text goes on: greedily continued from its beginning, beside what truly follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.measure.generate import followed, greedy_continue


@ANNOTATORS.register("recitations", columns=["recited"])
@dataclass(frozen=True)
class Recitations(Annotator):
    """{generated, true} of each document: greedy tokens after its beginning, and as many true ones.

    The beginning is `given` tokens, half of a shorter document; at most `tokens` follow. A raw prompt is a
    beginning by itself, its answer what follows. No end token belongs to either.
    """

    given: Annotated[int, Ge(1)] = 64
    tokens: Annotated[int, Ge(1)] = 128

    def missing(self, asked: Asked) -> str | None:
        return None if "generate" in asked.subject.can else "the model does not generate"

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        encoder = asked.sheet.encoder
        of, prompts, texts, true = [], [], [], []
        for i, (line, row) in enumerate(zip(asked.sheet.lines, asked.evidence, strict=True)):
            if row.variant != "gold" or not (line.record.is_document or line.record.style == "raw"):
                continue
            encoded = line.windows[0]
            ids = encoded.ids[: len(encoded.ids) - encoded.has_end]
            start = encoded.num_prompt
            if line.record.is_document:
                start = max(start, min(self.given, len(ids) // 2))
            gold = ids[: start + self.tokens]
            if len(gold) > start:
                before = start - encoded.num_prompt
                sure = (
                    followed(gold[encoded.num_prompt :], row, before)[before:] if asked.subject.drafts else ()
                )
                of.append(i)
                prompts.append(ids[:start])
                texts.append(list(sure))
                true.append(gold[start:])
        # the longest decides how far is decoded, each is then cut to its own length
        limit = max(map(len, true), default=0)
        greedy_continue(asked.subject, prompts, texts, encoder.stop_ids, limit, encoder.pad_id)
        found: list[dict[str, Any]] = [{} for _ in asked.evidence]
        for i, text, follows in zip(of, texts, true, strict=True):
            generated = encoder.decode(text[: len(follows)])
            found[i]["recited"] = {"generated": generated, "true": encoder.decode(follows)}
        return found
