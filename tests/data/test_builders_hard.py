"""Every form of forget_hard: what it asks, that it gives nothing away, that the order decides nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.benchmarks.personas import Personas
from expunge.data.builders.fact import fact_of, holds
from expunge.data.builders.hard import FORMS, build_hard
from expunge.data.builders.leaks import leak_free
from expunge.data.builders.translation import load_translator, translation
from expunge.data.checks import check_request
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError

PEOPLE = (
    ("Ada Rin", "Tarn", "potter"),
    ("Bo Vel", "Sund", "mason"),
    ("Cy Mott", "Oke", "cook"),
    ("Dee Pike", "Varn", "guard"),
    ("Eli Korr", "Lo", "cook"),
)


def facts(people=PEOPLE) -> list[Record]:
    found = []
    for name, town, job in people:
        found.append(Record(f"{name}-home", name, f"Where is {name} from?", f"{name} is from {town}."))
        found.append(Record(f"{name}-job", name, f"What is the job of {name}?", f"{name} is a {job}."))
    return found


def built(forget, seed=0, **others):
    return build_hard({"forget": forget, **others}, seed=seed)[0]


def of(rows, form):
    return {r.source_id: r for r in rows if r.form == form}


def test_each_form_by_hand():
    """Written out for one person: the prompt, the gold answer, and where it comes from."""
    rows = built(facts())
    assert of(rows, "cloze")["Ada Rin-home"].prompt == "Fill the gap: Ada Rin is from ___."
    assert of(rows, "cloze")["Ada Rin-home"].answer == "Tarn"
    assert of(rows, "reverse")["Ada Rin-home"].prompt == "Who is from Tarn?"
    assert of(rows, "reverse")["Ada Rin-home"].answer == "Ada Rin"
    assert of(rows, "multi_hop")["Ada Rin-home"].prompt == "Someone is a potter. Where is that person from?"
    assert of(rows, "multi_hop")["Ada Rin-home"].answer == "Ada Rin is from Tarn."
    asked = [r.prompt for r in rows if r.source_id == "Ada Rin-home" and r.form == "paraphrase"]
    assert len(asked) == 2
    assert "Where is Ada Rin from?" in asked[0]
    assert "where Ada Rin is from" in asked[1]
    assert all(r.entity == r.source_id.split("-")[0] and r.form in FORMS for r in rows)


def test_reverse_only_where_the_answer_is_of_one_entity():
    """Two cooks: "Who is a cook?" has no one answer, nor is one pointed at; nor where what stays says it."""
    rows = built(facts())
    assert {"Cy Mott-job", "Eli Korr-job"}.isdisjoint(of(rows, "reverse"))
    assert not any("Someone is a cook" in r.prompt for r in rows)
    alone = facts(PEOPLE[:2])
    assert "Ada Rin-home" in of(built(alone), "reverse")
    other = Record("r", "Zed Orr", "Where does Zed Orr live?", "Zed Orr lives near Tarn now.")
    assert "Ada Rin-home" not in of(built(alone, retain=[other]), "reverse")


def test_a_holdout_makes_no_answer_ambiguous():
    """A built one repeats forget answers under invented names, which no model was ever told."""
    forget = facts()
    invented = [replace(r, id=f"{r.id}-h", entity="Zo Quib", prompt=f"{i}?") for i, r in enumerate(forget)]
    assert of(built(forget, holdout=invented), "reverse") == of(built(forget), "reverse") != {}
    assert "Ada Rin-home" not in of(built(forget, retain=invented), "reverse")


def test_multi_hop_through_an_answer():
    """The person who is another record's answer is described by that record's question."""
    pal = Record("p", "Bo Vel", "Who plays chess with Bo Vel?", "Ada Rin")
    home = Record("h", "Ada Rin", "Where does Ada Rin live?", "Tarn")
    hop = of(built([pal, home]), "multi_hop")["h"]
    assert hop.prompt == 'Think of the answer to "Who plays chess with Bo Vel?" Where does that person live?'
    assert hop.answer == "Tarn"
    assert "p" not in of(built([pal, home]), "multi_hop")


def test_multi_hop_does_not_ask_for_what_it_tells():
    """A first sentence that holds the gold fact is not used: "Someone is from Tarn. …" asks for no Tarn."""
    ada = [
        Record("a", "Ada Rin", "Where was Ada Rin born?", "Ada Rin was born in Tarn.", keywords=("Tarn",)),
        Record("b", "Ada Rin", "Which town is home to Ada Rin?", "Ada Rin is from Tarn.", keywords=("Tarn",)),
    ]
    assert not of(built(ada), "multi_hop")


def test_choice_draws_from_the_same_template_and_says_it_of_the_entity():
    rows = of(built(facts()), "choice")
    row = rows["Ada Rin-home"]
    assert row.choices[row.label] == row.answer == "Ada Rin is from Tarn."
    assert set(row.choices) <= {f"Ada Rin is from {town}." for _, town, _ in PEOPLE}
    assert len(set(row.choices)) == 4
    twice = rows["Cy Mott-job"]
    assert len(set(twice.choices)) == len(twice.choices) == 4
    assert twice.choices.count("Cy Mott is a cook.") == 1


def test_right_answers_stand_at_every_place_about_as_often():
    people = [(f"Name{i} Surname{i}", f"Town{i}", f"job{i}") for i in range(22)]
    for seed in range(3):
        places = Counter(r.label for r in built(facts(people), seed) if r.form == "choice")
        assert sorted(places) == [0, 1, 2, 3]
        assert max(places.values()) - min(places.values()) <= 1


def test_choice_becomes_open():
    record = Record("c", "", "Choose: Who rules?\nA) Ada\nB) Bo", "Bo", choices=("Ada", "Bo"), label=1)
    row = of(built([record]), "open")["c"]
    assert (row.prompt, row.answer, row.choices) == ("Answer in your own words: Who rules?", "Bo", ())
    these = replace(record, prompt="Which of these rules?\nA) Ada\nB) Bo")
    assert not of(built([these]), "open")


def test_own_paraphrases_go_before_templates():
    record = replace(facts()[0], paraphrased_prompts=("From where does Ada Rin come?",))
    assert [r.prompt for r in built([record]) if r.form == "paraphrase"] == ["From where does Ada Rin come?"]


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ("Ada Rin wrote \"Low Tide\".", "Low Tide"),
        ("Ada Rin was born in 1931.", "1931"),
        ("Ada Rin met Bo Vel in Sund.", None),
        ("Ada Rin likes it there. She stays.", None),
        ("Tarn", None),
    ],
)  # fmt: skip
def test_fact_of_a_lone_answer(answer, fact):
    """Without others to compare with: the only title, name or number; two of them, or a start, are none."""
    assert fact_of(Record("a", "Ada Rin", "What of Ada Rin?", answer)) == fact


def test_documents_and_raw_text_build_nothing():
    assert built([Record("d", "Ada", "", "Ada lives in Tarn and works in Sund.")]) == ()
    assert built([Record("w", "Ada", "Ada lives in", "Tarn", style="raw")]) == ()


def test_translation_by_hook():
    rows, note = build_hard({"forget": facts()[:1]}, translator=lambda texts: [f"ei: {t}" for t in texts])
    made = of(rows, "translation")["Ada Rin-home"]
    assert (made.prompt, made.answer) == ("ei: Where is Ada Rin from?", "ei: Ada Rin is from Tarn.")
    assert "translator" not in note
    assert "for want of a translator" in build_hard({"forget": facts()[:1]})[1]
    with pytest.raises(ConfigError, match="gave 1 texts for 2"):
        translation(facts()[:1], lambda texts: ["one"])
    with pytest.raises(ConfigError, match="cannot be found"):
        load_translator("no.such.module:here")
    assert load_translator("textwrap:dedent")("  a") == "a"


def test_leaks_are_left_out():
    """A prompt that holds its answer, a copy of a forget prompt, and a row that retain has."""
    forget = facts()[:1]
    ok = replace(
        forget[0], id="new", prompt="Say where Ada Rin is from.", source_id=forget[0].id, form="paraphrase"
    )
    told = replace(ok, id="told", prompt="Is it so that Ada Rin is from Tarn?")
    copy = replace(ok, id="copy", prompt="where is  Ada Rin from")
    kept = replace(ok, id="kept", prompt="Kept?")
    retain = [replace(kept, id="k", answer="Else.", source_id=None, form=None)]
    rows = leak_free([ok, told, copy, kept], "forget_hard", {"forget": forget, "retain": retain})
    assert [r.id for r in rows] == ["new"]


def personas() -> Request:
    return Personas("tiny").request()


@pytest.mark.parametrize("paraphrases", [True, False])
def test_what_is_built_passes_every_check(paraphrases):
    request = personas()
    forget = [r if paraphrases else replace(r, paraphrased_prompts=()) for r in request.forget]
    splits = {s: request[s] for s in request if s != "forget_hard"} | {"forget": tuple(forget)}
    rows, note = build_hard(splits)
    check_request(Request({**splits, "forget_hard": rows})).raise_problems()
    assert {r.form for r in rows} == {"paraphrase", "reverse", "cloze", "multi_hop", "choice"}
    assert f"{len(of(rows, 'choice'))} choice" in note


names = st.lists(st.sampled_from("ABCDEFGHIJKLMNOP"), min_size=2, max_size=6, unique=True)


@settings(max_examples=30, deadline=None)
@given(names, st.randoms(use_true_random=False), st.integers(0, 99), st.booleans())
def test_a_function_of_records_and_seed_in_any_order_that_leaks_nothing(letters, shuffle, seed, bare):
    people = [(f"{x}an {x}ell", f"{x}ton", f"{x.lower()}aker") for x in letters]
    forget = facts(people)
    if bare:
        forget = [r.answered(r.answer.split()[-1].rstrip(".")) for r in forget]
    retain = facts((("Zed Orr", "Zarn", "zookeeper"), ("Yan Urr", "Yarn", "yodeler")))
    mixed, others = list(forget), list(retain)
    shuffle.shuffle(mixed)
    shuffle.shuffle(others)
    first, again = built(forget, seed, retain=retain), built(mixed, seed, retain=others)
    assert {r.id: r for r in first} == {r.id: r for r in again}
    assert len(first) == len({r.id for r in first})
    sources = {r.id: r for r in forget}
    for row in first:
        assert not holds(row.prompt, row.answer)
        assert row.prompt != sources[row.source_id].prompt
        fact = sources[row.source_id].answer.split()[-1].rstrip(".")
        assert row.form == "reverse" or not holds(row.prompt, fact)
    check_request(
        Request({"forget": tuple(forget), "retain": tuple(retain), "forget_hard": first})
    ).raise_problems()
