"""Everything that can be wrong with a request, found before any model is trained."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

from expunge.data.findings import Findings, listing
from expunge.data.near import near_duplicates, normalized, sketch
from expunge.data.records import Record
from expunge.data.request import Aim, Kind, Request, Target
from expunge.errors import ModelError, nearest

if TYPE_CHECKING:
    from expunge.data.encoding import Encoder

__all__ = [
    "APART",
    "IDENTICAL",
    "check_encoded",
    "check_request",
    "may_share",
    "must_differ",
    "text_key",
    "too_long",
]

IDENTICAL = 0.95
"""Answers this alike (Jaccard overlap of word triples) are taken for one answer: an error."""

SIMILAR = 0.8
"""Answers this alike may be one answer in other words: a warning."""


def _apart() -> Mapping[frozenset[str], str]:
    out_of_scope = ("retain", "neighbors", "calibration", "report", "holdout", "utility")
    pairs = {("forget", b): "What is to be forgotten cannot be kept as well" for b in out_of_scope}
    pairs |= {("forget_hard", b): "It asks for what is to be forgotten" for b in out_of_scope}
    pairs |= {
        ("forget_held_out", b): "It asks for what is to be forgotten, and no method may see it"
        for b in out_of_scope
    }
    pairs |= {("forget_past", b): "An earlier request asked to forget it" for b in out_of_scope}
    pairs["retain", "calibration"] = "The control may only measure on records no method trained on"
    pairs["retain", "report"] = "The report may only score records no method trained on"
    pairs |= {
        ("holdout", b): "No model may ever have seen the holdout" for b in ("retain", "calibration", "report")
    }
    pairs |= {
        ("calibration", b): "The records the report scores may not be those the control was set on"
        for b in ("report", "neighbors", "utility")
    }
    return MappingProxyType({frozenset(pair): why for pair, why in pairs.items()})


APART: Mapping[frozenset[str], str] = _apart()
"""The pairs of splits that may not overlap, and why. Pairs not named here may."""


def must_differ(a: str, b: str) -> str | None:
    """Why these two splits may not overlap, None if they may.

    >>> must_differ("retain", "forget")
    'What is to be forgotten cannot be kept as well'
    >>> must_differ("retain", "neighbors") is None
    True
    """
    return APART.get(frozenset((a, b)))


def text_key(record: Record) -> tuple[str, ...]:
    """What makes two records the same text: context, prompt and answer, normalized."""
    turns = (turn.content for turn in record.context)
    return tuple(normalized(text) for text in (*turns, record.prompt, record.answer))


def may_share(a: Record, b: Record) -> bool:
    """Whether an answer in common says nothing: two entities, both named, may share a fact."""
    return bool(a.entity and b.entity and a.entity != b.entity)


def check_request(request: Request, findings: Findings | None = None) -> Findings:
    """Check target, ids, sources and overlaps; returns `findings` with what was found.

    Splits outside `expunge.data.request.SPLITS` (a benchmark's own) are checked for ids only.
    """
    found = findings if findings is not None else Findings()
    _check_target(request, found)
    if not request.forget and "forget" not in found.broken:
        found.add("forget", "there are no records to forget", "Bring at least one")
    for split in request:
        _check_ids(split, request[split], found)
    _check_sources(request, found)
    _check_overlaps(request, found)
    _warn(request, found)
    return found


def _check_target(request: Request, found: Findings) -> None:
    target: Target = request.target
    for name, value, known in (("kind", target.kind, Kind), ("aim", target.aim, Aim)):
        if value not in get_args(known):
            found.add(f"target.{name}", f"unknown value {value!r}", nearest(str(value), get_args(known)))


def _check_ids(split: str, records: Sequence[Record], found: Findings) -> None:
    twice = [name for name, count in Counter(r.id for r in records).items() if count > 1]
    if twice:
        found.add(f"{_place(found, split, twice[0])} id", f"ids stand twice in {split}: {listing(twice)}")


def _check_sources(request: Request, found: Findings) -> None:
    """forget_hard rows say which forget record they ask for, and how."""
    known = {r.id for r in request.forget}
    rules: list[tuple[str, str, str, Callable[[Record], bool]]] = [
        (
            "source_id",
            "have no source_id",
            "Name the forget record each asks for (rows without an id are forget-0, forget-1, …)",
            lambda r: r.source_id is None,
        ),
        (
            "source_id",
            "name a source_id that is no forget record",
            "Use the id of a forget record",
            lambda r: r.source_id is not None and r.source_id not in known,
        ),
        (
            "form",
            "have no form",
            "Say how they ask: paraphrase, reverse, cloze, multi_hop or choice",
            lambda r: r.form is None,
        ),
    ]
    for field, what, fix, broken in rules:
        ids = [r.id for r in request["forget_hard"] if broken(r)]
        if ids and not (field == "source_id" and "forget" in found.broken):
            place = _place(found, "forget_hard", ids[0])
            found.add(f"{place} {field}", f"{len(ids)} forget_hard records {what}: {listing(ids)}", fix)


def _check_overlaps(request: Request, found: Findings) -> None:
    keys = {split: {text_key(r): r.id for r in request[split]} for split in request}
    sketches = {split: [sketch(r.answer) for r in request[split]] for split in request}
    whole = (
        request.retain
        and "retain" not in found.broken
        and keys["retain"].keys() <= keys.get("forget", {}).keys()
    )
    if whole:
        found.add(
            _place(found, "retain", request.retain[0].id),
            "the forget set is all the data: every retain record is in it",
            "Bring retain records that are to stay, or remove them from forget",
        )
    splits = list(request)
    for i, a in enumerate(splits):
        for b in splits[i + 1 :]:
            why = must_differ(a, b)
            if why is None or (whole and {a, b} == {"forget", "retain"}):
                continue
            seen = _check_ids_apart(a, b, request, why, found)
            seen |= _check_texts_apart(a, b, keys, why, found)
            matches = [
                (request[a][m.left], request[b][m.right], m.similarity)
                for m in near_duplicates(sketches[a], sketches[b], SIMILAR)
                if request[a][m.left].id not in seen
            ]
            alike = [m for m in matches if not may_share(m[0], m[1])]
            _report_alike(a, b, alike, why, request, found)


def _check_ids_apart(a: str, b: str, request: Request, why: str, found: Findings) -> set[str]:
    there = {r.id for r in request[b]}
    shared = [r.id for r in request[a] if r.id in there]
    if shared:
        what = f"{_number(shared, 'id')} of {a} {_are(shared)} in {b} too: {listing(shared)}"
        also = _place(found, b, shared[0])
        found.add(
            f"{_place(found, a, shared[0])} id",
            f"{what} ({also})",
            f"{why}. If they are other records, give them other ids or leave the field id out",
        )
    return set(shared)


def _check_texts_apart(
    a: str, b: str, keys: Mapping[str, Mapping[tuple[str, ...], str]], why: str, found: Findings
) -> set[str]:
    shared = [(id_a, keys[b][key]) for key, id_a in keys[a].items() if key in keys[b]]
    others = [(x, y) for x, y in shared if x != y]  # equal ids were named already
    if others:
        places = listing([_place(found, b, y) for _, y in others])
        what = (
            f"{_number(others, 'record')} of {a} {_are(others)} in {b} too, prompt and answer alike: {places}"
        )
        found.add(_place(found, a, others[0][0]), what, f"{why}. Remove them from one of the two")
    return {x for x, _ in shared}


def _report_alike(
    a: str,
    b: str,
    matches: list[tuple[Record, Record, float]],
    why: str,
    request: Request,
    found: Findings,
) -> None:
    same = [(x, y) for x, y, similarity in matches if similarity >= IDENTICAL]
    if same:
        what = f"{_number(same, 'answer')} of {a} {_are(same)} nearly word for word in {b} too"
        places = listing([_place(found, b, y.id) for _, y in same])
        fix = f"{why}. Remove them from one of the two, or name the entities if they are about different ones"
        found.add(f"{_place(found, a, same[0][0].id)} answer", f"{what}: {places}", fix)
    near = [f"{x.id} ~ {y.id}" for x, y, similarity in matches if similarity < IDENTICAL]
    if near and not {a, b} & request.built.keys():
        found.warn(f"{_number(near, 'answer')} of {a} resemble answers of {b}: {listing(near)}")


def _warn(request: Request, found: Findings) -> None:
    target, forget, retain = request.target, request.forget, request.retain
    for split in ("forget", "retain"):
        copies = len(request[split]) - len({text_key(r) for r in request[split]})
        if copies:
            found.warn(
                f"{split}: {_number(range(copies), 'record')} repeat the text of another and weigh double"
            )
    answers = {normalized(r.prompt): r for r in retain if r.prompt and not r.context}
    asked = [r.id for r in forget if not r.context and normalized(r.prompt) in answers]
    asked = [i for i in asked if i not in {r.id for r in retain}]
    if asked:
        found.warn(f"the same question is in forget and in retain: {listing(asked)}")
    past = {r.entity for r in request["forget_past"]} - {""}
    again = [r for split in ("retain", "calibration", "report") for r in request[split] if r.entity in past]
    if again:
        found.warn(f"{_number(again, 'record')} that stay are about what an earlier request forgot")
    if target.kind == "document" and forget and not any(r.is_document for r in forget):
        found.warn("target.kind is document, but no forget record is one (a row with only text)")
    if target.kind == "entity":
        if not all(r.entity for r in forget):
            found.warn("target.kind is entity, but not every forget record names its entity")
        both = sorted({r.entity for r in forget} & {r.entity for r in retain} - {""})
        if both:
            found.warn(f"target.kind is entity, but retain has records about the same: {listing(both)}")


# With a tokenizer --------------------------------------------------------------------------------------


def check_encoded(request: Request, encoder: Encoder, findings: Findings | None = None) -> Findings:
    """Check what depends on the tokenizer: length against the context, and answers it can write.

    Documents are never too long: they are read in windows. An answer the tokenizer cannot write is an error
    in forget and forget_hard, whose verbatim scores would be false, and a warning elsewhere, as are answers
    in which only blanks differ.
    """
    found = findings if findings is not None else Findings()
    for split in request:
        refused: dict[str, list[str]] = defaultdict(list)
        long: list[str] = []
        unwritten: list[str] = []
        respaced: list[str] = []
        for record in request[split]:
            try:
                if not record.is_document and too_long(record, encoder):
                    long.append(record.id)
                written = encoder.round_trip(record)
            except ModelError as error:
                refused[f"{error.problems[0].what}. {error.problems[0].fix}"].append(record.id)
                continue
            if written is not None:
                blanks_only = _squeezed(written) == _squeezed(record.answer)
                (respaced if blanks_only else unwritten).append(record.id)
        _report_encoded(split, refused, long, unwritten, respaced, encoder.max_length, found)
    return found


def _report_encoded(
    split: str,
    refused: Mapping[str, list[str]],
    long: list[str],
    unwritten: list[str],
    respaced: list[str],
    max_length: int,
    found: Findings,
) -> None:
    for why, ids in refused.items():
        what = f"{_number(ids, 'record')} of {split} cannot be put to this model: {listing(ids)}"
        found.add(_place(found, split, ids[0]), what, why)
    if long:
        number = f"{_number(long, 'record')} of {split}"
        what = f"{number} longer than the context of {max_length} tokens: {listing(long)}"
        fix = "Shorten them, bring them as documents (text), or use a model with a longer context"
        found.add(_place(found, split, long[0]), what, fix)
    if unwritten:
        what = f"{_number(unwritten, 'answer')} of {split} the tokenizer cannot write: {listing(unwritten)}"
        if split in ("forget", "forget_hard"):
            fix = "Use characters it knows, or the tokenizer the model was trained with"
            found.add(f"{_place(found, split, unwritten[0])} answer", what, fix)
        else:
            found.warn(what)
    if respaced:
        number = f"{_number(respaced, 'answer')} of {split}"
        found.warn(f"the tokenizer writes other blanks or accents in {number}: {listing(respaced)}")


def too_long(record: Record, encoder: Encoder) -> bool:
    """Whether the record, or its longest prompt with its longest answer, is cut."""
    answers = (record.answer, *record.paraphrased_answers, *record.perturbed_answers, *record.alternates)
    longest = record.asked(max((record.prompt, *record.paraphrased_prompts), key=len)).answered(
        max((*answers, *record.choices, record.refusal or ""), key=len)
    )
    variants = (record,) if longest == record else (record, longest)
    return any(encoder.encode(one).truncated for one in variants)


def _squeezed(text: str) -> str:
    """The text without blanks, in one Unicode form: a tokenizer that composes accents loses nothing."""
    return "".join(unicodedata.normalize("NFC", text).split())


def _place(found: Findings, split: str, record_id: str) -> str:
    return found.origins.get((split, record_id), f"{split} {record_id}")


def _number(items: Iterable[object], noun: str) -> str:
    count = len(list(items))
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _are(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"
