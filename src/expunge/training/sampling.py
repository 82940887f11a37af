"""Answers sampled from the model as it stands, and what methods that learn from them share.

Each token is where the cumulative distribution passes a uniform number. These depend on (seed, step, record,
number of the answer) alone, so that neither a resume nor the rows beside it change an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.registry import Search
from expunge.stats import seed_from
from expunge.subjects.decoding import greedy_ids
from expunge.subjects.subject import Subject, quiet
from expunge.training.hooks import TrainingControl
from expunge.training.rewards import (
    Grade,
    Match,
    correctness,
    fluency,
    forget_words,
    silence,
    word_facts,
)
from expunge.training.views import View

__all__ = ["Drawn", "LeaveOutEmptySteps", "Sampled", "at_positions", "sample_answers"]


class Drawn(NamedTuple):
    """`ids` with the token that ended them, if any did; `logprobs` [n] of each when it was drawn."""

    ids: tuple[int, ...]
    logprobs: Tensor


def sample_answers(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    batch_rows: int = 64,
) -> list[Drawn]:
    """One answer per prompt and seed, from softmax(z / temperature), without cuts (top-k, top-p).

    Answers end with a stop id, after `max_new_tokens`, or where the context ends. Log-probabilities are those
    of the tempered distribution.
    """
    stop, pad = subject.encoder.stop_ids, subject.encoder.pad_id
    rooms = [min(max_new_tokens, subject.encoder.max_length - len(p)) for p in prompts]
    found = [Drawn((), torch.zeros(0))] * len(prompts)
    with subject.evaluating() as model, quiet():
        for part in _batches([len(p) for p in prompts], rooms, max_new_tokens, batch_rows):
            uniforms = [np.random.default_rng(seeds[i]).random(max_new_tokens) for i in part]
            draw = _Draw(torch.tensor(np.array(uniforms), device=subject.device), temperature)
            made = greedy_ids(model, [prompts[i] for i in part], rooms[part[0]], stop, pad, blend=draw)
            logprobs = torch.stack(draw.logprobs, 1).float().cpu()
            for i, ids, logp in zip(part, made, logprobs, strict=True):
                length = next((k + 1 for k, token in enumerate(ids) if token in stop), len(ids))
                found[i] = Drawn(tuple(ids[:length]), logp[:length])
    return found


class _Draw:
    """A decoder's blend that leaves only the token its uniform number points at."""

    def __init__(self, uniforms: Tensor, temperature: float):
        self.uniforms, self.temperature = uniforms, temperature
        self.logprobs: list[Tensor] = []

    def __call__(self, z: dict[str, Tensor]) -> Tensor:
        logp = (z["base"].double() / self.temperature).log_softmax(-1)
        passed = logp.exp().cumsum(-1)
        at = self.uniforms[:, len(self.logprobs), None] * passed[:, -1:]
        token = torch.searchsorted(passed, at, right=True)
        self.logprobs.append(logp.gather(1, token)[:, 0])
        return torch.full_like(z["base"], -torch.inf).scatter(1, token, 0.0)


def _batches(lengths: Sequence[int], rooms: Sequence[int], full: int, limit: int) -> Iterator[list[int]]:
    """Prompts by length; those that reach the end of the context only beside others of their length."""
    batch: list[int] = []
    for i in sorted((i for i, room in enumerate(rooms) if room > 0), key=lambda i: lengths[i]):
        if batch and (len(batch) == limit or (rooms[i] < full and lengths[i] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def at_positions(table: Tensor, sample: View) -> Tensor:
    """[B, T] by row and token → [A], in the order of the view's answer positions."""
    first = sample.num_tokens.cumsum(0) - sample.num_tokens
    token = torch.arange(len(sample.row), device=sample.row.device) - first[sample.row]
    return table.to(sample.row.device)[sample.row, token]


class LeaveOutEmptySteps(TrainingControl):
    """Where no answer was better than another there is no gradient; moments and decay would still move."""

    def prepare(self, task: Any) -> None:
        self._model = task.subject.model

    def skip_step(self, has_retain: bool) -> bool:
        return not any(p.grad is not None and bool(p.grad.any()) for p in self._model.parameters())


Asked = Callable[[Record, int], tuple[int, ...]]
"""(record, what stands in the table for the answer) → the prompt's ids."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A method's settings of drawing and judging; the answers become the variants `sample0`, `sample1`, ….

    The state holds, per side and row: `ids` [N, G, T] (−1 where an answer has ended), `old` [N, G, T] their
    log-probabilities when drawn, `rewards` [N, G] (NaN: not drawn yet).
    """

    answers: Annotated[int, Ge(2), Search()] = 4  # G
    temperature: Annotated[float, Gt(0), Search()] = 1.0
    max_new_tokens: Annotated[int, Ge(1), Search()] = 64
    match: Match = "words"
    reward: Grade = "graded"
    tau: Annotated[float, Gt(0), Search()] = 1.0

    @property
    def samples(self) -> list[str]:
        """The names of the variants."""
        return [f"sample{g}" for g in range(self.answers)]

    def reading(self, *quantities: str) -> tuple[str, ...]:
        """These quantities of every sample, as `reads` has them."""
        return tuple(f"{name}.{quantity}" for name in self.samples for quantity in quantities)

    def facts(self, request: Request, sides: Sequence[str] = ("forget",)) -> dict[str, Any]:
        """What a report says of the forget words. Raises DataError on documents: nobody asks for them."""
        for side in sides:
            asked_nothing = [r.id for r in request[side] if r.is_document]
            if asked_nothing:
                what = f"{len(asked_nothing)} records are documents ({', '.join(asked_nothing[:3])})"
                fix = "Bring questions" if side == "forget" else "Bring questions, or set boundary: 0"
                raise DataError(Problem(side, f"{what}: no prompt to sample from", fix))
        return {"forget_words": word_facts(forget_words(request.forget, request.retain), request.forget)}

    def empty_table(self, side: str, records: Sequence[Record]) -> dict[str, Tensor]:
        """The state of a side before anything is drawn; a question is one row, or none."""
        shape = (len(records), self.answers, self.max_new_tokens)
        return {
            f"{side}.ids": torch.full(shape, -1),
            f"{side}.old": torch.zeros(shape),
            f"{side}.rewards": torch.full(shape[:2], torch.nan),
        }

    def draw(self, loop: Any, number: int, side: str) -> float:
        """Answers to the prompts of step `number`, into the state; their mean reward."""
        task, state = loop.task, loop.state
        rows = _rows(task, number, side)
        pairs = [(i, g) for i in rows for g in range(self.answers)]
        prompts = [_prompt(task, side, i) for i, _ in pairs]
        ids = [task.sources[side][i][0].id for i, _ in pairs]
        seed = loop.settings.seed
        seeds = [
            seed_from(seed, "sample", side, number, name, g) for name, (_, g) in zip(ids, pairs, strict=True)
        ]
        with loop.settings.autocast(loop.subject.device):
            drawn = sample_answers(
                loop.subject, prompts, seeds,
                temperature=self.temperature, max_new_tokens=self.max_new_tokens,
            )  # fmt: skip
        for (i, g), one in zip(pairs, drawn, strict=True):
            n = len(one.ids)
            state[f"{side}.ids"][i, g] = -1
            state[f"{side}.ids"][i, g, :n] = torch.tensor(one.ids, dtype=torch.long)
            state[f"{side}.old"][i, g, :n] = one.logprobs
            state[f"{side}.rewards"][i, g] = self.judge(loop, side, task.sources[side][i][0], one.ids)
        loop.result.tokens += sum(len(p) + len(one.ids) for p, one in zip(prompts, drawn, strict=True))
        return float(state[f"{side}.rewards"][rows].mean())

    def judge(self, loop: Any, side: str, record: Record, ids: Sequence[int]) -> float:
        """Silence on forget, correctness on retain; either times fluency."""
        encoder, request = loop.subject.encoder, loop.task.request
        ended = bool(ids) and ids[-1] in encoder.stop_ids
        body = ids[:-1] if ended else ids
        text = encoder.decode(body)
        if side == "forget":
            phrases = forget_words(request.forget, request.retain)[record.id]
            worth = silence(text, record, phrases, match=self.match, grade=self.reward, tau=self.tau)
        else:
            worth = correctness(text, record)
        return worth * fluency(body, text, ended=ended)

    def place(self, loop: Any, number: int, side: str, asked: Asked | None = None, table: Any = None) -> None:
        """The answers in the state become the rows that step `number` trains on.

        `asked(record, table[i, g])` are the ids of another prompt than the one they were drawn from.
        """
        task, encoder = loop.task, loop.subject.encoder
        for i in _rows(task, number, side):
            record, plain = task.sources[side][i][0], _prompt(task, side, i)
            for g, name in enumerate(self.samples):
                answer = [t for t in loop.state[f"{side}.ids"][i, g].tolist() if t >= 0]
                prompt = asked(record, int(table[i, g])) if asked else plain
                ids = (*prompt, *answer)[: encoder.max_length]
                ended = bool(answer) and answer[-1] in encoder.stop_ids
                task.rows[f"{side}.{name}"][i] = Encoded(ids, min(len(prompt), len(ids)), ended)


def _rows(task: Any, number: int, side: str) -> list[int]:
    _, forget, retain = task.schedule.step(number)
    return list(dict.fromkeys(forget if side == "forget" else retain))


def _prompt(task: Any, side: str, index: int) -> tuple[int, ...]:
    row = task.sources[side][index][1]
    ids: tuple[int, ...] = row.ids[: row.num_prompt]
    return ids
