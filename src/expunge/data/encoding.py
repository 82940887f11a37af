"""The one place where a record becomes token ids: the prompt's ids exactly as the model is later asked,
then the answer's ids. Loss, evidence and generation all use what is made here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expunge.data.records import Record
from expunge.errors import ModelError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["QUESTION_TEMPLATE", "Encoded", "Encoder"]

QUESTION_TEMPLATE = "Question: {prompt}\nAnswer:"
"""How a question is asked of a tokenizer without a chat template."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """`ids` = prompt, answer, end token (iff `has_end`); the first `num_prompt` ids are never scored."""

    ids: tuple[int, ...]
    num_prompt: int
    has_end: bool
    truncated: bool = False

    @property
    def num_targets(self) -> int:
        """T: answer tokens, the end token included."""
        return len(self.ids) - self.num_prompt

    @property
    def answer_ids(self) -> tuple[int, ...]:
        return self.ids[self.num_prompt :]


class Encoder:
    """Turns records into ids for one tokenizer, template and context length.

    Questions go through the tokenizer's chat template, or through `QUESTION_TEMPLATE` where it has none; raw
    prompts are used as they stand. Exactly one end token follows an answer, none follows a document. BOS comes
    from the tokenizer (or from the chat template), once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.has_chat_template = bool(getattr(tokenizer, "chat_template", None))

    # What the model is asked -------------------------------------------------------------------------

    def prompt_text(self, record: Record) -> str:
        """The text of the prompt, template applied, trailing blanks left to the answer."""
        if record.style == "raw" and not record.context:
            return record.prompt.rstrip(" ")
        if self.has_chat_template:
            return self._chat(record)[0]
        if record.context:
            raise ModelError(
                Problem(
                    f"record {record.id}",
                    "has several messages, and the tokenizer has no chat template",
                    "Bring prompt/completion or question/answer records, or a tokenizer with a chat template",
                )
            )
        return QUESTION_TEMPLATE.format(prompt=record.prompt.strip())

    def prompt_ids(self, record: Record) -> tuple[int, ...]:
        """Ids to generate from; for a document, its first token (BOS where the tokenizer adds one)."""
        encoded = self.encode(record)
        return encoded.ids[: encoded.num_prompt]

    def encode(self, record: Record) -> Encoded:
        """One record as ids. A document or an answer beyond the context is cut and marked `truncated`."""
        if record.is_document:
            ids = self._ids(record.answer, special=True)
            return Encoded(ids[: self.max_length], min(1, len(ids)), False, len(ids) > self.max_length)
        text = self.prompt_text(record)
        chat = record.style != "raw" or bool(record.context)
        prompt = self._ids(text, special=not (chat and self.has_chat_template))
        answer = self._continue(text, self._answer_text(record, text))
        end = self._end_ids(record)
        ids = (*prompt, *answer, *end)
        if len(ids) <= self.max_length:
            return Encoded(ids, len(prompt), bool(end))
        return Encoded(ids[: self.max_length], min(len(prompt), self.max_length), False, True)

    def windows(self, record: Record) -> list[Encoded]:
        """A record as one or more rows that fit the context; each token of a long document is scored once.

        Later windows repeat half a context of text as unscored prompt.
        """
        whole = self.encode(record)
        if not (whole.truncated and record.is_document):
            return [whole]
        ids = self._ids(record.answer, special=True)
        rows = [whole]
        stride = max(1, self.max_length // 2)
        for start in range(self.max_length, len(ids), stride):
            stop = min(start + stride, len(ids))
            begin = stop - self.max_length
            rows.append(Encoded(ids[begin:stop], start - begin, False, True))
        return rows

    # What comes back ---------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def answer_text(self, record: Record) -> str:
        return record.answer.strip()

    def round_trip(self, record: Record) -> str | None:
        """What the tokenizer writes in place of the answer, or None when it writes the answer itself."""
        encoded = self.encode(record)
        if encoded.truncated:
            return None
        unknown = self.tokenizer.unk_token_id
        answer = encoded.answer_ids[: len(encoded.answer_ids) - int(encoded.has_end)]
        written = self.decode(encoded.ids if record.is_document else answer)
        if unknown is not None and unknown in answer:
            return str(self.tokenizer.decode(list(answer))).strip()
        return None if written == record.answer.strip() else written

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a generation."""
        ids = {self.tokenizer.eos_token_id}
        if self.has_chat_template:
            ids.update(self._end_ids(Record("", "", "x", "x")))
        return tuple(sorted(i for i in ids if i is not None))

    @property
    def pad_id(self) -> int:
        """Any id will do: masks come from lengths."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def fingerprint(self) -> str:
        """A hash of vocabulary, template and context length."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        parts = (vocabulary, getattr(self.tokenizer, "chat_template", None), QUESTION_TEMPLATE, self.max_length)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    # Inside ------------------------------------------------------------------------------------------

    def _ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
        if special and ids and ids[-1] == self.tokenizer.eos_token_id and text:
            ids = ids[:-1]  # some tokenizers close every text; the end token is placed by us
        return tuple(ids)

    def _answer_text(self, record: Record, prompt: str) -> str:
        answer = record.answer.strip()
        if record.style == "raw" and not record.context:
            lost = len(record.prompt) - len(record.prompt.rstrip(" "))
            return " " * lost + record.answer.rstrip() if lost else record.answer
        return answer if self.has_chat_template or prompt[-1:].isspace() else f" {answer}"

    def _continue(self, prompt: str, answer: str) -> tuple[int, ...]:
        """The answer's ids as a continuation: SentencePiece-like tokenizers put a blank before a lone text."""
        anchor = prompt[-1:]
        if anchor:
            before = self._ids(anchor, special=False)
            joint = self._ids(anchor + answer, special=False)
            if joint[: len(before)] == before:
                return joint[len(before) :]
        return self._ids(answer, special=False)

    def _chat(self, record: Record) -> tuple[str, str]:
        """(prompt text up to the answer, text after the answer) as the chat template renders them."""
        messages = [{"role": t.role, "content": t.content} for t in record.context]
        messages.append({"role": "user", "content": record.prompt})
        answer = record.answer.strip() or "x"
        try:
            asked = self._render(messages, add_generation_prompt=True)
            full = self._render([*messages, {"role": "assistant", "content": answer}])
        except Exception as error:  # jinja: templates raise what they like, e.g. on a system role
            raise ModelError(Problem(f"record {record.id}", f"the chat template refuses it: {error}")) from error
        at = full.rfind(answer)
        if full.startswith(asked) and at >= len(asked):
            return full[:at], full[at + len(answer) :]  # text before the answer (an empty think block) is asked too
        return asked, ""

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _end_ids(self, record: Record) -> tuple[int, ...]:
        chat = self.has_chat_template and (record.style != "raw" or bool(record.context))
        if chat:
            after = self._ids(self._chat(record)[1].lstrip(), special=False)
            if after and after[0] in self.tokenizer.all_special_ids:
                return after[:1]
            if after and after[0] in self.tokenizer.get_added_vocab().values():
                return after[:1]
        end = self.tokenizer.eos_token_id
        return () if end is None else (end,)
