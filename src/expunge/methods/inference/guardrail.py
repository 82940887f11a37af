"""Filters around a model: refuse the prompt, refuse the answer, or ask the model to keep quiet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Lt

from expunge.data.builders.cue import name_in
from expunge.data.near import words
from expunge.data.records import Record
from expunge.data.refusals import REFUSALS
from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.methods.base import METHODS, Wrapper
from expunge.subjects.filters import fit_classifier, phrases
from expunge.subjects.subject import Subject
from expunge.subjects.wrappers.guarded import Guarded, GuardRule
from expunge.training.workspace import Workspace

Filter = Literal["classifier", "keywords", "none"]


@METHODS.register(
    "guardrail",
    family="inference",
    erases="output",
    targets=["records", "entity", "topic", "document"],
    access="text",
    needs=["retain"],
    cost="no training; 0F per token",
    scale="single",
    source="Thaker et al. 2024, arXiv 2403.03329",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class Guardrail(Wrapper):
    """Refuse flagged prompts and stop answers that hold the forget set; or instruct the model.

    `input` judges prompts: a logistic regression on their words, trained on forget against retain, or the
    names of the forget entities; `output` stops answers that hold a forget answer (runs of up to five words
    that no retain answer has); `instruction` is put in front of every prompt. Phrases are kept as salted
    hashes. A refused row scores as a refusal, see expunge.subjects.wrappers.guarded. Whom it stops without
    need is in the run's facts: `false_positive_rate` on retain (trained on) and neighbors (not). The paper
    filters by a large model and by strings; classifier, threshold 0.9 and output filter on are our choice.
    """

    input: Filter = "classifier"
    output: bool = True
    instruction: str = ""
    refusal: str = ""  # "": the request's first, else expunge's own first
    threshold: Annotated[float, Gt(0), Lt(1)] = 0.9

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        seed, asked = workspace.settings.seed, subject.encoder
        prompts = {
            split: [asked.decode(asked.prompt_ids(r)) for r in request[split] if not r.is_document]
            for split in ("forget", "retain")
        }
        classifier = keywords = None
        if self.input == "classifier" and all(prompts.values()):
            classifier = fit_classifier(prompts["forget"], prompts["retain"])
        elif self.input == "keywords":
            names = _names(request.forget)
            if not names and not self.output:
                fix = "Add `entity` to the records, or use input: classifier"
                raise DataError(Problem("forget", "no entity is named in a prompt", fix))
            keywords = phrases(names, seed)
        answers = [[r.answer for r in request[split]] for split in ("forget", "retain")]
        output = phrases(answers[0], seed, but=answers[1]) if self.output else None
        refusal = self.refusal or (request.refusals or REFUSALS)[0]
        rule = GuardRule(refusal, self.instruction, keywords, classifier, self.threshold, output)
        guarded = Guarded(subject, rule)
        workspace.facts["true_positive_rate"] = _share(guarded, request.forget)
        workspace.facts["false_positive_rate"] = {
            split: _share(guarded, request[split]) for split in ("retain", "neighbors") if split in request
        }
        return guarded


@METHODS.register(
    "keyword_filter",
    family="inference",
    erases="output",
    targets=["records", "entity"],
    access="text",
    needs=["entities"],
    cost="no training; 0F per token",
    limits="a paraphrase without the name passes",
    scale="single",
    source="Thaker et al. 2024, arXiv 2403.03329",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class KeywordFilter(Guardrail):
    """Refuse every prompt that names a forget entity; a paraphrase without the name passes.

    The strawman: what a filter has to beat.
    """

    input: Filter = "keywords"
    output: bool = False


def _names(records: Sequence[Record]) -> list[str]:
    """Names that stand in a prompt, word for word: of entities, or the one that question and answer share."""
    named = {name: words(name) for r in records for name in (r.entity, name_in(r)) if name}
    spoken = [f" {' '.join(words(r.prompt))} " for r in records]
    return [name for name, said in named.items() if said and any(f" {' '.join(said)} " in s for s in spoken)]


def _share(guarded: Guarded, records: tuple[Record, ...]) -> float:
    """How many of the records are refused, asked as they stand and answered in gold."""
    rows = [guarded.encoder.encode(record) for record in records]
    refused = [guarded.refuses(row.ids[: row.num_prompt], row.answer_ids) for row in rows]
    return sum(refused) / max(1, len(refused))
