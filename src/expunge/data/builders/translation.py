"""The question in another language, by a translator of the user's: none is shipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from expunge.data.builders.base import row
from expunge.data.records import Record
from expunge.errors import ConfigError, Problem

__all__ = ["Translator", "load_translator", "translation"]

Translator = Callable[[Sequence[str]], Sequence[str]]
"""Texts to as many texts in the other language."""


def load_translator(name: str) -> Translator:
    """The function that `package.module:function` names. Raises ConfigError."""
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        what = f"{name!r} cannot be found ({error})"
        raise ConfigError(Problem("translator", what, "Write package.module:function")) from error
    if not callable(found):
        raise ConfigError(Problem("translator", f"{name!r} is no function"))
    return found


def translation(records: Sequence[Record], translator: Translator) -> list[Record]:
    """Prompts and answers translated; a prompt that comes back empty or unchanged builds nothing."""
    asked = [r for r in records if r.style == "question" and not r.is_document and not r.context]
    texts = [text for r in asked for text in (r.prompt, r.answer)]
    told = list(translator(texts))
    if len(told) != len(texts):
        what = f"gave {len(told)} texts for {len(texts)}"
        raise ConfigError(Problem("translator", what, "It must give one text for each, in order"))
    return [
        row(record, "translation", prompt, answer)
        for record, prompt, answer in zip(asked, told[::2], told[1::2], strict=True)
        if prompt.strip() and answer.strip() and prompt != record.prompt
    ]
