"""What was generated and what should have been said, as vectors of an encoder of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.measure.encoders import KNOWN, make_encoder, split_spec


def _known(spec: str) -> str:
    split_spec(spec, list(KNOWN), "embeddings encoder")
    return spec


@ANNOTATORS.register("embeddings", columns=["embedding"])
@dataclass(frozen=True)
class Embeddings(Annotator):
    """Vectors of the generated text and of the answer, by `encoder`.

    `lexical` (the default) counts runs of letters and knows no meaning; `model:PATH` is the mean of a
    transformer's last hidden states; `sentence-transformers:NAME` a model of that library.
    """

    encoder: Annotated[str, AfterValidator(_known)] = "lexical"

    def identity(self) -> dict[str, str]:
        return {"encoder": make_encoder(self.encoder).name}

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        encoder = make_encoder(self.encoder, str(asked.subject.device))
        rows = list(asked.evidence)
        of = [i for i, row in enumerate(rows) if row.variant == "gold" and row.generated is not None]
        texts = [text for i in of for text in (rows[i].generated or "", rows[i].answer)]
        told = [text for text in dict.fromkeys(texts) if text.strip()]
        vectors = dict(zip(told, encoder.encode(told), strict=True))
        found: list[dict[str, Any]] = [{} for _ in rows]
        for i in of:
            generated, answer = rows[i].generated or "", rows[i].answer
            if answer.strip():
                zero = type(vectors[answer])()
                found[i]["embedding"] = {
                    "encoder": encoder.name,
                    "generated": vectors.get(generated, zero),
                    "answer": vectors[answer],
                }
        return found
