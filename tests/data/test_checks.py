"""What may not be in a request: overlaps cell by cell, sources, targets, and what a tokenizer cannot take."""

import unicodedata
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.checks import APART, check_encoded, check_request, must_differ
from expunge.data.encoding import Encoded
from expunge.data.findings import Findings
from expunge.data.near import Match, near_duplicates, normalized, sketch
from expunge.data.records import Record, Turn
from expunge.data.request import SPLITS, Request, Target
from expunge.errors import ModelError

LONG = "She kept a small lighthouse on the western cape for thirty one years without a single night of rest"
OTHER = "He counted the migrating geese above the frozen harbor and wrote every number into a green ledger"

MAY_OVERLAP = {
    ("forget", "forget_hard"),  # the same knowledge, asked differently
    ("retain", "neighbors"),  # out of scope all of them, none withheld from training
    ("retain", "utility"),
    ("neighbors", "report"),
    ("neighbors", "holdout"),
    ("neighbors", "utility"),
    ("report", "utility"),
    ("holdout", "utility"),
}
CELLS = list(combinations(SPLITS, 2))


def hard(record):
    return replace(record, source_id="forget-0", form="cloze")


def request_of(**splits):
    """A request with those records, and one harmless record in forget and in retain."""
    splits = {name: tuple(records) for name, records in splits.items()}
    splits["forget"] = (Record("forget-0", "", "Who is Ada?", "A baker."), *splits.get("forget", ()))
    splits["retain"] = (Record("retain-0", "", "Who is Bo?", "A smith."), *splits.get("retain", ()))
    if "forget_hard" in splits:
        splits["forget_hard"] = tuple(map(hard, splits["forget_hard"]))
    return Request(splits)


def problems(request):
    return [str(p) for p in check_request(request).problems]


# The matrix --------------------------------------------------------------------------------------------


def test_the_matrix_is_the_one_written_here():
    assert len(CELLS) == 28
    assert {frozenset(pair) for pair in CELLS} - APART.keys() == {frozenset(pair) for pair in MAY_OVERLAP}


@pytest.mark.parametrize(("a", "b"), CELLS)
@pytest.mark.parametrize("alike", ["id", "text", "answer"])
def test_cell(a, b, alike):
    left = Record("x", "", "Where did Ada Lund keep her light?", LONG + ".")
    right = {
        "id": Record("x", "", "What did Bo Falk count?", OTHER),
        "text": Record("y", "", "where did  Ada Lund keep her light?", LONG.upper()),
        "answer": Record("y", "", "What did she do all her life?", LONG),
    }[alike]
    found = problems(request_of(**{a: [left], b: [right]}))
    if (a, b) in MAY_OVERLAP:
        assert found == []
    else:
        assert len(found) == 1
        assert must_differ(a, b) in found[0]
        assert a in found[0]
        assert b in found[0]


@pytest.mark.parametrize(("a", "b"), CELLS)
def test_cell_without_overlap(a, b):
    left, right = Record("x", "", "Where did Ada live?", LONG), Record("y", "", "Where did Bo live?", OTHER)
    assert problems(request_of(**{a: [left], b: [right]})) == []


def test_one_record_in_two_splits_is_one_problem():
    record = Record("x", "", "Where did Ada live?", LONG)
    (problem,) = problems(request_of(forget=[record], retain=[record]))
    assert "1 id of forget is in retain too: x" in problem


def test_a_benchmarks_own_splits_may_overlap_anything():
    record = Record("x", "", "q", LONG)
    assert problems(request_of(forget=[record], real_authors=[record])) == []


# Near duplicates ---------------------------------------------------------------------------------------


def test_templated_questions_and_short_answers_are_no_duplicates():
    pairs = [("Where was Ada Lund born?", "In Tarn."), ("Where was Bo Falk born?", "In Tarn.")]
    forget, retain = (Record(f"{i}", "", *pair) for i, pair in enumerate(pairs))
    assert problems(request_of(forget=[forget], retain=[retain])) == []


def test_two_named_entities_may_share_a_fact():
    ada, bo = Record("a", "Ada", "What did Ada do?", LONG), Record("b", "Bo", "What did Bo do?", LONG)
    assert problems(request_of(forget=[ada], retain=[bo])) == []
    assert len(problems(request_of(forget=[ada], retain=[replace(bo, entity="Ada")]))) == 1
    assert len(problems(request_of(forget=[ada], retain=[replace(bo, entity="")]))) == 1


def test_similar_answers_are_a_warning():
    ada = Record("a", "", "What did she do?", LONG)
    near = Record("b", "", "What of her work?", LONG.replace("without", "with hardly"))
    findings = check_request(request_of(forget=[ada], retain=[near]))
    assert findings.problems == []
    assert findings.warnings == []
    near = replace(near, answer=LONG + " at all")
    findings = check_request(request_of(forget=[ada], retain=[near]))
    assert findings.problems == []
    assert findings.warnings == ["1 answer of forget resemble answers of retain: a ~ b"]


def test_context_makes_conversations_differ():
    a = Record("a", "", "And then?", "He left.", context=(Turn("user", "Who is Bo?"),))
    b = Record("b", "", "And then?", "He left.", context=(Turn("user", "Who is Cy?"),))
    assert problems(request_of(forget=[a], retain=[b])) == []
    assert len(problems(request_of(forget=[a], retain=[replace(b, context=a.context)]))) == 1


def test_inner_punctuation_is_kept():
    assert normalized("What is 4+0?") != normalized("What is 4-0?")
    assert normalized("C++") == "c++"
    assert normalized("...") == "..."


def test_sketch_counts_characters_of_scripts_without_blanks():
    assert sketch("東京の灯台を守る")
    assert not sketch("in the town")
    assert sketch("東京の灯台を守る") != sketch("東京の灯台を壊す")


words = st.lists(st.sampled_from("abcdefgh"), max_size=12).map(" ".join)


@given(
    st.lists(words, max_size=12), st.lists(words, max_size=12), st.sampled_from([0.3, 0.5, 0.8, 0.95, 1.0])
)
def test_near_duplicates_equals_comparing_all_pairs(left, right, threshold):
    left, right = [sketch(t) for t in left], [sketch(t) for t in right]
    slow = [
        Match(i, j, len(a & b) / len(a | b))
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if a and b and len(a & b) / len(a | b) >= threshold
    ]
    assert list(near_duplicates(left, right, threshold)) == slow


def test_long_texts_are_estimated_well():
    text = [f"w{i}" for i in range(2000)]
    changed = [f"x{i}" if i % 40 == 0 else w for i, w in enumerate(text)]
    a, b = sketch(" ".join(text)), sketch(" ".join(changed))
    triples = [{tuple(t[i : i + 3]) for i in range(len(t) - 2)} for t in (text, changed)]
    exact = len(triples[0] & triples[1]) / len(triples[0] | triples[1])
    (match,) = near_duplicates([a], [b], 0.5)
    assert match.similarity == pytest.approx(exact, abs=0.1)
    assert 0.8 < exact < 0.9


# The rest of the request -------------------------------------------------------------------------------


def test_no_forget_records():
    assert "no records to forget" in problems(Request({"retain": (Record("a", "", "q", "x"),)}))[0]


@pytest.mark.parametrize("more", [0, 3])
def test_the_forget_set_is_all_the_data(more):
    data = [Record(f"d{i}", "", f"q{i}", f"a{i}") for i in range(4 + more)]
    retain = tuple(replace(r, id=f"r{i}") for i, r in enumerate(data[:4]))
    (problem,) = problems(Request({"forget": tuple(data), "retain": retain}))
    assert "the forget set is all the data" in problem


def test_ids_stand_once_in_a_split():
    (problem,) = problems(request_of(retain=[Record("x", "", "q", "a"), Record("x", "", "r", "b")]))
    assert problem.startswith("retain x id: ids stand twice in retain: x")


def test_forget_hard_rows_name_their_source_and_form():
    rows = (Record("h0", "", "q", "a"), Record("h1", "", "r", "b", source_id="nobody", form="cloze"))
    request = replace_splits(request_of(), forget_hard=rows)
    found = problems(request)
    assert [p.split(":")[0] for p in found] == [
        "forget_hard h0 source_id",
        "forget_hard h1 source_id",
        "forget_hard h0 form",
    ]


def replace_splits(request, **splits):
    return replace(request, splits={**request.splits, **splits})


def test_places_come_from_the_files():
    request = request_of(forget=[Record("x", "", "q", "a")], retain=[Record("y", "", "q", "a")])
    origins = {("forget", "x"): "forget.jsonl:4", ("retain", "y"): "keep.csv:9"}
    (problem,) = check_request(request, Findings(origins=origins)).problems
    assert problem.where == "forget.jsonl:4"
    assert "keep.csv:9" in problem.what


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target("persons"), "target.kind: unknown value 'persons'"),
        (Target("entity", "erase"), "target.aim: unknown value 'erase'. Did you mean erase_influence?"),
    ],
)
def test_target(target, said):
    (problem,) = problems(replace(request_of(), target=target))
    assert problem.startswith(said)


def test_warnings():
    twice = [Record(f"t{i}", "Ada", "q", "a") for i in range(2)]
    request = request_of(forget=twice, retain=[Record("r", "Ada", "Q", "another")])
    entity = check_request(replace(request, target=Target("entity"))).warnings
    assert entity == [
        "forget: 1 record repeat the text of another and weigh double",
        "the same question is in forget and in retain: t0, t1",
        "target.kind is entity, but not every forget record names its entity",
        "target.kind is entity, but retain has records about the same: Ada",
    ]
    assert (
        "no forget record is one" in check_request(replace(request, target=Target("document"))).warnings[-1]
    )


def test_no_text_of_a_record_is_ever_said():
    secret = "The hidden harbor lies seven miles north of the broken stone bridge"
    splits = {
        split: [Record(f"{split}-x", "", secret, secret), Record("same", "", f"{secret} {split}", secret)]
        for split in SPLITS
    }
    findings = check_request(request_of(**splits))
    said = " ".join([*map(str, findings.problems), *findings.warnings])
    assert len(findings.problems) >= len(APART)
    assert not any(word in said for word in ("harbor", "seven", "bridge"))


# With a tokenizer --------------------------------------------------------------------------------------


class Words:
    """An encoder of one id per word that writes lower case only, joins by one blank and knows no ß."""

    max_length = 8

    def encode(self, record):
        if record.context:
            raise ModelError("has several messages, and the tokenizer has no chat template")
        ids = tuple(range(len(f"{record.prompt} {record.answer}".split())))
        return Encoded(ids[: self.max_length], 1, False, len(ids) > self.max_length)

    def round_trip(self, record):
        self.encode(record)
        written = " ".join(record.answer.replace("ß", "?").split())
        return None if written == record.answer else written


def test_encoded():
    records = {
        "ok": Record("ok", "", "a b c", "d e"),
        "long": Record("long", "", "a b c d e", "f g h i"),
        "long paraphrase": Record("para", "", "a b", "c", paraphrased_prompts=("a b c d e f g h i",)),
        "document": Record("doc", "", "", "a b c d e f g h i j", style="raw"),
        "unwritten": Record("eszett", "", "a", "ß"),
        "respaced": Record("blanks", "", "a", "b  c"),
        "chat": Record("chat", "", "a", "b", context=(Turn("user", "c"),)),
    }
    findings = check_encoded(Request({"forget": tuple(records.values())}), Words())
    assert [(p.where, p.what) for p in findings.problems] == [
        ("forget chat", "1 record of forget cannot be put to this model: chat"),
        ("forget long", "2 records of forget longer than the context of 8 tokens: long, para"),
        ("forget eszett answer", "1 answer of forget the tokenizer cannot write: eszett"),
    ]
    assert "no chat template" in findings.problems[0].fix
    assert findings.warnings == ["the tokenizer writes other blanks or accents in 1 answer of forget: blanks"]


def test_an_unwritable_answer_elsewhere_is_a_warning():
    findings = check_encoded(request_of(retain=[Record("x", "", "a", "ß")]), Words())
    assert findings.problems == []
    assert findings.warnings == ["1 answer of retain the tokenizer cannot write: x"]


def test_composed_accents_are_no_loss():
    class Composing(Words):
        def round_trip(self, record):
            written = unicodedata.normalize("NFC", record.answer)
            return None if written == record.answer else written

    request = Request({"forget": (Record("x", "", "a", "e\u0301"), Record("y", "", "b", "c"))})
    findings = check_encoded(request, Composing())
    assert findings.problems == []
    assert findings.warnings == ["the tokenizer writes other blanks or accents in 1 answer of forget: x"]
