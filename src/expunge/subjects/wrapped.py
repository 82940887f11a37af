"""Wrapped subjects: a model whose weights stay as they are and which is asked differently.

A wrapper says how `logits` and `greedy` are answered; scoring and generation then see one and the same model.
It has a frozen `rule` (its settings, plain JSON values), further subjects as `parts`, and a strength in
[0, 1]: 0 is off and bit-identical to the base, and what lies between is the path that control walks.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter
from torch import Tensor

from expunge.data.batching import Batch, collate
from expunge.data.encoding import Encoded
from expunge.errors import ModelError, Problem
from expunge.registry import Card, Registry
from expunge.subjects.decoding import greedy_ids
from expunge.subjects.subject import WRAPPER_FILE, Subject, load_subject

__all__ = [
    "WRAPPERS", "Blended", "NoRule", "Reprompted", "Wrapped", "answers_of", "load_wrapped", "prompts_of",
]  # fmt: skip

WRAPPERS: Registry[Wrapped] = Registry("wrapper", "expunge.subjects.wrappers", "WRAPPERS")

ASKED = frozenset({"generate", "logprobs"})
"""What a wrapper answers; hidden states and weights are the base's, whose holder can drop the wrapper."""


@dataclass(frozen=True)
class NoRule:
    """Of a wrapper without settings."""


class Wrapped(Subject):
    """`base` and `parts`, asked by `rule` with `strength`. A subclass writes `wrapped_logits`.

    `knob` False: strength has no meaning between 0 and 1, control can only accept or reject. `drafts` False:
    what the wrapper generates does not follow from its next-token distributions (a filter on whole answers).
    """

    name: ClassVar[str]
    card: ClassVar[Card]
    Rule: ClassVar[type[Any]] = NoRule
    knob: ClassVar[bool] = True

    def __init__(
        self,
        base: Subject,
        rule: Any = None,
        parts: Mapping[str, Subject] | None = None,
        strength: float = 1.0,
        info: Mapping[str, Any] | None = None,
    ):
        if not 0 <= strength <= 1:
            raise ValueError(f"strength {strength} outside [0, 1]")
        told = base.info if info is None else info
        super().__init__(base.model, base.tokenizer, base.encoder, base.source, base.can & ASKED, dict(told))
        self.base, self.rule, self.strength = base, rule if rule is not None else self.Rule(), strength
        self.parts: dict[str, Subject] = dict(parts or {})

    # How it answers -----------------------------------------------------------------------------------

    @abstractmethod
    def wrapped_logits(self, batch: Batch) -> Tensor:
        """Logits at the batch's answer positions, [A, V], at this strength (above 0)."""

    def wrapped_greedy(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int,
        *, stop: Sequence[int], pad_id: int,
    ) -> list[list[int]]:  # fmt: skip
        """Token by token from `wrapped_logits`; exact and slow, a subclass may know a shorter way."""
        found: list[list[int]] = [[] for _ in prompts]
        for _ in range(length):
            texts = [(*p, *a, *new) for p, a, new in zip(prompts, answers, found, strict=True)]
            # the id at the end stands for what is asked
            rows = [Encoded((*t, pad_id), len(p), False) for t, p in zip(texts, prompts, strict=True)]
            batch = collate(rows, pad_id).to(self.device)
            ends = batch.num_tokens.cumsum(0) - 1
            for new, token in zip(found, self.wrapped_logits(batch)[ends].argmax(-1).tolist(), strict=True):
                new.append(token)
            if all(stop and set(new) & set(stop) for new in found):
                break
        return found

    def logits(self, batch: Batch) -> Tensor:
        return self.wrapped_logits(batch) if self.strength else self.base.logits(batch)

    def greedy(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int,
        *, stop: Sequence[int], pad_id: int,
    ) -> list[list[int]]:  # fmt: skip
        asked = self.wrapped_greedy if self.strength else self.base.greedy
        return asked(prompts, answers, length, stop=stop, pad_id=pad_id)

    # What it is ---------------------------------------------------------------------------------------

    def at(self, strength: float) -> Wrapped:
        """The same weights, parts and rule at another strength."""
        made = type(self)(self.base, self.rule, self.parts, strength, self.info)
        made.source = self.source
        return made

    def limited(self, can: frozenset[str]) -> Subject:
        for subject in self._subjects().values():
            subject.limited(can)
        return super().limited(can)

    def unwrapped(self) -> Subject:
        return self.base.unwrapped()

    def clone(self) -> Wrapped:
        parts = {name: part.clone() for name, part in self.parts.items()}
        return type(self)(self.base.clone(), self.rule, parts, self.strength, self.info)

    def num_parameters(self) -> int:
        return sum(subject.num_parameters() for subject in (self.base, *self.parts.values()))

    def fingerprint(self) -> str:
        """A hash of the wrapper, its rule and strength, and of the weights of base and parts."""
        marks = {name: part.fingerprint() for name, part in self._subjects().items()}
        return hashlib.sha256(json.dumps([self.config_dict(), marks], sort_keys=True).encode()).hexdigest()[
            :16
        ]

    def config_dict(self) -> dict[str, Any]:
        """What `wrapper.json` holds: the wrapper's name, its rule, its strength, the names of its parts."""
        about = {"wrapper": self.name, "strength": self.strength, "parts": sorted(self.parts)}
        return {**about, "rule": asdict(self.rule)}

    def write(self, folder: Path) -> None:
        """`wrapper.json`, the base below `base/`, each part below its name."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in self._subjects().items():
            part.write(folder / name)
        text = json.dumps(self.config_dict(), indent=1, sort_keys=True)
        (folder / WRAPPER_FILE).write_text(text + "\n", encoding="utf-8")

    def _subjects(self) -> dict[str, Subject]:
        return {"base": self.base, **self.parts}


class Blended(Wrapped):
    """Several models that read the same text: a subclass writes `blend`, of their logits at one position.

    One blend serves scoring and decoding, so that both are the same model. All must share one vocabulary.
    """

    def __init__(self, base: Subject, *args: Any, **more: Any):
        super().__init__(base, *args, **more)
        words = base.tokenizer.get_vocab()
        for name, part in self.parts.items():
            if part.vocab_size != base.vocab_size or part.tokenizer.get_vocab() != words:
                what = f"its vocabulary ({part.vocab_size} tokens) is not the base's ({base.vocab_size})"
                raise ModelError(
                    Problem(part.source or name, what, "Bring a model with the base's tokenizer")
                )

    @abstractmethod
    def blend(self, z: Mapping[str, Tensor]) -> Tensor:
        """The logits [N, V] from those of "base" and of each part (fp32, raw)."""

    def wrapped_logits(self, batch: Batch) -> Tensor:
        return self.blend({name: s.logits(batch).float() for name, s in self._subjects().items()})

    def wrapped_greedy(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int,
        *, stop: Sequence[int], pad_id: int,
    ) -> list[list[int]]:  # fmt: skip
        if any(isinstance(s, Wrapped) for s in self._subjects().values()):
            return super().wrapped_greedy(prompts, answers, length, stop=stop, pad_id=pad_id)
        texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        with ExitStack() as stack:
            models = {name: stack.enter_context(s.evaluating()) for name, s in self._subjects().items()}
            base = models.pop("base")
            return greedy_ids(base, texts, length, stop, pad_id, parts=models, blend=self.blend)


class Reprompted(Wrapped):
    """The base under other prompts: a subclass writes `reprompt`, a function of the prompt alone.

    A row that would outgrow the context goes on with the prompt as it was.
    """

    @abstractmethod
    def reprompt(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """The ids that take the prompt's place."""

    def wrapped_logits(self, batch: Batch) -> Tensor:
        rows = []
        for prompt, answer in zip(prompts_of(batch), answers_of(batch), strict=True):
            new = self.reprompt(prompt)
            new = new if len(new) + len(answer) <= self.encoder.max_length else prompt
            rows.append(Encoded((*new, *answer), len(new), False))
        if [row.ids[: row.num_prompt] for row in rows] == prompts_of(batch):
            return self.base.logits(batch)
        return self.base.logits(collate(rows, self.encoder.pad_id).to(self.device))

    def wrapped_greedy(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int,
        *, stop: Sequence[int], pad_id: int,
    ) -> list[list[int]]:  # fmt: skip
        room = self.encoder.max_length
        new = [self.reprompt(tuple(prompt)) for prompt in prompts]
        fits = [len(p) + len(a) < room for p, a in zip(new, answers, strict=True)]
        asked = [p if fit else old for p, fit, old in zip(new, fits, prompts, strict=True)]
        longest = max(len(p) + len(a) for p, a in zip(asked, answers, strict=True))
        return self.base.greedy(asked, answers, min(length, room - longest), stop=stop, pad_id=pad_id)

    def before(self, prompt: Sequence[int], ids: Sequence[int]) -> tuple[int, ...]:
        """The prompt with these ids in front, behind the token that begins every text."""
        start = int(len(prompt) > 0 and prompt[0] == self.tokenizer.bos_token_id)
        return (*prompt[:start], *ids, *prompt[start:])

    def with_text(self, text: str, prompt: Sequence[int]) -> tuple[int, ...]:
        """The prompt with a text in front: a system message where there is a chat template, else a line."""
        ids = self.tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"]
        if self.encoder.has_chat_template:
            turn = [{"role": "system", "content": text}]
            try:
                shown = self.tokenizer.apply_chat_template(turn, tokenize=False)
            except Exception as error:  # jinja: templates raise what they like
                fix = "Leave the instruction out"
                what = f"the chat template takes no system message alone: {error}"
                raise ModelError(Problem(self.source, what, fix)) from error
            ids = self.tokenizer(shown, add_special_tokens=False)["input_ids"]
            ids = ids[int(ids[:1] == [self.tokenizer.bos_token_id]) :]
        return self.before(prompt, ids)


def prompts_of(batch: Batch) -> list[tuple[int, ...]]:
    """The ids of each row that stand before its first answer token."""
    return [prompt for prompt, _ in _halves(batch)]


def answers_of(batch: Batch) -> list[tuple[int, ...]]:
    """The answer ids of each row."""
    return [answer for _, answer in _halves(batch)]


def _halves(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    ends = batch.attention_mask.sum(1)
    spans = zip(batch.input_ids.tolist(), (ends - batch.num_tokens).tolist(), ends.tolist(), strict=True)
    return [(tuple(row[:start]), tuple(row[start:end])) for row, start, end in spans]


def load_wrapped(folder: Path, **options: Any) -> Wrapped:
    """The wrapper whose folder `write` filled; `options` are those of `load_subject`, for base and parts."""
    try:
        told = json.loads((folder / WRAPPER_FILE).read_text(encoding="utf-8"))
        cls = WRAPPERS.get(told["wrapper"])
        rule = TypeAdapter(cls.Rule).validate_python(told["rule"])
        names, strength = list(told["parts"]), float(told["strength"])
    except (ValueError, KeyError, TypeError) as error:
        what = f"cannot be read ({type(error).__name__})"
        raise ModelError(
            Problem(str(folder / WRAPPER_FILE), what, "Give the folder that expunge wrote")
        ) from error
    parts = {name: load_subject(folder / name, **options) for name in names}
    made = cls(load_subject(folder / "base", **options), rule, parts, strength)
    made.source = str(folder)
    return made
