"""One row of a file becomes one Record. Shapes follow TRL's conventions, so that people's files already fit.

    question, answer        a question, asked through the chat template or the question template
    prompt, completion      raw text continued as it stands; lists of messages: a conversation
    messages                a conversation: the last turn is the answer, the user's turn before it the prompt
    text                    a document
    prompt, answer          the record as `Record.as_dict` writes it (with `style` and `context`)

Any shape may carry id, entity (or subject), paraphrased_prompts, paraphrased_answers, perturbed_answers,
alternates, keywords (each a text or a list of texts, singular names too), refusal, source_id, form, and
choices (or option1, option2, …) with label; the label counts from 0, and with choices the answer may be the
label itself.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from expunge.data.findings import Findings, listing
from expunge.data.records import Record, Turn

__all__ = ["FIELDS", "Row", "record_of"]

SHAPE_FIELDS = {
    "messages": ("messages",),
    "question": ("question", "answer"),
    "completion": ("prompt", "completion"),
    "record": ("prompt", "answer", "style", "context"),
    "document": ("text",),
}
ALIASES = {
    "entity": ("subject",),
    "paraphrased_prompts": ("paraphrased_prompt", "paraphrased_questions", "paraphrased_question"),
    "paraphrased_answers": ("paraphrased_answer",),
    "perturbed_answers": ("perturbed_answer",),
    "alternates": ("alternate", "sub_answer"),
    "keywords": ("keyword",),
}
TEXT_LISTS = ("paraphrased_prompts", "paraphrased_answers", "perturbed_answers", "alternates", "keywords")
OPTIONAL = ("id", "entity", *TEXT_LISTS, "refusal", "source_id", "form", "choices", "label")
ROLES = ("system", "developer", "user", "assistant", "tool")
KNOWN_SHAPES = "question + answer, prompt + completion, messages, or text"

FIELDS = tuple(dict.fromkeys([name for shape in SHAPE_FIELDS.values() for name in shape] + list(OPTIONAL)))
"""Every field a column can be mapped to; besides these option1, option2, …"""

_TYPES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}
_OPTION = re.compile(r"option(\d+)")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """One row as read: where it stands ("forget.jsonl:3") and its cells."""

    place: str
    cells: dict[str, Any]


@dataclass
class _Reader:
    """The cells of one row under the names expected, and what was wrong with them."""

    row: Row
    columns: Mapping[str, str]
    findings: Findings
    cells: dict[str, Any] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)  # field → the name it has in the file
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        taken = set(self.columns.values())
        cells = {k: v for k, v in self.row.cells.items() if k not in taken and k not in self.columns}
        cells |= {name: self.row.cells.get(column) for name, column in self.columns.items()}
        self.named = {name: self.columns.get(name, name) for name in cells}
        self.cells = cells
        for name, others in ALIASES.items():
            other = next((o for o in others if cells.get(o) is not None), None)
            if cells.get(name) is None and other is not None:
                cells[name] = cells.pop(other)
                self.named[name] = self.named.pop(other)

    def bad(self, name: str, what: str, fix: str = "") -> None:
        self.findings.add(f"{self.row.place} {self.named.get(name, name)}", what, fix)

    def get(self, name: str) -> Any:
        self.used.add(name)
        return self.cells.get(name)

    def text(self, name: str, *, may_be_empty: bool = False) -> str | None:
        """A required text, or None after its problem was noted."""
        value = self.get(name)
        if value is None:
            here = self.named.get(name, name) in self.row.cells
            self.bad(name, "is null" if here else "is missing", "" if here else _hint(name, self.row.cells))
            return None
        return self.checked(name, value, may_be_empty=may_be_empty)

    def optional(self, name: str) -> str | None:
        value = self.get(name)
        return None if value in (None, "") else self.checked(name, value)

    def label_like(self, name: str) -> str | None:
        """An optional name, such as an id: a whole number will do."""
        value = self.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.optional(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """An optional list of texts; one text counts as a list of one, in CSV a list is written as JSON."""
        value = self.get(name)
        if value in (None, ""):
            return ()
        if isinstance(value, str):
            listed = _json_list(value)
            value = [value] if listed is None else listed
        if not isinstance(value, list):
            self.bad(name, f"is {_type(value)}, not a text or a list of texts")
            return ()
        found: list[str] = []
        for i, item in enumerate(value):
            text = self.checked(name, item, at=f"[{i}]")
            if text is None:
                return ()
            found.append(text)
        return tuple(found)

    def turns(self, name: str) -> list[Turn] | None:
        """A list of messages, each with role and content, or None after its problem was noted."""
        value = self.get(name)
        if isinstance(value, str):
            value = _json_list(value)
        fix = 'Expected [{"role": "user", "content": "…"}, …]'
        if not isinstance(value, list) or not value:
            self.bad(name, "is not a list of messages", fix)
            return None
        turns: list[Turn] = []
        for i, message in enumerate(value):
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                self.bad(name, f"[{i}] is not a message with role and content", fix)
                return None
            role, content = message["role"], self.checked(name, message["content"], at=f"[{i}].content")
            if role not in ROLES:
                self.bad(name, f"[{i}] has an unknown role", f"Known: {', '.join(ROLES)}")
            if content is None or role not in ROLES:
                return None
            turns.append(Turn(role, content))
        return turns

    def checked(self, name: str, value: Any, *, at: str = "", may_be_empty: bool = False) -> str | None:
        at = f"{at} " if at else ""
        if not isinstance(value, str):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self.bad(name, f"{at}is {_type(value)}, not text", "Put it in quotes" if number else "")
        elif not may_be_empty and not value.strip():
            self.bad(name, f"{at}is empty", "Fill it in, or leave the row out")
        elif _SURROGATE.search(value):
            self.bad(
                name, f"{at}holds half of a surrogate pair, which no tokenizer can read", "Write it as UTF-8"
            )
        else:
            return value
        return None


def record_of(
    row: Row, *, split: str, index: int, columns: Mapping[str, str], findings: Findings
) -> tuple[Record | None, set[str]]:
    """The record of a row, None when something is wrong with it, and the names of the columns not used.

    Problems go to `findings`. A row of no known shape gives (None, all its columns) and no problem: the
    caller reports such rows together.
    """
    before = len(findings.problems)
    reader = _Reader(row, columns, findings)
    shape = _shape({k for k, v in reader.cells.items() if v is not None}) or _shape(set(reader.cells))
    if shape is None:
        return None, set(row.cells)
    parts = _PARTS[shape](reader)
    parts |= _choice(reader, parts)
    for name in TEXT_LISTS:
        parts[name] = reader.texts(name)
    for name in ("id", "entity", "source_id"):
        parts[name] = reader.label_like(name)
    for name in ("refusal", "form"):
        parts[name] = reader.optional(name)
    unused = {reader.named.get(k, k) for k in reader.cells.keys() - reader.used}
    if len(findings.problems) > before:
        return None, unused
    parts["id"] = parts["id"] or f"{split}-{index}"
    parts["entity"] = parts["entity"] or ""
    return Record(**parts), unused


def _shape(names: Iterable[str]) -> str | None:
    """The shape of a row with these fields; half a pair counts, so that the other half is missed by name."""
    names = set(names)
    if "messages" in names:
        return "messages"
    if "question" in names:
        return "question"
    if "prompt" in names:
        return "record" if "answer" in names and "completion" not in names else "completion"
    if "text" in names:
        return "document"
    if "completion" in names:
        return "completion"
    return "question" if "answer" in names else None


def _question(reader: _Reader) -> dict[str, Any]:
    return {"prompt": reader.text("question"), "answer": reader.get("answer")}


def _document(reader: _Reader) -> dict[str, Any]:
    return {"prompt": "", "answer": reader.text("text"), "style": "raw"}


def _record(reader: _Reader) -> dict[str, Any]:
    style = reader.optional("style") or "question"
    if style not in ("question", "raw"):
        reader.bad("style", f"is {style!r}", "Known: question, raw")
    context = reader.turns("context") if reader.get("context") not in (None, "") else []
    prompt = reader.text("prompt", may_be_empty=True)
    return {"prompt": prompt, "answer": reader.get("answer"), "style": style, "context": tuple(context or ())}


def _completion(reader: _Reader) -> dict[str, Any]:
    prompt, completion = reader.cells.get("prompt"), reader.cells.get("completion")
    if not (_is_messages(prompt) or _is_messages(completion)):
        return {
            "prompt": reader.text("prompt"),
            "answer": reader.text("completion"),
            "style": "raw",
        }
    asked, answer = reader.turns("prompt"), reader.turns("completion")
    if asked is None or answer is None:
        return {}
    if len(answer) != 1:
        reader.bad("completion", f"has {len(answer)} messages, not one")
    return _conversation(reader, "completion", [*asked, *answer[:1]])


def _messages(reader: _Reader) -> dict[str, Any]:
    turns = reader.turns("messages")
    return {} if turns is None else _conversation(reader, "messages", turns)


def _conversation(reader: _Reader, name: str, turns: list[Turn]) -> dict[str, Any]:
    if turns[-1:] == [] or turns[-1].role != "assistant":
        reader.bad(name, "the last message is not the assistant's, so there is no answer")
        return {}
    if len(turns) < 2 or turns[-2].role != "user":
        reader.bad(name, "the message before the answer is not the user's, so there is no question")
        return {}
    return {"prompt": turns[-2].content, "answer": turns[-1].content, "context": tuple(turns[:-2])}


def _choice(reader: _Reader, parts: dict[str, Any]) -> dict[str, Any]:
    """Choices, label and the answer they imply; where there are no choices, the answer checked as a text."""
    choices, options = reader.texts("choices"), _options(reader)
    choices = choices or options
    given, answer = reader.get("label"), parts.get("answer")
    label = _index(given)
    if not choices and reader.get("choices"):
        return {}  # its problem was noted already
    if not choices:
        if given not in (None, ""):
            reader.bad("label", "stands without choices", "Add choices, or leave the label out")
        unchecked = "answer" in reader.used
        return {"answer": reader.text("answer")} if unchecked else {}
    if not parts:
        return {}
    if label is None and given not in (None, ""):
        reader.bad("label", f"is {_type(given)}, not a whole number", "Labels count from 0")
        return {}
    where = "label" if label is not None else "answer"
    if label is None:
        label = choices.index(answer) if answer in choices else _index(answer)
        answer = None
    if label is None:
        fix = "Repeat one of the choices, or give a label counted from 0"
        reader.bad("answer", "is none of the choices", fix)
    elif not 0 <= label < len(choices):
        reader.bad(where, f"is {label}, out of range", f"The {len(choices)} choices are counted from 0")
    else:
        implied = answer in (None, "") or isinstance(answer, int)
        text = choices[label] if implied else reader.checked("answer", answer)
        return {"answer": text, "choices": choices, "label": label}
    return {}


def _options(reader: _Reader) -> tuple[str, ...]:
    names = sorted((n for n in reader.cells if _OPTION.fullmatch(n)), key=lambda n: int(n[len("option") :]))
    return tuple(text for text in map(reader.optional, names) if text is not None)


def _index(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # a column of whole numbers with gaps becomes float in parquet
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_messages(value: Any) -> bool:
    """A list is taken for messages; a text only where it is JSON that can be nothing else."""
    if isinstance(value, str):
        listed = _json_list(value) or []
        return bool(listed) and all(isinstance(v, dict) and {"role", "content"} <= v.keys() for v in listed)
    return isinstance(value, list)


def _json_list(text: str) -> list[Any] | None:
    """The list a CSV cell holds as JSON, if it does."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _type(value: Any) -> str:
    return _TYPES.get(type(value), f"a {type(value).__name__}")


def _hint(name: str, columns: Iterable[str]) -> str:
    """What to do about a missing field, naming a column it could be."""
    others = list(columns)
    close = difflib.get_close_matches(name, [c for c in others if c != name], n=1, cutoff=0.6)
    if close:
        return f"If {close[0]} is it: columns: {{{name}: {close[0]}}}"
    return f"The row has {listing(others, 8)}; map one: columns: {{{name}: …}}"


_PARTS = {
    "messages": _messages,
    "question": _question,
    "completion": _completion,
    "document": _document,
    "record": _record,
}
