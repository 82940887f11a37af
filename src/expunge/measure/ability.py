"""General ability without any download: built-in questions, and a perplexity on running text."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.data.ability import ability_records, ability_text
from expunge.measure.corpus import PackedPerplexity, packed_perplexity
from expunge.measure.take import EvidencePlan, take_evidence
from expunge.metrics import compute
from expunge.metrics.base import Score
from expunge.subjects.subject import Subject

__all__ = ["Ability", "general_ability"]


@dataclass(frozen=True)
class Ability:
    """Accuracy by letter and by the text of the choices, with what guessing has in `details["chance"]`."""

    letters: Score
    choices: Score
    text: PackedPerplexity


def general_ability(subject: Subject, seed: int = 0) -> Ability:
    """How well a model answers the built-in questions, and how well it writes their answers as text.

    Numbers of one model mean little: compare the model with its original, on the same seed.
    """
    plan = EvidencePlan(("gold", "choice"), generate=False, annotators=("letters",))
    evidence = take_evidence(subject, {"utility": ability_records(seed)}, plan=plan)
    return Ability(
        compute("choice_accuracy_letter", evidence, "utility", seed=seed),
        compute("choice_accuracy", evidence, "utility", seed=seed),
        packed_perplexity(subject, ability_text(seed)),
    )
