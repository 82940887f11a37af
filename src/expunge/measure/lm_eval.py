"""A bridge to lm-evaluation-harness: its tasks, asked of a subject as it is, wrappers and mixtures included.

from expunge.measure.lm_eval import evaluate
evaluate(subject, ["arc_easy"], limit=100)["results"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.data.encoding import Encoded, Encoder
from expunge.data.records import Record
from expunge.errors import Problem, Unsupported, require
from expunge.measure.corpus import strided, text_ids, window_logprobs
from expunge.measure.generate import greedy_continue
from expunge.subjects.subject import Subject

__all__ = ["Bridge", "evaluate"]

WHY = "tasks of lm-evaluation-harness"

STEP = 32
"""Tokens generated before it is looked whether a stopping text has come."""


def evaluate(subject: Subject, tasks: Sequence[Any], **options: Any) -> Mapping[str, Any]:
    """What the harness's `simple_evaluate` returns; `options` (limit, num_fewshot, …) go to it.

    Raises MissingDependency where lm-eval is not installed.
    """
    harness = require("lm_eval", "lm-eval", WHY)
    base = require("lm_eval.api.model", "lm-eval", WHY).LM
    both: type[Any] = type("SubjectLM", (Bridge, base), {})
    found: Mapping[str, Any] = harness.simple_evaluate(model=both(subject), tasks=list(tasks), **options)
    return found


class Bridge:
    """The harness's three questions, answered in batches grouped by length. Decoding is greedy."""

    def __init__(self, subject: Subject):
        super().__init__()
        self.subject = subject
        # contexts come as finished text; what is too long loses its beginning, not its end
        self.encoder = Encoder(subject.tokenizer, max_length=10**9)

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """(log p of the continuation, whether greedy decoding writes it) for each (context, continuation)."""
        rows = [self._continued(*request.args) for request in requests]
        return window_logprobs(self.subject, rows)

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """log p of each whole text, in windows of the context; every token is scored once."""
        window = self.subject.encoder.max_length
        parts = [
            strided(text_ids(self.subject, request.args[0]), window, max(1, window // 2))
            for request in requests
        ]
        scores = iter(window_logprobs(self.subject, [row for rows in parts for row in rows]))
        return [sum(next(scores)[0] for _ in rows) for rows in parts]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """The greedy text after each context, up to the first of its stopping texts."""
        asked = [_Asked(*request.args) for request in requests]
        prompts = [self._cut(self._prompt(a.context), a.limit) for a in asked]
        answers: list[list[int]] = [[] for _ in asked]
        texts = [""] * len(asked)
        stop, pad = self.subject.encoder.stop_ids, self.subject.encoder.pad_id
        open_, length = list(range(len(asked))), 0
        while open_:
            length += STEP
            aim = {i: min(length, asked[i].limit) for i in open_}
            for limit in sorted(set(aim.values())):
                part = [i for i in open_ if aim[i] == limit]
                begun = [answers[i] for i in part]
                greedy_continue(self.subject, [prompts[i] for i in part], begun, stop, limit, pad)
            for i in list(open_):
                ended = answers[i][-1:] != [] and answers[i][-1] in stop
                texts[i], found = _until(self._decode(answers[i][: len(answers[i]) - ended]), asked[i].until)
                full = len(answers[i]) < aim[i]  # the context's end
                if ended or found or full or aim[i] == asked[i].limit:
                    open_.remove(i)
        return texts

    # What else the harness asks -----------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return str(self.subject.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return (self.subject.tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.subject.tokenizer.apply_chat_template(
                list(chat_history), tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip

    # Ids ----------------------------------------------------------------------------------------------

    def _continued(self, context: str, continuation: str) -> Encoded:
        """Context and continuation as ids, blanks between them on the continuation's side."""
        if not context.strip(" "):
            ids = text_ids(self.subject, context + continuation)
            return self._fit(Encoded(tuple(ids), min(1, len(ids)), False))
        opened = self._opened(context)
        encoded = self.encoder.encode(Record("", "", opened, continuation, style="raw"))
        ids = list(encoded.ids[: len(encoded.ids) - encoded.has_end])
        return self._fit(Encoded(tuple(ids), encoded.num_prompt, False))

    def _prompt(self, context: str) -> list[int]:
        if not context.strip(" "):
            return text_ids(self.subject, context)
        return list(self.encoder.prompt_ids(Record("", "", self._opened(context), "x", style="raw")))

    def _opened(self, context: str) -> str:
        """A chat template has written the BOS that the tokenizer adds by itself."""
        bos = self.subject.tokenizer.bos_token
        adds = bos and self.subject.tokenizer("x")["input_ids"][:1] == [self.subject.tokenizer.bos_token_id]
        return context.removeprefix(bos) if adds else context

    def _fit(self, encoded: Encoded) -> Encoded:
        over = len(encoded.ids) - self.subject.encoder.max_length
        if over <= 0:
            return encoded
        return Encoded(encoded.ids[over:], max(1, encoded.num_prompt - over), False, True)

    def _cut(self, prompt: list[int], limit: int) -> list[int]:
        """The end of a prompt that leaves room for an answer: for all of it, or half of the context."""
        context = self.subject.encoder.max_length
        return prompt[-max(context - limit, context // 2) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.subject.tokenizer.decode(list(ids), skip_special_tokens=True))


class _Asked:
    """One request to generate: `until` (stopping texts), `max_gen_toks`; sampling is refused."""

    def __init__(self, context: str, options: Mapping[str, Any]):
        if options.get("do_sample") and options.get("temperature", 1.0) != 0:
            raise Unsupported(
                Problem(
                    WHY, "the task asks for sampled text", "expunge decodes greedily: set do_sample to false"
                )
            )
        until = options.get("until") or []
        self.context = context
        self.until = [until] if isinstance(until, str) else [text for text in until if text]
        self.limit = int(options.get("max_gen_toks") or options.get("max_new_tokens") or 256)


def _until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first of the stopping texts, and whether there is one."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)
