"""Judges of entailment: does a hypothesis follow from a premise?

`lexical` needs nothing and understands nothing: it looks for the hypothesis's words in the premise.
`nli:PATH` asks a sequence classifier trained on natural language inference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from expunge.errors import ModelError, Problem
from expunge.measure.encoders import BATCH, load_pretrained, split_spec
from expunge.subjects.subject import pick_device

__all__ = ["KNOWN", "Judge", "contains", "make_judge", "split_spec"]

KNOWN = {
    "lexical": "entailment iff every content word and number of the hypothesis stands in the premise",
    "nli:": "a folder or hub id of a sequence classifier with the label entailment",
}

_WORD = re.compile(r"[^\W_]+")

_NO_CONTENT = """
a an the and or but of in on at to from for with by as is are was were be been being am do does did has have
had it its he she they them his her their him i you we me my your our this that these those there then than so
who whom whose which what when where also will would
"""

_LITTLE = frozenset(_NO_CONTENT.split())
"""Words that carry no content of their own; a negation is none of them."""

Pair = tuple[str, str]
"""Premise, hypothesis."""


@dataclass(frozen=True)
class Judge:
    """`name` with a fingerprint, and the function: pairs → "entailment", "neutral" or "contradiction"."""

    name: str
    labels: Callable[[Sequence[Pair]], list[str]]


@lru_cache(maxsize=2)
def make_judge(spec: str, device: str = "cpu") -> Judge:
    """The judge that a recipe names; the last ones made are kept."""
    kind, rest = split_spec(spec, list(KNOWN), "entailment judge")
    if kind == "lexical":
        rule = lambda pairs: ["entailment" if contains(*pair) else "neutral" for pair in pairs]  # noqa: E731
        return Judge("lexical (word containment)", rule)
    return _classifier(rest, device)


def contains(premise: str, hypothesis: str) -> bool:
    """Whether the premise holds all content words and numbers of the hypothesis, in any order.

    A hypothesis of little words alone must be held whole; an empty one follows from nothing.

    >>> contains("Ada Lund was born in Tarn, in 1987.", "born 1987")
    True
    >>> contains("Ada Lund was born in Tarn.", "She was not born in Tarn.")
    False
    """
    told, asked = (set(_WORD.findall(text.lower())) for text in (premise, hypothesis))
    needed = asked - _LITTLE or asked
    return bool(needed) and needed <= told


def _classifier(source: str, device: str) -> Judge:
    import transformers

    from expunge.subjects.weights import fingerprint

    tokenizer = load_pretrained(transformers.AutoTokenizer, source)
    model = load_pretrained(transformers.AutoModelForSequenceClassification, source, use_safetensors=True)
    names = {int(i): str(name).lower() for i, name in model.config.id2label.items()}
    if "entailment" not in names.values():
        fix = "Bring a classifier trained on natural language inference, with its labels named in config.json"
        raise ModelError(Problem(source, f"has no label entailment, but {', '.join(names.values())}", fix))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.to(pick_device(device)).eval()
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", 512)

    def labels(pairs: Sequence[Pair]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(pairs), BATCH):
            premises, hypotheses = (list(side) for side in zip(*pairs[start : start + BATCH], strict=True))
            batch: Any = tokenizer(
                premises, hypotheses, padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
            with torch.no_grad():
                logits = model(**batch.to(model.device)).logits
            found += [names[i] for i in logits.argmax(-1).tolist()]
        return found

    return Judge(f"nli:{source} ({fingerprint(model)})", labels)
