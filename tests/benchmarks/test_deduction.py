"""The deductive closure against one that tries every assignment of people to variables."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.benchmarks.deduction import Fact, Rule, blocks, closure, follows

PEOPLE, RELATIONS = range(4), "pqr"

facts = st.builds(Fact, st.sampled_from(PEOPLE), st.sampled_from(RELATIONS), st.sampled_from(PEOPLE))
atoms = st.builds(Fact, st.integers(0, 2), st.sampled_from(RELATIONS), st.integers(0, 2))


@st.composite
def rules(draw):
    body = tuple(draw(st.lists(atoms, min_size=1, max_size=2)))
    bound = st.sampled_from(sorted({v for atom in body for v in (atom.subject, atom.object)}))
    return Rule(body, Fact(draw(bound), draw(st.sampled_from(RELATIONS)), draw(bound)))


def slow_closure(facts, rules):
    known = set(facts)
    while True:
        said = {
            Fact(names[rule.head.subject], rule.head.relation, names[rule.head.object])
            for rule in rules
            for names in product(PEOPLE, repeat=3)
            if all(Fact(names[a.subject], a.relation, names[a.object]) in known for a in rule.body)
        }
        if said <= known:
            return known
        known |= said


@settings(max_examples=60, deadline=None)
@given(st.lists(facts, max_size=5), st.lists(rules(), max_size=4))
def test_closure_is_that_of_brute_force(facts, rules):
    assert closure(facts, rules) == slow_closure(facts, rules)


FATHER = [Fact(0, "father", 1), Fact(1, "wife", 2)]
MOTHER = [
    Rule((Fact(0, "father", 1), Fact(1, "wife", 2)), Fact(0, "mother", 2)),
    Rule((Fact(0, "mother", 1),), Fact(1, "child", 0)),
]


def test_a_fact_follows_over_two_rules():
    child = Fact(2, "child", 0)
    assert follows(child, FATHER, MOTHER)
    assert not follows(child, FATHER[:1], MOTHER)
    assert not follows(Fact(1, "child", 0), FATHER, MOTHER)


def test_both_ways_to_a_fact_must_be_blocked():
    known = [*FATHER, Fact(0, "mother", 2), Fact(2, "child", 0)]
    assert blocks({3, 2, 0}, 3, known, MOTHER)
    assert blocks({3, 2, 1}, 3, known, MOTHER)
    assert not blocks({3, 2}, 3, known, MOTHER)
    assert not blocks({3, 0, 1}, 3, known, MOTHER)
    assert not blocks({2, 0, 1}, 3, known, MOTHER)  # it is known itself
