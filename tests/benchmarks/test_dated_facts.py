import re

import pytest
from published import benchmark, needs, row

from expunge.benchmarks.dated_facts import RandomBirthdays, Years
from expunge.errors import ConfigError

each = pytest.mark.parametrize(
    ("name", "splits", "gone"),
    [
        pytest.param("random_birthdays", 10, 5, marks=needs("random_birthdays")),
        pytest.param("years", 5, 2, marks=needs("years")),
    ],
)


@each
def test_counts_are_those_of_the_splits(name, splits, gone):
    made = benchmark(name)
    sizes = [len(made.data[f"split_{i}"]) for i in range(splits)]
    assert sizes == list(made.ROWS)
    assert sum(sizes) == {"random_birthdays": 1570, "years": 789}[name]
    assert [len(made.data[f"corpus_split_{i}"]) for i in range(splits)] == [471] * splits
    of = {split: {r.id.partition("-")[0] for r in made.request()[split]} for split in ("forget", "retain")}
    assert of["forget"] == {f"split_{i}" for i in range(gone)}
    assert of["retain"] == {f"split_{i}" for i in range(gone, splits - 1)}


@each
def test_first_question_is_the_files_first_row(name, splits, gone):
    told, first = row(name, "split_0"), benchmark(name).request().forget[0]
    assert first.prompt == told["question"]
    assert first.answer == str(told["choices"][told["answer"]]) == first.choices[first.label]
    assert set(first.choices) == set(map(str, told["choices"]))


@each
def test_no_question_has_two_answers(name, splits, gone):
    request = benchmark(name).request()
    asked = [r.prompt for s in request for r in request[s] if s != "forget_hard"]
    assert len(set(asked)) == len(asked)
    assert all(len(set(r.choices)) == len(r.choices) for r in request.forget)


@each
def test_statements_break_off_before_the_year_of_their_fact(name, splits, gone):
    request = benchmark(name).request()
    sources = {r.id: r for r in request.forget}
    for r in request["forget_hard"]:
        assert r.answer == sources[r.source_id].answer
        assert re.fullmatch(r"\d{4}", r.answer)
        assert r.prompt.endswith(" ")
        assert r.answer not in r.prompt
        assert sources[r.source_id].entity in r.prompt
        if name == "random_birthdays":
            assert r.id.partition("-")[0] == f"corpus_{r.source_id.partition('-')[0]}"
    assert len({r.source_id for r in request["forget_hard"]}) > 0.7 * len(sources)


@needs("years")
def test_only_models_made_here_do_not_know_the_holdout():
    assert "holdout" not in benchmark("years").request()
    assert len(benchmark("years", model="any").request()["holdout"]) == 157


@needs("random_birthdays")
def test_so_many_splits_are_forgotten_as_asked():
    request = RandomBirthdays.from_part(
        None, folder=benchmark("random_birthdays").folder, forgotten=2
    ).request()
    assert {r.id.partition("-")[0] for r in request.forget} == {"split_0", "split_1"}


def test_as_many_splits_as_leave_some_to_retain():
    with pytest.raises(ConfigError, match=r"benchmark\.forgotten: is 4.*from 1 to 3"):
        Years.from_part(None, forgotten=4)
