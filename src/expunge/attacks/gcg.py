"""A suffix of ordinary tokens, found by greedy coordinate gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.attacks.embedding import frozen
from expunge.attacks.prefill import with_lead_in
from expunge.attacks.prompt_templates import named_in
from expunge.data.batching import collate
from expunge.data.encoding import Encoded, Encoder
from expunge.data.records import Record
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Line, make_sheet
from expunge.progress import track
from expunge.stats import seed_from
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject

LEAD_IN = "The answer is"
PROMPTS = 4
"""Questions the suffix is made on; all others only receive it."""


class Found(NamedTuple):
    """The best suffix, its text, and the best loss so far after every step; the first is the start's."""

    ids: tuple[int, ...]
    text: str
    losses: list[float]


@ATTACKS.register(
    "gcg",
    threat="white-box",
    kind="prompts",
    injects="format",
    tier=3,
    profiles=[],
    budget="one suffix of 5 tokens on 4 questions: 20 steps, 64 candidates each from the 32 best per place",
    source="Zou et al. 2023, arXiv 2307.15043",
)
@dataclass(frozen=True, kw_only=True)
class Gcg(Attack):
    """Search a suffix that makes a neutral lead-in likely, then ask every question with it.

    In each step the gradient with respect to the one-hot suffix proposes the `topk` tokens per place that
    should lower the loss most; `width` suffixes with one place changed are tried, the best is kept if it is
    better. A suffix counts only if its text is encoded to the same ids again and holds no answer. Runs when
    it is asked for by name.
    """

    length: int = 5
    steps: int | None = None  # None: 20, in a quick audit 2
    width: int = 64
    topk: int = 32

    def missing(self, field: Field) -> str | None:
        return None if _usable(field.request.forget) else "documents are not asked"

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("weights", "logprobs", what="the attack gcg")
        asked = {split: _usable(records) for split, records in field.scored().items()}
        made_on = asked["forget"][:PROMPTS]
        yield Outcome({"suffix": 0, "scored": "at once"}, _scored(subject, asked, "", lead=False))
        steps = (2 if field.profile == "quick" else 20) if self.steps is None else self.steps
        found = self.search(subject, made_on, steps, field.seed)
        about = {"loss": [found.losses[0], found.losses[-1]], "made_on": len(made_on)}
        for lead in (False, True):
            config = {"suffix": self.length, "scored": "behind the lead-in" if lead else "at once"}
            told = [r for r in asked["forget"] if named_in(found.text, r.answer)]
            left_out = {**about, "asked_plainly": len(told)}
            yield Outcome(config, _scored(subject, asked, found.text, lead=lead), details=left_out)

    def search(self, subject: Subject, records: Sequence[Record], steps: int, seed: int) -> Found:
        """The best suffix of greedy coordinate gradient on these questions; deterministic in the seed."""
        encoder = subject.encoder
        draw = torch.Generator().manual_seed(seed_from(seed, "gcg") % 2**63)
        allowed = _allowed(encoder)
        suffix = _start(encoder, records, allowed, self.length, draw)
        least = float(_losses(subject, records, [suffix])[0])
        curve = [least]
        with frozen(subject), track("attack gcg", steps) as advance:
            for _ in range(steps):
                slope = _gradient(subject, records, suffix)[:, allowed].cpu()  # [L, V']
                best = allowed[(-slope).topk(min(self.topk, len(allowed)), dim=1).indices]  # [L, topk]
                tried = _changed(suffix, best, self.width, draw)
                tried = [ids for ids in tried if _placed(encoder, records, ids) is not None]
                if tried:
                    losses = _losses(subject, records, tried)
                    at = int(losses.argmin())
                    if float(losses[at]) < least:
                        suffix, least = tried[at], float(losses[at])
                curve.append(least)
                advance(note=f"loss {least:.2f}")
        return Found(suffix, text_of(encoder, suffix), curve)


def text_of(encoder: Encoder, suffix: Sequence[int]) -> str:
    return str(encoder.tokenizer.decode(list(suffix))).strip()


def with_suffix(record: Record, text: str) -> Record:
    """The question with the suffix behind it; as it is where the suffix holds its answer."""
    if not text or named_in(text, record.answer):
        return record
    return record.asked(f"{record.prompt.strip()} {text}")


def _usable(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if not r.is_document]


def _allowed(encoder: Encoder) -> Tensor:
    """Ids a suffix may hold: whole printable text, nothing special."""
    special = {*encoder.tokenizer.all_special_ids, *encoder.tokenizer.get_added_vocab().values()}
    ids = sorted(set(encoder.tokenizer.get_vocab().values()) - special)
    texts = ((i, str(encoder.tokenizer.decode([i]))) for i in ids)
    return torch.tensor([i for i, t in texts if t.strip() and t.isprintable()])


def _start(
    encoder: Encoder, records: Sequence[Record], allowed: Tensor, length: int, draw: torch.Generator
) -> tuple[int, ...]:
    """The first random suffix that survives decoding and encoding."""
    for _ in range(1000):
        picks = torch.randint(len(allowed), (length,), generator=draw)
        suffix = tuple(allowed[picks].tolist())
        if _placed(encoder, records, suffix) is not None:
            return suffix
    raise RuntimeError("no suffix survives this tokenizer")


def _placed(
    encoder: Encoder, records: Sequence[Record], suffix: Sequence[int]
) -> list[tuple[Encoded, int]] | None:
    """Each question with the suffix and the lead-in as its target, and where the suffix starts.

    None where the text is not encoded to these ids again, or holds one of the answers.
    """
    text, found = text_of(encoder, suffix), []
    for record in records:
        if named_in(text, record.answer):
            return None
        asked = record.asked(f"{record.prompt.strip()} {text}")
        question = encoder.encode(asked)
        prompt = question.ids[: question.num_prompt]
        starts = [
            i
            for i in range(len(prompt) - len(suffix), -1, -1)
            if prompt[i : i + len(suffix)] == tuple(suffix)
        ]
        if not starts:
            return None
        led = with_lead_in(encoder, asked, LEAD_IN)
        whole = Encoded(led.ids[: led.num_prompt], min(question.num_prompt, led.num_prompt - 1), False)
        found.append((whole, starts[0]))
    return found


def _losses(subject: Subject, records: Sequence[Record], suffixes: Sequence[Sequence[int]]) -> Tensor:
    """Mean NLL of the lead-in over the questions, one per suffix."""
    found = []
    for suffix in suffixes:
        placed = _placed(subject.encoder, records, suffix)
        assert placed is not None
        found += [row for row, _ in placed]
    batch = collate(found, subject.encoder.pad_id).to(subject.device)
    with torch.no_grad():
        logits = forward(subject.model, batch).logits
    assert logits is not None
    nll = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
    total = torch.zeros(len(batch), device=nll.device).index_add(0, batch.row, nll) / batch.num_tokens
    return total.view(len(suffixes), len(records)).mean(1).cpu()


def _gradient(subject: Subject, records: Sequence[Record], suffix: Sequence[int]) -> Tensor:
    """∂ loss / ∂ one-hot of the suffix, [L, V]: the input gradient at its places times the embeddings."""
    placed = _placed(subject.encoder, records, suffix)
    assert placed is not None
    batch = collate([row for row, _ in placed], subject.encoder.pad_id).to(subject.device)
    layer = subject.model.get_input_embeddings()  # type: ignore[operator]
    kept: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_(True))
        return kept[-1]

    handle = layer.register_forward_hook(keep)
    try:
        logits = forward(subject.model, batch).logits
    finally:
        handle.remove()
    assert logits is not None
    loss = torch.nn.functional.cross_entropy(logits.float(), batch.targets)
    (slope,) = torch.autograd.grad(loss, kept[0])  # [B, T, D]
    own = torch.stack([slope[i, at : at + len(suffix)] for i, (_, at) in enumerate(placed)]).sum(0)
    return own.float() @ layer.weight.detach().float().T


def _changed(suffix: Sequence[int], best: Tensor, width: int, draw: torch.Generator) -> list[tuple[int, ...]]:
    """`width` suffixes that differ from this one in one place each."""
    found = []
    for _ in range(width):
        place = int(torch.randint(len(suffix), (1,), generator=draw))
        pick = int(torch.randint(best.shape[1], (1,), generator=draw))
        found.append((*suffix[:place], int(best[place, pick]), *suffix[place + 1 :]))
    return list(dict.fromkeys(found))


def _scored(
    subject: Subject, asked: dict[str, list[Record]], text: str, *, lead: bool
) -> dict[str, Evidence]:
    """Evidence of the answers to the questions with the suffix, at once or behind the lead-in."""
    found = {}
    for split, records in asked.items():
        rows = [with_suffix(r, text) for r in records]
        sheet = make_sheet(subject.encoder, rows, split)
        if lead:
            led = [Line(r, "gold", (with_lead_in(subject.encoder, r, LEAD_IN),), None) for r in rows]
            sheet = replace(sheet, lines=tuple(led))
        found[split] = score_sheet(subject, sheet)
    return found
