"""Splits that nobody brought, made of what the model itself says: the forget set of an entity, and retain.

Forget (`forget: {from_model: ENTITY}`): the model's greedy answers to questions about the entity, and its own
continuations of sentences about it. What it says of anyone is no knowledge: an answer it also gives about
every one of a few invented strangers is left out.

Retain (`retain: auto`): questions the model asks itself, sampled behind the opening of its own template, with
its greedy answers (Xu et al. 2024, arXiv 2406.08464, who make tuning data so). What touches the forget set is
left out. Greedy answers are reproduced exactly by the model that gave them, so a bar on them is a bar on how
much of its own behavior stays; it says nothing of what people ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from expunge.data.near import near_duplicates, normalized, sketch
from expunge.data.records import Record
from expunge.errors import DataError, Problem
from expunge.measure.generate import greedy_text
from expunge.runs.recipe import FromModel
from expunge.stats import seed_from
from expunge.subjects.subject import Subject

__all__ = ["asked", "build_forget", "build_retain"]

QUESTIONS = (
    "Who is {entity}?",
    "What is {entity}?",
    "Where is {entity} from?",
    "Where was {entity} born?",
    "When was {entity} born?",
    "What does {entity} do?",
    "Where does {entity} live?",
    "What is {entity} known for?",
)
BEGINNINGS = ("{entity} is", "{entity} was born", "{entity} lives", "{entity} is known for")
STRANGERS = ("Wexla Brond", "Ottumir Kask", "Jelne Farrowby")
"""Invented: what a model says of all of them, it says of anyone."""

ANSWER_TOKENS = 48
QUESTION_TOKENS = 32
SAMPLED = 96
"""Questions sampled for `retain: auto`; those that touch the forget set, repeat or never end are left out."""

FEWEST = 9
SAME = 0.8  # answers this alike (Jaccard overlap of word triples) count as one


def asked(spec: FromModel, name: str = "") -> list[Record]:
    """The questions and beginnings about an entity, or about a stranger of that name; not yet answered."""
    templates = [(q, "question") for q in spec.questions or QUESTIONS]
    templates += [] if spec.questions else [(b, "raw") for b in BEGINNINGS]
    name = name or spec.from_model
    return [
        Record(f"built-{i}", name, template.format(entity=name), "x", style=style)  # type: ignore[arg-type]
        for i, (template, style) in enumerate(templates)
    ]


def build_forget(subject: Subject, spec: FromModel) -> tuple[tuple[Record, ...], str]:
    """The forget records about an entity, and a note on how they were built (without its name).

    The same model and questions give the same records. Raises DataError when the model says nothing of it
    that it would not say of anyone.
    """
    told = _answered(subject, asked(spec))
    strangers = [_answered(subject, asked(spec, name)) for name in STRANGERS]
    found: dict[str, Record] = {}
    common = 0
    for record, *others in zip(told, *strangers, strict=True):
        said = _nameless(record)
        anyone = all(_nameless(other) == said for other in others)
        common += bool(said) and anyone
        if said and not anyone:
            found.setdefault(said, record)
    if not found:
        what = "the model says nothing of this entity that it would not say of anyone: nothing to forget"
        fix = "Write the name as the model knows it, or bring records"
        raise DataError(Problem("forget.from_model", what, fix))
    left = f"; {common} left out that it gives about anyone" if common else ""
    return tuple(found.values()), f"{len(found)} of its own answers about the entity{left}"


def _answered(subject: Subject, records: Sequence[Record]) -> list[Record]:
    prompts = [subject.encoder.prompt_ids(r) for r in records]
    answers = greedy_text(subject, prompts, max_new_tokens=ANSWER_TOKENS)
    return [record.answered(answer) for record, answer in zip(records, answers, strict=True)]


def _nameless(record: Record) -> str:
    """An answer without the name it was asked about, nor a part of it."""
    parts = {normalized(part) for part in (record.entity, *record.entity.split())}
    words = normalized(record.answer).split()
    return " ".join(word for word in words if word.strip(".,;:!?'\"") not in parts)


def build_retain(
    subject: Subject, splits: Mapping[str, Sequence[Record]], seed: int
) -> tuple[tuple[Record, ...], str]:
    """Retain records that touch none of the other splits, and a note on how they were built.

    A function of the model, the splits and the seed. Raises DataError when too few are left.
    """
    subject.need("weights", what="retain: auto")
    questions = list(dict.fromkeys(_questions(subject, seed)))
    records = [Record(f"own-{i}", "", question, "x") for i, question in enumerate(questions)]
    records = [record for record in _answered(subject, records) if record.answer.strip()]
    apart = [r for split in splits.values() for r in split]
    kept = _apart(records, apart)
    if len(kept) < FEWEST:
        what = f"only {len(kept)} of the {SAMPLED} questions that the model asked itself can stay"
        raise DataError(
            Problem("retain: auto", what, "Bring records that must stay; any public text will do")
        )
    return tuple(kept), (
        f"{len(kept)} questions that the model asked itself, with its answers; "
        f"{len(records) - len(kept)} left out that touch other splits"
    )


def _apart(records: Sequence[Record], others: Sequence[Record]) -> list[Record]:
    """Records that name no entity of the others, ask none of their questions, tell none of their answers."""
    entities = {normalized(r.entity) for r in others if r.entity}
    prompts = {normalized(p) for r in others for p in (r.prompt, *r.paraphrased_prompts) if p}
    answers = {normalized(r.answer) for r in others}
    alike = {
        m.left
        for m in near_duplicates(
            [sketch(r.answer) for r in records], [sketch(r.answer) for r in others], SAME
        )
    }
    kept = []
    for i, record in enumerate(records):
        asked, told = normalized(record.prompt), normalized(record.answer)
        named = any(entity in f"{asked} {told}" for entity in entities)
        if i not in alike and not named and asked not in prompts and not _within(told, answers):
            kept.append(record)
    return kept


def _within(told: str, answers: Iterable[str]) -> bool:
    return any(told == answer or (len(answer) > 3 and answer in told) for answer in answers)


def _questions(subject: Subject, seed: int) -> list[str]:
    """Questions sampled behind the opening of the template, those that came to an end."""
    encoder = subject.encoder
    opening = encoder.opening_ids()
    special = {*encoder.tokenizer.all_special_ids, *encoder.tokenizer.get_added_vocab().values()}
    found = []
    for ids in _sample(subject, opening, SAMPLED, QUESTION_TOKENS, seed_from(seed, "own questions")):
        end = next((i for i, token in enumerate(ids) if token in special), None)
        text = encoder.decode(ids[:end])
        question, newline, _ = text.partition("\n")
        if question.strip() and (newline or end is not None):
            found.append(question.strip())
    return found


def _sample(subject: Subject, opening: Sequence[int], rows: int, length: int, seed: int) -> list[list[int]]:
    """Continuations of one prompt, drawn at temperature 1 from a generator of their own."""
    chance = torch.Generator().manual_seed(seed % 2**63)
    ids = torch.tensor([list(opening)] * rows, device=subject.device)
    with subject.evaluating() as model:
        for _ in range(length):
            logits = model(input_ids=ids).logits[:, -1].float().cpu()
            ids = torch.cat(
                [ids, torch.multinomial(logits.softmax(-1), 1, generator=chance).to(ids.device)], 1
            )
    return ids[:, len(opening) :].tolist()
