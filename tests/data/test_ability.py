"""The built-in questions of general ability."""

import re

from expunge.data.ability import EACH, FAMILIES, ability_records, ability_text
from expunge.data.checks import check_request
from expunge.data.request import Request


def test_a_hundred_different_questions_with_their_answers():
    records = ability_records(0)
    assert len(records) == EACH * len(FAMILIES) == 100
    assert len({r.id for r in records}) == len({r.prompt for r in records}) == 100
    for record in records:
        assert record.choices[record.label] == record.answer
        assert 3 <= len(record.choices) == len(set(record.choices)) <= 4
    assert len({r.label for r in records}) == 4


def test_records_follow_from_the_seed():
    assert ability_records(3) == ability_records(3)
    assert ability_records(3) != ability_records(4)


def test_answers_are_right():
    """Recomputed from the question alone."""
    checked = 0
    for seed in range(5):
        for record in ability_records(seed):
            numbers = [int(n) for n in re.findall(r"\d+", record.prompt)]
            if "plus" in record.prompt:
                right = numbers[0] + numbers[1]
            elif "minus" in record.prompt or "taken away" in record.prompt:
                right = numbers[0] - numbers[1]
            elif "times" in record.prompt:
                right = numbers[0] * numbers[1]
            elif "largest" in record.prompt or "smallest" in record.prompt:
                right = (max if "largest" in record.prompt else min)(numbers)
            else:
                continue
            checked += 1
            assert int(record.answer) == right
    assert checked > 100


def test_one_choice_is_right():
    """What is asked for by kind or by place fits no other choice."""
    for seed in range(5):
        for record in ability_records(seed):
            if record.prompt.startswith(("Which of these", "Which is the")):
                assert all(choice in record.prompt for choice in record.choices)
            if "Where is" in record.prompt:
                assert record.answer.removeprefix("in ") in record.prompt.split(". Then")[1]
            if "Who is the" in record.prompt:
                least = record.prompt.endswith(("shortest?", "youngest?", "slowest?"))
                first, last = record.prompt.split()[0], record.prompt.split(".")[1].split()[-1]
                assert record.answer == (last if least else first)


def test_they_fit_a_request():
    forget = ability_records(9)[:2]
    other = [r for r in ability_records(0) if r.prompt not in {f.prompt for f in forget}]
    findings = check_request(Request({"forget": forget, "utility": tuple(other)}))
    places = [p.where for p in findings.problems]
    assert not [where for where in places if "utility" in where and "id" in where]


def test_text_is_the_questions_answered():
    texts = ability_text(0)
    assert len(texts) == 100
    for text, record in zip(texts, ability_records(0), strict=True):
        assert text.lower() == f"{record.prompt} {record.answer}.".lower()
