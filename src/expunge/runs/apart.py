"""The forget prompts a search selects by, set apart from those the report scores.

A recipe with a `tune:` section never reports what `expunge tune` looks at. The rule depends on the records
alone, not on seeds or settings, so that the search, its winner and any run beside them agree on it:

- of each forget record with two or more paraphrased prompts, one;
- where none has two, the paraphrases of half the entities (half the records of a single entity);
- where nothing is paraphrased, the same with whatever rows forget_hard has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.stats import seed_from

__all__ = ["Apart", "set_apart"]

Prompt = tuple[str, str]
"""(id of the forget record, normalized prompt)."""


@dataclass(frozen=True)
class Apart:
    """`selection`: what the search measures; `request`: what is left for everything else; `how`: in words.

    `clean` is False where no phrasing could be spared: the selection is then the forget set itself.
    """

    selection: tuple[Record, ...]
    request: Request
    how: str
    clean: bool = True


def set_apart(request: Request) -> Apart:
    """The selection split of a request, and the request without it."""
    for pool in (_paraphrases(request), _rows(request)):
        chosen, how = _choose(pool, request)
        if chosen:
            return Apart(tuple(chosen.values()), _without(request, chosen, len(chosen)), how)
    how = "the forget records themselves: no paraphrase and no forget_hard row could be spared"
    return Apart(request.forget, request, how, clean=False)


def _paraphrases(request: Request) -> dict[Prompt, Record]:
    found: dict[Prompt, Record] = {}
    for record in request.forget:
        plain = replace(record, paraphrased_prompts=(), source_id=record.id, form="paraphrase")
        for j, prompt in enumerate(record.paraphrased_prompts):
            row = replace(plain, id=f"{record.id}.selection-{j}", prompt=prompt)
            found[record.id, normalized(prompt)] = row
    hard = (row for row in request["forget_hard"] if row.form == "paraphrase")
    return found | {_name(row): row for row in hard}


def _rows(request: Request) -> dict[Prompt, Record]:
    return {_name(row): row for row in request["forget_hard"]}


def _name(row: Record) -> Prompt:
    return str(row.source_id), normalized(row.prompt)


def _choose(pool: Mapping[Prompt, Record], request: Request) -> tuple[dict[Prompt, Record], str]:
    """Which of the pool are set apart; nothing where that would leave the report without any."""
    by_source: dict[str, list[Prompt]] = {}
    for name in sorted(pool, key=lambda name: (seed_from("selection", *name), name)):
        by_source.setdefault(name[0], []).append(name)
    several = [names[0] for names in by_source.values() if len(names) > 1]
    if several:
        return {name: pool[name] for name in several}, "one paraphrase of each forget record that has several"
    entity = {record.id: record.entity for record in request.forget if record.entity}
    group = {source: entity.get(source, source) for source in by_source}
    if len(set(group.values())) == 1:
        group = {source: source for source in by_source}
    half = _half(set(group.values()))
    kind = "entities" if any(name in entity.values() for name in half) else "forget records"
    chosen = {name: row for name, row in pool.items() if group[name[0]] in half}
    return chosen, f"what asks again for {len(half)} of {len(set(group.values()))} {kind}"


def _half(names: set[str]) -> set[str]:
    ordered: Sequence[str] = sorted(names, key=lambda name: (seed_from("selection", name), name))
    return set(ordered[: len(ordered) // 2])


def _without(request: Request, chosen: Mapping[Prompt, Record], count: int) -> Request:
    forget = tuple(
        replace(
            r,
            paraphrased_prompts=tuple(
                p for p in r.paraphrased_prompts if (r.id, normalized(p)) not in chosen
            ),
        )
        for r in request.forget
    )
    splits = {**request.splits, "forget": forget}
    built = dict(request.built)
    if "forget_hard" in request:
        splits["forget_hard"] = tuple(row for row in request["forget_hard"] if _name(row) not in chosen)
        before = built.get("forget_hard", "given")
        built["forget_hard"] = f"{before}; without the {count} prompts that `expunge tune` selects by"
    return replace(request, splits=splits, built=built)
