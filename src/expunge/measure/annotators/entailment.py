"""Whether the generated text and the answer follow from one another, by a judge of entailment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.measure.judges import KNOWN, make_judge, split_spec
from expunge.metrics.entailment import ANSWER_FOLLOWS, direction, gated


def _known(spec: str) -> str:
    split_spec(spec, list(KNOWN), "entailment judge")
    return spec


@ANNOTATORS.register("entailment", columns=["entailment"])
@dataclass(frozen=True)
class Entailment(Annotator):
    """The judge's label of each generated text that is near enough to the answer to be asked about.

    On the forget side the text is the premise and the answer the hypothesis, on the keep side it is the
    other way round. `lexical` (the default) is a rule on words; `nli:PATH` a classifier.
    """

    judge: Annotated[str, AfterValidator(_known)] = "lexical"

    def identity(self) -> dict[str, str]:
        return {"judge": make_judge(self.judge).name}

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        judge = make_judge(self.judge, str(asked.subject.device))
        way = direction(asked.sheet.split)
        found: list[dict[str, Any]] = [{} for _ in asked.evidence]
        pairs: dict[int, tuple[str, str]] = {}
        for i, row in enumerate(asked.evidence):
            if row.variant == "gold" and row.generated is not None:
                found[i]["entailment"] = {"judge": judge.name}
                if not gated(row.answer, row.generated):
                    pair = (row.generated, row.answer)
                    pairs[i] = pair if way == ANSWER_FOLLOWS else (pair[1], pair[0])
        for i, label in zip(pairs, judge.labels(list(pairs.values())), strict=True):
            found[i]["entailment"][way] = label
        return found
