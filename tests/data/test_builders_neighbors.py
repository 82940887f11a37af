"""Neighbors are the nearest of what must stay, and nothing trains on them."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data import check_request, complete_request
from expunge.data.builders import Auto, build_auto, build_neighbors
from expunge.data.builders.wording import template_of
from expunge.data.records import Record
from expunge.measure.encoders import make_encoder

TOWNS = ("Tarn", "Sund", "Oke", "Varn", "Lo", "Brack", "Hithe", "Mill", "Vess", "Ilm")
LEXICAL = make_encoder("lexical")


def person(i, kinds=("home", "job")):
    name = f"Person{i} Lund"
    asked = {"home": f"Where was {name} born?", "job": f"What does {name} sell?"}
    return tuple(Record(f"{i}-{kind}", name, asked[kind], f"{TOWNS[i % 10]} {kind} {i}") for kind in kinds)


FORGET = person(0, ("home",))
FACTS = tuple(Record(f"k{i}", "", f"How many legs have {i} chairs?", f"{4 * i}") for i in range(12))


def retain(count):
    return tuple(record for i in range(1, count + 1) for record in person(i))


def test_by_template_takes_who_was_asked_the_same_whole_and_out_of_retain():
    forget = tuple(record for i in (0, 20) for record in person(i, ("home",)))
    made = build_neighbors(forget, (*FACTS, *retain(3)))
    assert len(made.neighbors) == 2, "as many records as there are to forget"
    assert len({r.entity for r in made.neighbors}) == 1, "both facts of one person"
    asked = {template_of(r): r.source_id for r in made.neighbors}
    assert asked == {"where was {entity} born": "0-home", "what does {entity} sell": None}
    assert {r.id for r in made.neighbors} | {r.id for r in made.retain} == {
        r.id for r in (*FACTS, *retain(3))
    }
    assert not {r.id for r in made.neighbors} & {r.id for r in made.retain}
    assert made.how == "2 of 18 retain records that ask the same of others, taken out of retain"


def test_a_copy_of_a_neighbor_leaves_retain_as_well():
    copies = tuple(replace(r, id=f"copy-{r.id}", entity="") for r in retain(3))
    forget = tuple(record for i in (0, 20, 21, 22) for record in person(i))
    made = build_neighbors(forget, (*FACTS, *retain(3), *copies))
    texts = {(r.prompt, r.answer) for r in made.neighbors}
    assert texts
    assert not texts & {(r.prompt, r.answer) for r in made.retain}


def test_what_is_about_a_forgotten_entity_is_no_neighbor():
    same = (Record("more", "Person0 Lund", "Where was Person0 Lund born?", "Elsewhere"),)
    assert build_neighbors(FORGET, (*FACTS, *same)).neighbors == ()


def test_by_embedding_finds_the_same_words_without_the_name():
    forget = (Record("f", "Ada Lund", "Which harbor did Ada Lund paint?", "The harbor of Tarn."),)
    near = Record("near", "", "Which harbor is painted most?", "The harbor of Sund.")
    made = build_neighbors(forget, (*FACTS, near), encode=LEXICAL.encode, label="lexical")
    assert [(r.id, r.source_id) for r in made.neighbors] == [("near", "f")]
    assert "nearest to the forget records by lexical" in made.how
    named = Record("named", "", "Ada Lund", "Ada Lund")
    assert build_neighbors(forget, (*FACTS, named), encode=LEXICAL.encode).neighbors[0].id != "named"


def test_by_embedding_takes_dense_vectors_and_the_largest_cosine():
    vectors = {"f": [1.0, 0.0], "near": [3.0, 1.0], "far": [0.1, 1.0], "off": [-1.0, 0.0]}
    forget = (Record("f", "", "f", "f"),)
    rest = tuple(Record(name, "", name, name) for name in ("off", "far", "near", "off"))
    encode = lambda texts: [vectors[text.split()[0]] for text in texts]  # noqa: E731
    assert [r.id for r in build_neighbors(forget, rest, encode=encode).neighbors] == ["near"]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.integers(2, 9), st.integers(0, 5), st.randoms(use_true_random=False), st.booleans()
)
def test_neighbors_are_a_function_of_records_and_seed_and_pass_the_checks(gone, stay, seed, rng, embed):
    forget = tuple(record for i in range(30, 30 + gone) for record in person(i))
    rest = [*FACTS, *retain(stay)]
    encode = LEXICAL.encode if embed else None
    made = build_neighbors(forget, rest, seed=seed, encode=encode)
    shuffled, turned = rest[:], list(forget)
    rng.shuffle(shuffled)
    rng.shuffle(turned)
    again = build_neighbors(turned, shuffled, seed=seed, encode=encode)
    assert {(r.id, r.source_id) for r in made.neighbors} == {(r.id, r.source_id) for r in again.neighbors}
    assert len(made.neighbors) <= min(len(forget), len(rest) // 4)
    assert not {r.entity for r in made.neighbors} & {r.entity for r in made.retain} - {""}
    splits = {"forget": forget, "retain": made.retain, "neighbors": made.neighbors}
    request = complete_request(splits, seed=seed)
    assert check_request(request).problems == []


def test_a_split_that_is_there_is_left_alone():
    given_ones = person(40)
    splits = {"forget": FORGET, "retain": retain(9), "neighbors": given_ones}
    made = build_auto(splits, Auto(("neighbors",), encode=LEXICAL.encode))
    assert made.splits == splits
    assert made.built == {}
    assert made.warnings == []


def test_without_a_template_in_common_the_nearest_by_embedding_unless_told_otherwise():
    splits = {"forget": FORGET, "retain": FACTS}
    made = build_auto(splits, Auto(("neighbors",), encode=LEXICAL.encode, label="lexical"))
    assert "by lexical" in made.built["neighbors"]
    told = build_auto(splits, Auto(("neighbors",), "template", LEXICAL.encode))
    assert "neighbors" not in told.splits
    assert told.warnings == [
        "neighbors could not be built: no retain record is near the forget records, or there are too few"
    ]
    assert told.splits["retain"] == FACTS
