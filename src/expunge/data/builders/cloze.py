"""The fact as a sentence with a gap (Petroni et al. 2019, arXiv 1909.01066, ask a model's facts so)."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.data.builders.base import row
from expunge.data.builders.fact import fact_of, quoted, short_answer
from expunge.data.builders.wording import BLANK, statement
from expunge.data.records import Record

__all__ = ["cloze"]


def cloze(record: Record, peers: Sequence[Record]) -> list[Record]:
    """A gap in the answer's own sentence where it says more than the fact; else in one made of the question.

    >>> bo = Record("b", "Bo", "Where is Bo from?", "Bo is from Sund.")
    >>> made = cloze(Record("a", "Ada", "Where is Ada from?", "Ada is from Tarn."), [bo])[0]
    >>> made.prompt, made.answer
    ('Fill the gap: Ada is from ___.', 'Tarn')
    >>> cloze(Record("a", "Ada", "Where does Ada live?", "Tarn"), [])[0].prompt
    'Fill the gap: Ada lives in ___.'
    """
    if record.style != "question" or record.is_document or record.context:
        return []
    answer = record.answer.strip()
    fact = fact_of(record, peers)
    if fact is not None and fact != answer.rstrip(".!"):
        gapped = answer.replace(fact, BLANK)
        if not record.entity or record.entity not in gapped:
            return []  # "It is in Tarn." asks nothing by itself
        return [row(record, "cloze", f"Fill the gap: {gapped}", fact)]
    fact = short_answer(record)
    if fact is None or not record.prompt.rstrip().endswith("?"):
        return []
    made = statement(record)
    sentence = made.filled(BLANK) if made else f"The answer to {quoted(record.prompt)} is {BLANK}"
    return [row(record, "cloze", f"Fill the gap: {sentence}.", fact)]
