"""Removing the direction in which the model moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.attacks.base import ATTACKS, Attack, Field, Outcome
from expunge.attacks.perturbing import ask, plain_copy, same_shape, sheets_of
from expunge.metrics import compute
from expunge.progress import track
from expunge.stats import seed_from
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject
from expunge.training.states import answer_states

OUTLIER = 3.0
MAX_LAYERS = 8


@ATTACKS.register(
    "ablate",
    threat="white-box",
    kind="weights",
    injects="nothing",
    tier=1,
    profiles=["default", "deep"],
    peers=["original"],
    budget="one direction a block, all blocks together and up to 8 alone",
    source="Łucki et al. 2024, arXiv 2409.18025",
)
@dataclass(frozen=True, kw_only=True)
class Ablate(Attack):
    """Take the mean difference to the original out of the residual stream: h ← h − (h·d̂)d̂ after a block.

    d = mean(h) − mean(h_original) where forget answers are predicted, outlying tokens dropped: a single
    direction that only hides the answer gives it back. Where nothing moved (the original itself) it does
    nothing. `random_direction` in the details is what a random direction does in all blocks.
    """

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("hidden", "weights", what="the attack ablate")
        work, original = plain_copy(subject), plain_copy(field.peers["original"]().unwrapped())
        same_shape(work, original)
        found = directions(work, original, field.request.forget)
        sheets = sheets_of(work, field)
        chosen = _chosen(list(found))
        with track("attack ablate", len(chosen) + 1) as advance:
            with ablating(work.model, found):
                together = ask(work, sheets)
            details = {"random_direction": self._random(work, found, sheets, field)}
            yield Outcome({"layers": "all"}, together, details=details)
            advance(1)
            for layer in chosen:
                with ablating(work.model, {layer: found[layer]}):
                    yield Outcome({"layers": layer}, ask(work, sheets))
                advance(1)

    def _random(self, work: Subject, found: Mapping[int, Tensor], sheets: Any, field: Field) -> float | None:
        chance = torch.Generator().manual_seed(seed_from(field.seed, "ablate") % 2**63)
        random = {layer: torch.randn(d.shape, generator=chance).to(d) for layer, d in found.items()}
        with ablating(work.model, random):
            evidence = ask(work, {"forget": sheets["forget"]})
        return compute("extraction_strength", evidence, "forget").value


def directions(subject: Subject, original: Subject, records: Sequence[Any]) -> dict[int, Tensor]:
    """{block: d [D]}; zero where the two models do not differ."""
    layers = list(range(len(blocks(subject.model))))
    ours, theirs = answer_states(subject, records, layers), answer_states(original, records, layers)
    found = {}
    for layer in layers:
        apart = (ours[layer] - theirs[layer]).norm(dim=-1)
        spread = apart.std() if len(apart) > 1 else torch.zeros(())
        kept = apart <= apart.mean() + OUTLIER * spread
        found[layer] = ours[layer][kept].mean(0) - theirs[layer][kept].mean(0)
    return found


def remove_direction(hidden: Tensor, direction: Tensor) -> Tensor:
    """h − (h·d̂)d̂; unchanged where d is 0.

    >>> remove_direction(torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 2.0, 0.0]))
    tensor([3., 0., 0.])
    """
    length = direction.norm()
    if length <= 1e-7 * hidden.norm(dim=-1).mean():
        return hidden
    unit = (direction / length).to(hidden)
    return hidden - (hidden @ unit)[..., None] * unit


@contextmanager
def ablating(model: nn.Module, found: Mapping[int, Tensor]) -> Iterator[None]:
    """Each of these blocks hands on its output without its direction."""

    def hook(direction: Tensor) -> Any:
        def change(_: nn.Module, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (remove_direction(output[0], direction), *output[1:])
            return remove_direction(output, direction)

        return change

    stack = blocks(model)
    handles = [stack[layer].register_forward_hook(hook(d)) for layer, d in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _chosen(layers: list[int]) -> list[int]:
    """At most MAX_LAYERS of them, evenly, the last included; none where there is one."""
    if len(layers) < 2:
        return []
    step = -(-len(layers) // MAX_LAYERS)
    return layers[::-1][::step][::-1]
