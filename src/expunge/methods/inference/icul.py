"""In-context unlearning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from expunge.data.encoding import Encoder
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.methods.base import METHODS, Wrapper
from expunge.progress import say
from expunge.stats import seed_from
from expunge.subjects.subject import Subject
from expunge.subjects.wrappers.in_context import Example, InContext, InContextRule
from expunge.training.workspace import Workspace


@METHODS.register(
    "icul",
    family="inference",
    erases="output",
    targets=["records", "entity"],
    access="text",
    needs=["retain"],
    cost="no training; longer prompts",
    scale="single",
    source="Pawelczyk et al. 2023, arXiv 2310.07579",
    verified=[],
)
@dataclass(frozen=True, kw_only=True)
class ICUL(Wrapper):
    """Show a forget example with a false answer, and right examples, before each question.

    The paper flips the label of a classification and shows the example to be forgotten; here the forget
    example nearest to the question is shown, with a wrong choice, an alternate, a perturbed answer or, where
    it has none of these, the answer of a retain record; never its gold answer. `shots` right examples come
    from retain (2 to 6 in the paper, 0 is allowed), the same for every question.
    """

    shots: Annotated[int, Ge(0)] = 2
    room: Annotated[int, Gt(0)] = 64  # tokens of the context left to the answer

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        forget, retain = ([r for r in request[s] if not r.is_document] for s in ("forget", "retain"))
        if not forget:
            raise DataError(
                Problem("forget", "icul shows questions, and no record has one", "Bring questions")
            )
        seed = workspace.settings.seed
        gold = {normalized(r.answer) for r in forget}
        retain = [r for r in retain if normalized(r.answer) not in gold] or retain  # labels are all shared
        retain.sort(key=lambda record: seed_from(seed, "icul", record.id))
        encoder = subject.encoder
        flipped = []
        for record in forget:
            ids = shown(encoder, record.answered(flip(record, retain, gold, seed)))
            flipped.append(Example(encoder.decode(encoder.prompt_ids(record)), ids))
        kept = tuple(shown(encoder, record) for record in retain[: self.shots])
        made = InContext(subject, InContextRule(tuple(flipped), kept, self.room))
        prompts = [encoder.prompt_ids(record) for record in forget]
        changed = sum(made.reprompt(prompt) != prompt for prompt in prompts) / len(prompts)
        workspace.facts["prompts_changed"] = changed
        if changed < 1:
            say(f"icul: the examples fit before {changed:.0%} of the forget prompts; raise max_length")
        return made


def flip(record: Record, retain: list[Record], gold: set[str], seed: int) -> str:
    """A false answer to a forget question; where there is a choice, one that is right for none of them."""
    wrong = [choice for i, choice in enumerate(record.choices) if i != record.label]
    drawn = [retain[seed_from(seed, "flip", record.id) % len(retain)].answer] if retain else []
    false = [*wrong, *record.alternates, *record.perturbed_answers, *drawn]
    for right in (gold, {normalized(record.answer)}):
        for answer in false:
            if normalized(answer) not in right:
                return answer
    fix = "Add `choices` or `alternates`, or bring a retain set"
    raise DataError(Problem(f"record {record.id}", "icul finds no false answer for it", fix))


def shown(encoder: Encoder, record: Record) -> tuple[int, ...]:
    """An example as ids: question and answer, closed by the end of a turn or by a line's end."""
    row = encoder.encode(record)
    start = int(row.ids[:1] == (encoder.tokenizer.bos_token_id,))
    if encoder.has_chat_template:
        return row.ids[start:]
    end = encoder.tokenizer("\n", add_special_tokens=False)["input_ids"]
    return (*row.ids[start : len(row.ids) - row.has_end], *end)
