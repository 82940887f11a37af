"""The record: one thing a model can be asked, and what it should or should not say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

__all__ = ["Record", "Turn"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """One question and answer, or one document (empty prompt, the text as answer).

    `style` says how the prompt becomes text: a "question" goes through the tokenizer's chat template, or
    through the plain question template where it has none; "raw" text is used as it stands. `context` holds
    the turns before the question (system prompt, earlier turns).

    >>> Record("r1", "Ada Lund", "Where was Ada Lund born?", "In Tarn.").is_document
    False
    """

    id: str
    entity: str
    prompt: str
    answer: str
    style: Literal["question", "raw"] = "question"
    context: tuple[Turn, ...] = ()
    paraphrased_prompts: tuple[str, ...] = ()
    paraphrased_answers: tuple[str, ...] = ()
    perturbed_answers: tuple[str, ...] = ()
    refusal: str | None = None
    alternates: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()  # words of the answer that carry the fact: names, dates
    choices: tuple[str, ...] = ()
    label: int | None = None  # index of the right choice, from 0
    source_id: str | None = None  # forget_hard, neighbors: the forget record this one stands near to
    form: str | None = None  # forget_hard: paraphrase, reverse, cloze, multi_hop, choice, open, …

    @property
    def is_document(self) -> bool:
        return self.prompt == "" and not self.context

    def asked(self, prompt: str) -> Record:
        """The same record under another prompt."""
        return replace(self, prompt=prompt)

    def answered(self, answer: str) -> Record:
        """The same question with another answer."""
        return replace(self, answer=answer)

    def texts(self) -> Iterable[str]:
        """Every text of the record a reader could recognize it by."""
        yield self.prompt
        yield self.answer
        yield from self.paraphrased_prompts
        yield from self.paraphrased_answers

    def as_dict(self) -> dict[str, Any]:
        """The record as a JSON object: defaults left out."""
        plain = asdict(self)
        keep = {"id", "entity", "prompt", "answer"}
        defaults = {f.name: f.default for f in fields(self)}
        return {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in plain.items()
            if k in keep or v != defaults[k]
        }
