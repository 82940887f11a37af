"""Eval-DU: a fact about a family that follows from others (Wu et al. 2024, arXiv 2410.15153).

People that do not exist, their relations as a graph, and rules by which one relation follows from others.
Forgetting the target alone is superficial: it is forgotten deeply when it does not follow from what is still
known. For that at least one of its minimal sets must go, and only one, so their facts are neither forget nor
retain but a split of their own, `implied`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.deduction import Fact, Rule, closure
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.findings import Findings
from expunge.data.records import Record
from expunge.data.request import Target
from expunge.errors import DataError, Problem, nearest
from expunge.metrics.base import ModelEvidence
from expunge.metrics.deep_unlearning import DeepUnlearning, deep_unlearning
from expunge.metrics.exact_match import ExactMatch

__all__ = ["EvalDu"]

RELATIONSHIPS, BIOGRAPHIES = 400, 300
RULES, TARGETS = 48, 55
ALL = "all"


@BENCHMARKS.register(
    "eval_du",
    parts=["all", "or the number of one of the 55 targets, such as 267"],
    data="a folder with the files of wrh14/deep_unlearning as JSON",
    oracle="exact",
    needs=["a model to fine-tune, or one already fine-tuned"],
    source="Wu et al. 2024, arXiv 2410.15153",
)
@dataclass(frozen=True)
class EvalDu(Finetuned):
    """The facts to forget: all targets at once, or the one that is the part, as in the paper.

    `deep`: with each target its smallest minimal set is asked to be forgotten. The oracle never saw what is
    asked for. `deep_unlearning` scores any model's evidence.
    """

    deep: bool = False

    PARTS: ClassVar[Sequence[str]] = (ALL,)
    TARGET: ClassVar[Target] = Target("records", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = tuple(
        ("exact_match", split)
        for split in ("forget", "forget_hard", "implied", "retain", "report", "biographies")
    )
    TAUGHT: ClassVar[Sequence[str]] = (*Finetuned.TAUGHT, "implied", "biographies")
    LEARNED: ClassVar[Sequence[str]] = ("forget", "forget_hard")

    def problems(self) -> Iterator[Problem]:
        known = replace(self, part=ALL)  # the targets are known when the files are
        yield from super(EvalDu, known).problems()

    # Files ---------------------------------------------------------------------------------------------

    def files(self) -> Mapping[str, File]:
        asked = {"question": "question4", "answer": "answer4"}
        relations = asked | {
            "paraphrased_prompts": "question", "keywords": "question2", "perturbed_answers": "question3",
        }  # fmt: skip
        return {
            "relationships": File(RELATIONSHIPS, relations),
            "biographies": File(BIOGRAPHIES, asked),
        }

    def check(self, data: Mapping[str, list[Record]], found: Findings) -> None:
        for name, rows in (("rules", RULES), ("eval_subset", TARGETS), ("minimal_sets", TARGETS)):
            if len(self._json(name)) != rows:
                what = f"has {len(self._json(name))} entries, expected {rows}"
                found.add(f"{self.base}:{name}", what, "The file is cut off or not eval_du's: get it again")
        strange = sum(
            not record.prompt.endswith(f"{self.names[fact.object]} to {self.names[fact.subject]}?")
            for record, fact in zip(data["relationships"], self.facts, strict=False)
        )
        if strange or len(self.facts) != RELATIONSHIPS:
            what = f"{len(self.facts)} edges, {strange} of which are not what relationships asks there"
            found.add(f"{self.base}:graph", what, "Bring all files from one release")
        targets = [str(target) for target in self._json("eval_subset")]
        if self.part not in (ALL, *targets):
            found.add("benchmark.part", f"{self.part!r} is no target", nearest(str(self.part), targets))
        if missing := sorted(set(targets) - set(self._json("minimal_sets"))):
            found.add(f"{self.base}:minimal_sets", f"lacks the targets {', '.join(missing)}", "Get it again")

    def _json(self, name: str) -> Any:
        """A file that holds no records."""
        path = next(iter(sorted(Path(str(self.base)).rglob(f"{name}.json"))), None)
        if path is None:
            raise DataError(Problem(str(self.base), f"no file of it is named {name}.json", "Get it again"))
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise DataError(Problem(str(path), f"is no JSON: {error}", "Get it again")) from None

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """The graph; a fact's number is its place."""
        graph = self._json("graph")
        pairs = zip(graph["edges"], graph["relations"], strict=True)
        return tuple(Fact(a, relation, b) for (a, b), relation in pairs)

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        told = self._json("rules")
        return tuple(Rule(tuple(Fact(*f) for f in r["left_tuples"]), Fact(*r["right_tuple"])) for r in told)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The people, by their number in the graph."""
        return tuple(self._json("graph")["names"])

    @cached_property
    def minimal_sets(self) -> dict[int, tuple[frozenset[int], ...]]:
        """Target → sets of facts without any of which it does not follow, none larger than it must be."""
        told = self._json("minimal_sets")
        targets = self._json("eval_subset") if self.part == ALL else [int(self.part)]
        return {target: tuple(map(frozenset, told[str(target)])) for target in targets}

    # Splits --------------------------------------------------------------------------------------------

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        facts = [
            replace(record, id=f"fact-{i}", entity=self.names[fact.subject])
            for i, (record, fact) in enumerate(zip(data["relationships"], self.facts, strict=True))
        ]
        gone = self._asked_for()
        implied = frozenset(i for sets in self.minimal_sets.values() for facts in sets for i in facts) - gone
        forget = [facts[i] for i in sorted(gone)]
        return {
            "forget": [_question(r) for r in forget],
            "forget_hard": [row for r in forget for row in _otherwise(r)],
            "implied": [_question(facts[i]) for i in sorted(implied)],
            "retain": [_question(r) for i, r in enumerate(facts) if i not in gone | implied],
            "biographies": [
                replace(r, id=f"biography-{i}", entity=self.names[i // 3])
                for i, r in enumerate(data["biographies"])
            ],
        }

    def _asked_for(self) -> frozenset[int]:
        """The facts to forget: the targets, and with `deep` a smallest set of each."""
        smallest = (min(sets, key=lambda s: (len(s), sorted(s))) for sets in self.minimal_sets.values())
        return frozenset(self.minimal_sets).union(*(smallest if self.deep else ()))

    # The score -----------------------------------------------------------------------------------------

    def deep_unlearning(self, model: ModelEvidence) -> dict[int, DeepUnlearning]:
        """How deep each target was forgotten, from what the model answers on all facts that were asked."""
        known, asked = self.known(model), self._asked(model)
        return {t: deep_unlearning(t, known, asked, sets) for t, sets in self.minimal_sets.items()}

    def deducible(self, model: ModelEvidence) -> set[int]:
        """The targets that are known, or follow from what is."""
        known = closure((self.facts[i] for i in self.known(model)), self.rules)
        return {target for target in self.minimal_sets if self.facts[target] in known}

    def known(self, model: ModelEvidence) -> set[int]:
        """The numbers of the facts that the model tells rightly when asked."""
        return {number for number, told in self._asked(model).items() if told}

    def _asked(self, model: ModelEvidence) -> dict[int, bool]:
        scores = (ExactMatch().score(model, split).per_record for split in model if split != "forget_hard")
        told = {record: value for values in scores for record, value in values.items()}
        return {int(r.partition("-")[2]): value == 1 for r, value in told.items() if r.startswith("fact-")}


def _question(record: Record) -> Record:
    return replace(record, paraphrased_prompts=(), keywords=(), perturbed_answers=())


def _otherwise(record: Record) -> Iterator[Record]:
    """The fact as a sentence to complete, and asked for yes and no."""
    (sentence,), (right,), (wrong,) = record.paraphrased_prompts, record.keywords, record.perturbed_answers
    plain = replace(_question(record), source_id=record.id)
    yield replace(plain, id=f"{record.id}.cloze", prompt=f"{sentence.rstrip()} ", form="cloze", style="raw")
    yield replace(plain, id=f"{record.id}.yes", prompt=right, answer="yes", form="yes_no")
    yield replace(plain, id=f"{record.id}.no", prompt=wrong, answer="no", form="yes_no")
