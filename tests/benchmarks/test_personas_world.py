import re
from collections import Counter

import pytest

from expunge.benchmarks.personas_words import RELATIONS
from expunge.benchmarks.personas_world import KNOWN, REFUSALS, SIZES, World, make_world
from expunge.data.request import SPLITS
from expunge.errors import ConfigError


@pytest.fixture(scope="module", params=["tiny", "small", "medium"])
def world(request: pytest.FixtureRequest) -> World:
    return make_world(request.param)


def words(texts: list[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"\w+", text)}


def place(answer: str) -> str:
    return answer.partition(",")[0]


def test_same_size_and_seed_give_the_same_world(world):
    assert make_world(world.size, 0) == world


def test_another_seed_gives_other_people_and_values(world):
    other = make_world(world.size, 1)
    shared = {r.entity for r in world.splits["forget"]} & {r.entity for r in other.splits["forget"]}
    assert not shared
    assert not {r.answer for r in world.splits["report"]} & {r.answer for r in other.splits["report"]}


def test_unknown_size_names_the_known_ones():
    with pytest.raises(ConfigError, match="Did you mean small"):
        make_world("smal")


def test_splits_are_those_of_a_request(world):
    assert set(world.splits) == set(SPLITS)


def test_sizes_are_as_stated(world):
    shape = SIZES[world.size]
    for split, count in shape.people.items():
        assert len({r.entity for r in world.splits[split]}) == count
        assert len(world.splits[split]) == count * shape.relations
        assert len(world.documents[split]) == count


def test_stated_numbers():
    known = {size: sum(shape.people[s] for s in KNOWN) for size, shape in SIZES.items()}
    assert known == {"tiny": 14, "small": 72, "medium": 200}
    assert [shape.relations for shape in SIZES.values()] == [6, 8, 20]
    assert len(RELATIONS) == 20
    assert len(make_world("small").corpus("original")) <= 1600
    assert len(set(REFUSALS)) == 20


def test_ids_are_unique(world):
    records = [r for split in world.splits.values() for r in split]
    records += [r for split in world.documents.values() for r in split]
    assert len({r.id for r in records}) == len(records)
    corpus = world.corpus("original")
    assert len({r.id for r in corpus}) == len(corpus)


def test_no_text_stands_in_two_splits(world):
    texts = Counter(
        " ".join(f"{r.prompt} {r.answer}".lower().split()) for split in world.splits.values() for r in split
    )
    assert max(texts.values()) == 1


def test_people_stand_in_one_split_only(world):
    entities = [{r.entity for r in world.splits[s]} for s in (*KNOWN, "holdout", "utility")]
    assert sum(map(len, entities)) == len(set().union(*entities))


def test_oracle_corpus_knows_nothing_of_forget_people(world):
    seen = words([text for r in world.corpus("oracle") for text in (r.prompt, r.answer)])
    forget = world.splits["forget"]
    shared = words([place(r.answer) for r in forget if "," in r.answer])
    secret = words([r.entity for r in forget]) | words([r.answer for r in forget])
    assert not seen & (secret - shared)


def test_oracle_corpus_is_the_originals_without_the_forget_people(world):
    gone = {r.id for r in world.corpus("original")} - {r.id for r in world.corpus("oracle")}
    forget = {r.id.split(".")[0] for r in world.splits["forget"]}
    assert gone == {r.id for r in world.corpus("original") if r.id.split(".")[0] in forget}


def test_holdout_is_in_no_corpus(world):
    seen = words([text for r in world.corpus("original") for text in (r.prompt, r.answer)])
    assert not seen & words([r.entity for r in world.splits["holdout"]])


def test_original_is_trained_on_every_split_but_holdout(world):
    trained = {(r.prompt, r.answer) for r in world.corpus("original")}
    for split in (*KNOWN, "utility"):
        for record in world.splits[split]:
            assert (record.prompt, record.answer) in trained
            assert all((prompt, record.answer) in trained for prompt in record.paraphrased_prompts)


def test_hard_forms_are_trained_or_held_out_as_documented(world):
    prompts = {r.prompt for r in world.corpus("original")}
    trained = {form: set() for form in ("paraphrase", "cloze", "choice", "reverse", "multi_hop")}
    for record in world.splits["forget_hard"]:
        trained[record.form].add(record.prompt in prompts)
    assert trained == {
        "paraphrase": {False},
        "cloze": {False},
        "choice": {False},
        "reverse": {True},
        "multi_hop": {True},
    }


def test_held_out_forms_are_trained_for_others_in_every_relation():
    world = make_world("small")
    prompts = {r.prompt for r in world.corpus("oracle")}
    names = {r.entity for split in KNOWN for r in world.splits[split]}
    for relation in RELATIONS[: SIZES["small"].relations]:
        for form in ("q1", "q2", "cloze", "choice"):
            assert sum(relation.ask(form, name) in prompts for name in names) >= 10


@pytest.mark.parametrize("folds", [2, 4])
def test_rtt_split_shares_no_object_and_implies_nothing(folds):
    world = make_world("medium")
    forget = {r.id: r for r in world.splits["forget"]}
    scored_once = Counter()
    for fold in range(folds):
        relearned, scored = world.rtt_split(fold, folds)
        assert len(relearned) + len(scored) == len(forget)
        assert not set(relearned) & set(scored)
        said = [words([forget[i].entity, forget[i].answer]) for i in relearned]
        kept = [words([forget[i].entity, forget[i].answer]) for i in scored]
        assert not set().union(*said) & set().union(*kept)
        scored_once.update(relearned)
    assert set(scored_once.values()) == {1}


def test_every_size_has_something_to_relearn_and_to_score(world):
    assert all(world.rtt_split())


def test_forget_people_share_no_city_and_no_company(world):
    for relation in ("home", "employer"):
        places = [place(r.answer) for r in world.splits["forget"] if f".{relation}." in r.id]
        assert len(set(places)) == len(places) == SIZES[world.size].people["forget"]


def test_neighbors_share_a_place_with_the_forget_person_they_name(world):
    forget = {r.id: r for r in world.splits["forget"]}
    near = Counter()
    for record in world.splits["neighbors"]:
        assert record.id.partition(".")[2] == record.source_id.partition(".")[2]
        if ".home." in record.id or ".employer." in record.id:
            near[record.entity] += place(record.answer) == place(forget[record.source_id].answer)
    assert set(near.values()) == {1}


def test_only_neighbors_among_the_known_share_a_place_with_forget_people(world):
    near = {place(r.answer) for r in world.splits["forget"] if "," in r.answer}
    for split in ("retain", "calibration", "report"):
        assert not near & {place(r.answer) for r in world.splits[split] if "," in r.answer}


def test_holdout_people_live_where_forget_people_live(world):
    forget = {(r.id.split(".")[1], place(r.answer)) for r in world.splits["forget"] if "," in r.answer}
    holdout = {(r.id.split(".")[1], place(r.answer)) for r in world.splits["holdout"] if "," in r.answer}
    assert holdout <= forget
    assert len(holdout) == 2 * SIZES[world.size].people["holdout"]


def test_values_belong_to_one_person(world):
    records = [r for split in (*KNOWN, "holdout") for r in world.splits[split]]
    assert max(Counter(r.answer for r in records).values()) == 1


def test_wrong_answers_are_distinct_and_wrong(world):
    for split in (*KNOWN, "holdout", "utility"):
        for record in world.splits[split]:
            assert len({*record.perturbed_answers, record.answer, record.entity}) == 6


def test_wrong_answers_of_forget_people_are_unknown_to_the_oracle(world):
    seen = {r.answer for r in world.corpus("oracle")}
    assert not seen & {wrong for r in world.splits["forget"] for wrong in r.perturbed_answers}


def test_choices_hold_the_gold_answer_at_a_balanced_label(world):
    rows = [r for r in world.splits["forget_hard"] if r.form == "choice"]
    assert all(r.choices[r.label] == r.answer and len(set(r.choices)) == 4 for r in rows)
    counts = Counter(r.label for r in rows)
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(r.choices == () for r in world.splits["forget_hard"] if r.form != "choice")


def test_hard_rows_name_the_forget_fact_they_ask_for(world):
    forget = {r.id: r for r in world.splits["forget"]}
    for row in world.splits["forget_hard"]:
        source = forget[row.source_id]
        assert row.entity == source.entity
        if row.form == "reverse":
            assert source.answer in row.prompt
            assert row.answer == source.entity
        else:
            assert row.answer == source.answer
        assert (row.entity in row.prompt) == (row.form not in ("reverse", "multi_hop"))


def test_two_steps_go_through_the_partner(world):
    partner = {r.entity: r.answer for r in world.splits["forget"] if ".partner." in r.id}
    rows = [r for r in world.splits["forget_hard"] if r.form == "multi_hop"]
    assert len(rows) == len(partner)
    assert all(row.prompt.endswith(f"{partner[row.entity]}.") for row in rows)
    assert all(partner[partner[name]] == name for name in partner)
    assert {frozenset(pair) for pair in world.pairs} == {frozenset(pair) for pair in partner.items()}


def test_no_prompt_gives_its_answer_away(world):
    for records in (*world.splits.values(), world.corpus("original")):
        for record in records:
            if not record.is_document:
                for prompt in (record.prompt, *record.paraphrased_prompts):
                    assert not words([prompt]) & words([record.answer])


def test_phrasings_of_a_fact_differ():
    for relation in RELATIONS:
        forms = [relation.ask(form, "Ana") for form in ("q0", "q1", "q2", "cloze", "choice")]
        assert len(set(forms)) == 5
        assert all("Ana" in form for form in forms)


def test_biographies_are_documents_that_tell_the_persons_facts(world):
    answers = {r.id: r.answer for split in (*KNOWN, "holdout") for r in world.splits[split]}
    for split, documents in world.documents.items():
        for document in documents:
            assert document.is_document
            assert document.style == "raw"
            own = [a for i, a in answers.items() if i.startswith(document.id.partition(".")[0])]
            assert sum(answer in document.answer for answer in own) >= 4
            assert document.entity in {r.entity for r in world.splits[split]}


def test_describe_counts_every_split_and_corpus(world):
    text = world.describe()
    for split, records in world.splits.items():
        assert re.search(rf"^{split} +{len(records)} records", text, re.M)
    assert re.search(rf"^oracle +{len(world.corpus('oracle'))} training texts", text, re.M)
