"""What follows from facts by rules: the deductive closure (Wu et al. 2024, arXiv 2410.15153)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

__all__ = ["Fact", "Rule", "blocks", "closure", "follows"]


class Fact(NamedTuple):
    """`object` is the `relation` of `subject`; in a rule, both are numbers of variables."""

    subject: int
    relation: str
    object: int


class Rule(NamedTuple):
    """`head` holds wherever all of `body` holds.

    >>> grandfather = Rule((Fact(0, "father", 1), Fact(1, "father", 2)), Fact(0, "grandfather", 2))
    >>> sorted(closure([Fact(7, "father", 8), Fact(8, "father", 9)], [grandfather]))[1]
    Fact(subject=7, relation='grandfather', object=9)
    """

    body: tuple[Fact, ...]
    head: Fact


def closure(facts: Iterable[Fact], rules: Sequence[Rule]) -> set[Fact]:
    """The least set that holds the facts and, with the body of a rule, its head."""
    using = defaultdict(list)
    for rule in rules:
        for i, atom in enumerate(rule.body):
            using[atom.relation].append((atom, rule.body[:i] + rule.body[i + 1 :], rule.head))
    known: set[Fact] = set()
    index: dict[tuple[str, int, int], list[Fact]] = defaultdict(list)  # by relation and one end
    agenda = list(facts)
    while agenda:
        fact = agenda.pop()
        if fact in known:
            continue
        known.add(fact)
        for side in (0, 2):
            index[fact.relation, side, fact[side]].append(fact)  # type: ignore[index]
        for atom, others, head in using[fact.relation]:
            for names in _joined(others, index, known, _bound(atom, fact, {})):
                agenda.append(Fact(names[head.subject], head.relation, names[head.object]))
    return known


def _bound(atom: Fact, fact: Fact, names: Mapping[int, int]) -> dict[int, int] | None:
    """The variables with those of `atom` set so that it says `fact`; None where it cannot."""
    names = dict(names)
    for variable, person in ((atom.subject, fact.subject), (atom.object, fact.object)):
        if names.setdefault(variable, person) != person:
            return None
    return names


def _joined(
    body: Sequence[Fact],
    index: Mapping[tuple[str, int, int], list[Fact]],
    known: set[Fact],
    names: dict[int, int] | None,
) -> Iterator[dict[int, int]]:
    """All ways to make the rest of a body true."""
    if names is None:
        return
    if not body:
        yield names
        return
    atom, rest = body[0], body[1:]
    if atom.subject in names:
        facts = index.get((atom.relation, 0, names[atom.subject]), [])
    elif atom.object in names:
        facts = index.get((atom.relation, 2, names[atom.object]), [])
    else:
        facts = [fact for fact in known if fact.relation == atom.relation]
    for fact in facts:
        yield from _joined(rest, index, known, _bound(atom, fact, names))


def follows(target: Fact, facts: Iterable[Fact], rules: Sequence[Rule]) -> bool:
    """Whether the target can be deduced from the facts, or is one of them."""
    return target in closure(facts, rules)


def blocks(removed: Iterable[int], target: int, facts: Sequence[Fact], rules: Sequence[Rule]) -> bool:
    """Whether the target does not follow from the facts without those removed (by their numbers)."""
    gone = set(removed)
    return not follows(facts[target], (f for i, f in enumerate(facts) if i not in gone), rules)
