"""The contract of a method, and its four kinds.

*objective*: a loss in the one loop (most methods) · *loop*: brings its own step · *one-shot*: without the
loop (task arithmetic, closed-form edits, retraining) · *wrapper*: the same weights, asked differently. A
method is a frozen dataclass of its hyper-parameters in one file, with its card in the decorator:

family; erases (influence, capability, output); targets (kinds it suits); access (weights, logits, text);
needs (what beyond forget); cost (forward and backward passes per step); scale (single, ddp, fsdp); source.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from expunge import ranks
from expunge.errors import DataError, Problem
from expunge.registry import Card, Registry

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.data.request import Request
    from expunge.subjects.subject import Subject
    from expunge.training.hooks import TrainingControl
    from expunge.training.settings import TrainSettings
    from expunge.training.views import View
    from expunge.training.workspace import Workspace

__all__ = ["METHODS", "LoopMethod", "Method", "Objective", "OneShot", "Positive", "Weight", "Wrapper"]

METHODS: Registry[Method] = Registry("method", "expunge.methods", "METHODS")

ACCESS = {"weights": "weights", "logits": "logprobs", "text": "generate"}
"""Access a card asks for → what the subject must be able to do."""

Kind = Literal["objective", "loop", "one_shot", "wrapper"]
Positive = Annotated[float, Gt(0)]
Weight = Annotated[float, Ge(0)]


class Method(ABC):
    """`unlearn(subject, request, workspace)` returns a new subject; the one it is given is not changed."""

    name: ClassVar[str]
    card: ClassVar[Card]
    kind: ClassVar[Kind]
    trains: ClassVar[bool] = False  # whether the recipe's `train` steers it: `tune` then searches that too

    def __init_subclass__(cls, **more: Any) -> None:
        """Every `unlearn`, whoever writes it, first checks that there is something to forget, and access."""
        super().__init_subclass__(**more)
        if "unlearn" in cls.__dict__:
            cls.unlearn = _checked(cls.unlearn)  # type: ignore[method-assign]

    @abstractmethod
    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject: ...

    def check(self, subject: Subject, request: Request) -> None:
        """Raise DataError without forget records, Unsupported where the card asks for more than `can`,
        ConfigError on more ranks than the card allows."""
        if not request.forget:
            raise DataError(Problem("forget", f"{self.name} needs forget records", "Bring a forget set"))
        if hasattr(self, "card"):
            ranks.check_scale(self.card)
            subject.need(ACCESS[self.card.fields["access"]], what=f"the method {self.name}")


def _checked(unlearn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(unlearn)
    def checked(self: Method, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        self.check(subject, request)
        made: Subject = unlearn(self, subject, request, workspace)
        return made

    return checked


@dataclass(frozen=True, kw_only=True)
class Objective(Method):
    """min γ·E_forget[ℓ_f] + λ·E_retain[ℓ_r]: write `loss`, and name in `reads` what it reads.

    `loss` returns one value per forget row, [B], or several such terms by name; weighting, retain term,
    control, logging and the step happen outside. `reads` holds `[variant.][reference.|teacher.]quantity`, see
    expunge.training.views. A method may also have

        layers_of(subject) -> tuple[int, ...]          blocks whose `hidden` it reads
        site = "mlp"                                   what their MLPs write instead of the blocks' output
        retain_layers_of(subject) -> tuple[int, ...]   those the retain loss reads, where they are others
        retain_terms(retain, **state) -> {name: [B]}   more terms of the retain side, weighted with λ
        retain_reads                                   what these read of the retain rows
        setup(subject, request, seed) -> {name: tensor}   passed to `loss`, kept in the checkpoint
        within(task, micro)                            a context its loss is computed in
        begin(subject, seed)                           last changes to the weights before the first step
    """

    kind: ClassVar[Kind] = "objective"
    trains: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]]

    forget_weight: Weight = 1.0  # γ
    retain_weight: Weight = 1.0  # λ; 0: no retain forward at all
    retain: str = "ce"  # a retain loss by name

    @abstractmethod
    def loss(self, forget: View, *_: Any, **state: Any) -> Tensor | Mapping[str, Tensor]:
        """ℓ_f per forget row, [B], or several terms by name. `state`: what `setup` returned, if any."""

    def selects(self, subject: Subject) -> set[str] | None:
        """Names of the parameters that are trained; None: all of them."""
        return None

    def weights(self, progress: float) -> tuple[float, float]:
        """(γ, λ) when this share of the steps is done, [0, 1)."""
        return self.forget_weight, self.retain_weight

    def teacher(self, subject: Subject, request: Request, workspace: Workspace) -> Subject | None:
        """A second frozen model of the method's own, read as `teacher.quantity`."""
        return None

    def settings_for(self, settings: TrainSettings, request: Request) -> TrainSettings:
        """The training settings, where the method's own step asks for others."""
        return settings

    def hooks(self, request: Request) -> Sequence[TrainingControl]:
        """Stop rules of the method's own, in force beside the run's controls."""
        return ()

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        return workspace.train(self, subject, request)


@dataclass(frozen=True, kw_only=True)
class LoopMethod(Objective):
    """An objective with a training step of its own: adversaries, annealing, sampling.

    Tensors it keeps between steps belong into `loop.state` (from `setup`): checkpointed and put back.
    """

    kind: ClassVar[Kind] = "loop"
    transformable: ClassVar[bool] = False  # whether `step` goes through `loop.gradients`, transforms and all

    @abstractmethod
    def step(self, loop: Any, number: int) -> dict[str, float]:
        """Put the gradient of optimizer step `number` into `.grad` and return the terms' values.

        `loop.gradients(number)` adds the plain gradient, `loop.side(number, "forget")` returns that of one
        side; `loop.task` and `loop.subject` are there to be used.
        """


class OneShot(Method):
    """Weights in, weights out, without the loop."""

    kind: ClassVar[Kind] = "one_shot"


class Wrapper(Method):
    """Inference-time: the same weights, wrapped. Its verdict is at best *output-only*."""

    kind: ClassVar[Kind] = "wrapper"
