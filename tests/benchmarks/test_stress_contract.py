"""The stress tests on every registered benchmark: each applies, or there is a reason, and it is true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from statistics import mean

import pytest

from expunge.attacks import Field
from expunge.attacks.mcq_swap import NUM_OPTIONS, McqSwap, _items, _words, swapped
from expunge.attacks.paired import Paired
from expunge.benchmarks import BENCHMARKS
from expunge.data.builders.cue import FORM as CUE_REMOVED
from expunge.data.builders.cue import name_in
from expunge.data.builders.partial import HELD_OUT, HIDDEN, whole_target
from expunge.data.builders.stress import STRESS_FORMS, Stress, questions, stressed
from expunge.data.checks import check_request
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.methods.inference.guardrail import _names
from expunge.subjects.filters import fit_classifier, phrases

SHARED = Path("../shared/data")
FOLDERS = {"books": "corpora"}
FEW = 60  # records of a split, for speed


@cache
def request_of(name: str) -> Request:
    cls = BENCHMARKS.get(name)
    options = {}
    if "folder" in {f.name for f in fields(cls)}:
        folder = SHARED / FOLDERS.get(name, name)
        if not folder.is_dir():
            pytest.skip(f"{folder} is not here")
        options["folder"] = str(folder)
    request = cls.from_part(cls.card.fields["parts"][0], **options).request()
    asked = {r.source_id for r in request["forget_hard"]}
    forget = tuple(sorted(request.forget, key=lambda r: r.id not in asked))[:FEW]
    known = {r.id for r in forget}
    hard = tuple(r for r in request["forget_hard"] if r.source_id in known)
    splits = {split: request[split][:FEW] for split in request}
    return Request({**splits, "forget": forget, "forget_hard": hard}, request.target, request.built)


@cache
def with_forms(name: str) -> tuple[Request, list[str]]:
    return stressed(request_of(name), Stress(STRESS_FORMS))


every = pytest.mark.parametrize("name", BENCHMARKS.names())


def told_of_one_alone(request: Request) -> Iterator[Record]:
    """Questions with a name of which there is another short answer that no other name has."""
    hard = [r for r in request["forget_hard"] if r.form not in ("reverse", "multi_hop", "choice")]
    asked = [r for r in (*questions(request), *hard) if r.style == "question" and len(r.answer.split()) < 3]
    names = {(name_in(r), normalized(r.answer)) for r in asked if name_in(r)}
    alone = {(name, a) for name, a in names if not any(a == b and name != other for other, b in names)}
    for record in questions(request):
        own = (name_in(record), normalized(record.answer))
        if record.style == "question" and any(name == own[0] for name, _ in alone - {own}):
            yield record


@every
def test_forms_apply_or_cannot(name):
    """A form that could not be built is warned of, and there is nothing it could be built of."""
    request, (made, warnings) = request_of(name), with_forms(name)
    answers = {normalized(r.answer) for r in questions(request, raw=True)}
    false = any(len(r.perturbed_answers) > 1 for r in questions(request, raw=True))
    possible = {
        "choice": bool(answers) and (len(answers) > 2 or false),
        "open": any(r.choices and r.prompt.rstrip().endswith("?") for r in request.forget),
        CUE_REMOVED: any(told_of_one_alone(request)),
    }
    for form in STRESS_FORMS:
        there = any(r.form == form for r in made["forget_hard"])
        there |= form == "choice" and any(r.choices for r in made.forget)
        warned = any(f"no {form.replace('_', '-')} row" in w for w in warnings)
        assert there != warned
        assert there or not possible[form], (form, warnings)


@every
def test_built_rows_ask_for_the_same(name):
    request, (made, _) = request_of(name), with_forms(name)
    assert not check_request(made).problems
    sources = {r.id: r for r in request.forget}
    given = set(request["forget_hard"])
    filtered = phrases(_names(questions(request)))
    for row in (r for r in made["forget_hard"] if r not in given):
        source = sources[row.source_id]
        assert row.entity == source.entity
        if not source.is_document:
            assert normalized(row.answer) in {normalized(source.answer), *map(normalized, source.choices)}
        if row.form == "choice":
            assert row.choices[row.label] == row.answer
            assert len(set(map(normalized, row.choices))) == len(row.choices) >= 3
        if row.form == "open":
            assert not row.choices
        if row.form == CUE_REMOVED:
            assert row.prompt != source.prompt
            assert not filtered.found_in(row.prompt)


@every
def test_paired_queries_apply_unless_nothing_is_asked(name):
    request = request_of(name)
    why = Paired().missing(Field(request))
    if why is None:
        assert questions(request)
    else:
        assert not questions(request) or not Field(request).stays(), why


@every
def test_a_forget_answer_stands_among_the_wrong_options(name):
    field = Field(request_of(name), "default")
    why = McqSwap().missing(field)
    if why is not None:
        answers = [{normalized(r.answer) for r in field.request[s]} for s in field.stays()]
        assert not any(len(told) >= NUM_OPTIONS for told in answers) or not _words(field.request), why
        return
    words = _words(field.request)
    for item in _items(field)[:10]:
        changed = swapped(item, words, 0, 0)
        differ = [i for i, (a, b) in enumerate(zip(item.choices, changed.choices, strict=True)) if a != b]
        assert len(differ) == 1
        assert item.label == changed.label not in differ


@every
def test_a_keyword_or_a_classifier_tells_what_is_to_go(name):
    """The strawman knows direct questions: by names where only these have them, else by their words."""
    request = request_of(name)
    forget = [r.prompt for r in questions(request)]
    keep = [r.prompt for r in (*request.retain, *request["report"]) if not r.is_document]
    if not forget or not keep:
        assert all(r.is_document for r in (request.retain if forget else request.forget))
        return
    names = phrases(_names(questions(request)))
    if mean(map(names.found_in, forget)) <= mean(map(names.found_in, keep)):  # the same names stay
        model = fit_classifier(forget, keep)
        assert mean(map(model.score, forget)) > mean(map(model.score, keep)) + 0.2


@every
def test_held_out_and_hidden_records_part_the_target(name):
    request = request_of(name)
    made, warnings = stressed(request, Stress(held_out=0.25, listed=0.5))
    assert not warnings
    held, hidden = ({r.id for r in made[split]} for split in (HELD_OUT, HIDDEN))
    listed = {r.id for r in made.forget}
    assert listed
    assert held
    assert hidden
    assert listed | held | hidden == {r.id for r in request.forget}
    assert len(listed) + len(held) + len(hidden) == len(request.forget)
    assert hidden <= {r.id for r in made.retain}
    assert held.isdisjoint(r.id for r in made.retain)
    assert {r.source_id for r in made["forget_hard"]} <= listed
    whole = whole_target(made)
    assert {r.id for r in whole.forget} == {r.id for r in request.forget}
    assert whole.retain == request.retain
    assert stressed(request, Stress(held_out=0.25, listed=0.5))[0] == made
