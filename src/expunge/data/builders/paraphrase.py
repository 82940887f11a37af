"""The question in other words: its own paraphrases, else a polite opening and an indirect question."""

from __future__ import annotations

import re

from expunge.data.builders.base import row
from expunge.data.records import Record
from expunge.stats import seed_from

__all__ = ["indirect", "paraphrase"]

OPENINGS = (
    "Could you answer this question? {}",
    "Please answer the following question. {}",
    "Here is a question for you: {}",
    "I would like to know the answer to this: {}",
    "Someone asked me this, and I could not answer: {}",
    "Do you know the answer to this? {}",
)
INDIRECT = (
    "Could you tell me {}?",
    "I would like to know {}.",
    "Please tell me {}.",
    "Do you happen to know {}?",
)

_VERBS = "is|was|are|were|has|had|can|could|will|would"


def indirect(record: Record) -> str | None:
    """The question as a clause, "where Ada is from"; None where English would need another verb form.

    >>> indirect(Record("a", "Ada Lund", "Where was Ada Lund born?", "In Tarn."))
    'where Ada Lund was born'
    """
    if not record.entity:
        return None
    name = re.escape(record.entity)
    asked = re.fullmatch(rf"(Where|When|Who|What|How|Why) ({_VERBS}) {name}((?: [^,;?]+)?)\?", record.prompt)
    if asked is None or re.match(r" (and|or|of)\b", asked[3]):
        return None
    return f"{asked[1].lower()} {record.entity} {asked[2]}{asked[3]}"


def paraphrase(record: Record, seed: int) -> list[Record]:
    """The record's own paraphrases, or one or two made of templates that fit any question.

    >>> [r.prompt for r in paraphrase(Record("a", "", "Who won?", "Bo."), 0)]
    ['Could you answer this question? Who won?']
    """
    prompts = list(record.paraphrased_prompts)
    if not prompts and record.style == "question" and record.prompt.rstrip().endswith("?"):
        pick = seed_from(seed, "paraphrase", record.id)
        prompts = [OPENINGS[pick % len(OPENINGS)].format(record.prompt)]
        if clause := indirect(record):
            prompts.append(INDIRECT[pick % len(INDIRECT)].format(clause))
    return [
        row(record, "paraphrase", prompt, number=i, choices=record.choices, label=record.label)
        for i, prompt in enumerate(prompts)
    ]
