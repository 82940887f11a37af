"""The one place where a record becomes token ids: the prompt's ids exactly as the model is later asked,
then the answer's ids. Loss, evidence and generation all use what is made here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from expunge.data.records import Record
from expunge.errors import ModelError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["QUESTION_TEMPLATE", "Encoded", "Encoder"]

QUESTION_TEMPLATE = "Question: {prompt}\nAnswer:"
"""How a question is asked of a tokenizer without a chat template."""

_ANSWER = "expunge-answer"
"""Stands for the answer while a template is rendered: the answer's own text may occur in the template too."""

_QUESTION = "expunge-question"
"""Stands for the question where only what comes before it is wanted."""

_ANCHORS = ("\n", ":", "a")
"""Texts an answer can be encoded behind when it cannot behind the prompt's last character."""

_PROBE = "Où? In 1987, she'd paid 3.50 € — twice:\n\tthe end "
"""Two tokenizers of one vocabulary that write this alike are taken for equal."""


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


class _Asked(NamedTuple):
    """A question as text: `answer` with the blanks between it and the prompt, `after` the template's tail."""

    prompt: str
    answer: str
    special: bool  # whether the tokenizer adds its own BOS; a chat template writes it
    after: str = ""


class Encoder:
    """Turns records into ids for one tokenizer, template and context length.

    Questions go through the tokenizer's chat template, or through `QUESTION_TEMPLATE` where it has none; raw
    prompts are used as they stand. Exactly one end token follows an answer, none follows a document. BOS
    comes from the tokenizer (or from the chat template), once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.has_chat_template = bool(getattr(tokenizer, "chat_template", None))

    # What the model is asked -------------------------------------------------------------------------

    def prompt_text(self, record: Record) -> str:
        """The text of the prompt, template applied, trailing blanks left to the answer."""
        return self._ask(record).prompt

    def prompt_ids(self, record: Record) -> tuple[int, ...]:
        """Ids to generate from; for a document, its first token (BOS where the tokenizer adds one)."""
        encoded = self.encode(record)
        return encoded.ids[: encoded.num_prompt]

    def opening_ids(self) -> tuple[int, ...]:
        """Ids of the template up to where a question begins: from here a model asks by itself."""
        asked = self._ask(Record("", "", _QUESTION, "x"))
        return self._ids(asked.prompt.partition(_QUESTION)[0].rstrip(" "), special=asked.special)

    def encode(self, record: Record) -> Encoded:
        """One record as ids. A document or an answer beyond the context is cut and marked `truncated`."""
        if record.is_document:
            ids = self._ids(record.answer, special=True)
            return Encoded(ids[: self.max_length], min(1, len(ids)), False, len(ids) > self.max_length)
        asked = self._ask(record)
        prompt = self._ids(asked.prompt, special=asked.special)
        answer = self._continue(asked.prompt, asked.answer)
        end = self._end_ids(asked.after)
        ids = (*prompt, *answer, *end)
        # without BOS a blank prompt has no ids: the first token of the answer is then all the model is given
        num_prompt = min(max(len(prompt), 1), len(ids), self.max_length)
        if len(ids) <= self.max_length:
            return Encoded(ids, num_prompt, bool(end))
        return Encoded(ids[: self.max_length], num_prompt, False, True)

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
            ids.update(self._end_ids(self._ask(Record("", "", "x", "x")).after))
        return tuple(sorted(i for i in ids if i is not None))

    @property
    def pad_id(self) -> int:
        """Any id will do: masks come from lengths."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def fingerprint(self) -> str:
        """A hash of vocabulary, template, context length and how the tokenizer treats special tokens."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        template = getattr(self.tokenizer, "chat_template", None)
        probe = self._ids(_PROBE, special=True)
        parts = (vocabulary, template, QUESTION_TEMPLATE, self.max_length, probe, self.stop_ids)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    # Inside ------------------------------------------------------------------------------------------

    def _ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
        if special and ids and ids[-1] == self.tokenizer.eos_token_id and text:
            ids = ids[:-1]  # some tokenizers close every text; the end token is placed by us
        return tuple(ids)

    def _ask(self, record: Record) -> _Asked:
        if record.style == "raw" and not record.context:
            prompt = record.prompt.rstrip(" ")
            return _Asked(prompt, _behind(record.prompt[len(prompt) :], record.answer), True)
        if self.has_chat_template:
            return self._chat(record)
        if record.context:
            raise ModelError(
                Problem(
                    f"record {record.id}",
                    "has several messages, and the tokenizer has no chat template",
                    "Bring prompt/completion or question/answer records, or a tokenizer with a chat template",
                )
            )
        prompt = QUESTION_TEMPLATE.format(prompt=record.prompt.strip())
        return _Asked(prompt, _behind(" ", record.answer.strip()), True)

    def _chat(self, record: Record) -> _Asked:
        """A conversation as the chat template renders it, up to the last answer and after it."""
        messages = [{"role": t.role, "content": t.content} for t in record.context]
        messages.append({"role": "user", "content": record.prompt})
        try:
            asked = self._render(messages, add_generation_prompt=True)
            full = self._render([*messages, {"role": "assistant", "content": _ANSWER}])
        except Exception as error:  # jinja: templates raise what they like, e.g. on a system role
            raise ModelError(
                Problem(f"record {record.id}", f"the chat template refuses it: {error}")
            ) from error
        before, found, after = full.rpartition(_ANSWER)
        blank = ""
        if found and before.startswith(asked):
            # what the template writes before an answer (an empty think block) is asked, a blank is answered
            given = before[len(asked) :]
            blank = given[len(given.rstrip(" ")) :]
            asked = before.removesuffix(blank)
        return _Asked(asked, _behind(blank, record.answer.strip()), False, after)

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _continue(self, prompt: str, answer: str) -> tuple[int, ...]:
        """The answer's ids as a continuation: SentencePiece-like tokenizers begin lone text with a blank."""
        for anchor in (prompt[-1:], *_ANCHORS):
            before = self._ids(anchor, special=False)
            joint = self._ids(anchor + answer, special=False)
            if anchor and joint[: len(before)] == before:
                return joint[len(before) :]
        return self._ids(answer, special=False)

    def _end_ids(self, after: str) -> tuple[int, ...]:
        """The one token that ends an answer: the special token the template writes next, else EOS."""
        ids = self._ids(after.lstrip(), special=False)
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        if ids and ids[0] in special:
            return ids[:1]
        end = self.tokenizer.eos_token_id
        return () if end is None else (end,)


def _behind(blank: str, answer: str) -> str:
    """An empty answer takes no blank: it has no token to score."""
    return blank + answer if answer.strip() else ""
