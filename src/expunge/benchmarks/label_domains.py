"""Forget sets that name only part of their target, on a small classifier (Zhu et al. 2024, arXiv 2406.08288).

Points of generated data have a class and, above it, a superclass. Three label domains may differ: of the
model (what it tells apart), of the target concept (what should go) and of the forget data (what was listed):

- *all matched*: the model tells classes apart; one class is the target, and listed;
- *target mismatch*: the target is a whole superclass, one of its classes is listed;
- *model mismatch*: the model tells superclasses apart; one class of one is the target, and listed;
- *data mismatch*: the model tells superclasses apart; the target is one of them, one class of it is listed.

The *target data* are all that should go; the *listed forget data* what a method is told to forget. The
*hidden forget data* are target, but not listed: they stand among what the method keeps. The *affected retain
data* stay, but have the model's label of the target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from expunge.metrics.mean_gap import mean_gap, share_outside

__all__ = ["METHODS", "RELATIONS", "Case", "Result", "World", "compare", "make_case", "score", "train"]

Level = Literal["class", "superclass"]


class Relation(NamedTuple):
    """The label domains of the model, the target concept and the forget data."""

    model: Level
    target: Level
    listed: Level = "class"


RELATIONS: Mapping[str, Relation] = {
    "all matched": Relation("class", "class"),
    "target mismatch": Relation("class", "superclass"),
    "model mismatch": Relation("superclass", "class"),
    "data mismatch": Relation("superclass", "superclass"),
}


@dataclass(frozen=True)
class World:
    """Sizes of the generated data and of its classifier; class c belongs to superclass c // `classes`.

    `noise` is the spread of the points around their class, whose center lies at distance `near` from the
    superclass's own; `wrong` the share of training labels that are false, so that members are remembered.
    """

    superclasses: int = 4
    classes: int = 3
    points: int = 60
    dimensions: int = 16
    noise: float = 0.9
    far: float = 2.0
    near: float = 1.2
    wrong: float = 0.05
    hidden: int = 128
    epochs: int = 60
    lr: float = 3e-3
    seed: int = 0


class Points(NamedTuple):
    """Points [N, D], the label the model gives them [N], and their class [N]."""

    x: Tensor
    y: Tensor
    cls: Tensor

    def where(self, mask: Tensor) -> Points:
        return Points(self.x[mask], self.y[mask], self.cls[mask])


@dataclass(frozen=True)
class Case:
    """One relation: the data by name, and what a method is given (`listed`, `remaining`)."""

    world: World
    relation: str
    train: Points
    test: Points
    target: Tensor = field(repr=False)  # [N] of train
    listed: Tensor = field(repr=False)  # [N] of train
    affected: Tensor = field(repr=False)  # [N] of train
    stays: Tensor = field(repr=False)  # [N] of test: what is no target

    @property
    def parts(self) -> dict[str, Points]:
        """The training data by the names that the page uses."""
        return {
            "target data": self.train.where(self.target),
            "listed forget data": self.train.where(self.listed),
            "hidden forget data": self.train.where(self.target & ~self.listed),
            "affected retain data": self.train.where(self.affected),
            "retain data": self.train.where(~self.target),
        }

    @property
    def remaining(self) -> Points:
        """What a method takes for retain data: hidden forget data stand in it."""
        return self.train.where(~self.listed)


def make_case(relation: str, world: World | None = None) -> Case:
    """The data of a world under one relation; the points are the same under all four."""
    world = world or World()
    levels = RELATIONS[relation]
    rng = np.random.default_rng(world.seed)
    count = world.superclasses * world.classes
    tops = _directions(rng, world.superclasses, world.dimensions) * world.far
    centers = np.repeat(tops, world.classes, axis=0)
    centers = centers + _directions(rng, count, world.dimensions) * world.near
    cls = np.repeat(np.arange(count), world.points)
    train, test = (centers[cls] + world.noise * rng.normal(size=(len(cls), world.dimensions)) for _ in "ab")
    wrong = rng.random(len(cls)) < world.wrong
    seen = np.where(wrong, rng.integers(0, count, len(cls)), cls)  # the class the training label is made of
    under = torch.from_numpy(cls // world.classes) == 0
    first = torch.from_numpy(cls) == 0
    target = first if levels.target == "class" else under
    labels = (lambda c: c) if levels.model == "class" else (lambda c: c // world.classes)
    same = first if levels.model == "class" else under
    return Case(
        world,
        relation,
        Points(_floats(train), torch.from_numpy(labels(seen)), torch.from_numpy(cls)),
        Points(_floats(test), torch.from_numpy(labels(cls)), torch.from_numpy(cls)),
        target=target,
        listed=first,
        affected=same & ~target,
        stays=~target,
    )


def _directions(rng: np.random.Generator, count: int, dimensions: int) -> np.ndarray:
    found = rng.normal(size=(count, dimensions))
    return found / np.linalg.norm(found, axis=1, keepdims=True) * np.sqrt(dimensions) / 2


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


# Training and unlearning -------------------------------------------------------------------------------

Loss = Callable[[nn.Module, float], Tensor]
"""The loss of a model at a share of the way, in [0, 1)."""


def _net(world: World) -> nn.Sequential:
    """The classifier, with weights that are a function of the seed; it has an output for each class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(world.seed)
        return nn.Sequential(
            nn.Linear(world.dimensions, world.hidden), nn.ReLU(),
            nn.Linear(world.hidden, world.hidden), nn.ReLU(),
            nn.Linear(world.hidden, world.superclasses * world.classes),
        )  # fmt: skip


def _descend(net: nn.Module, steps: int, lr: float, loss: Loss) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(net, step / steps).backward()
        optimizer.step()
    return net


def _ce(net: nn.Module, points: Points) -> Tensor:
    return cross_entropy(net(points.x), points.y)


def train(case: Case, points: Points) -> nn.Module:
    """A classifier trained from scratch on these points, on all of them in each step."""
    world = case.world
    return _descend(_net(world), 4 * world.epochs, world.lr, lambda net, _: _ce(net, points))


def retrain(original: nn.Module, case: Case) -> nn.Module:
    """Without the target data: what unlearning should come near to."""
    return train(case, case.train.where(~case.target))


def finetune(original: nn.Module, case: Case) -> nn.Module:
    """min ℓ(remaining)"""
    return _unlearn(original, case, lambda net, _: _ce(net, case.remaining))


def gradient_ascent(original: nn.Module, case: Case) -> nn.Module:
    """max ℓ(listed), few steps: it knows no other end."""
    listed = case.train.where(case.listed)
    return _descend(copy.deepcopy(original), 12, case.world.lr / 3, lambda net, _: -_ce(net, listed))


def random_label(original: nn.Module, case: Case) -> nn.Module:
    """min ℓ(listed, another label, drawn once) + ℓ(remaining)"""
    listed = case.train.where(case.listed)
    count = int(case.train.y.max()) + 1
    rng = np.random.default_rng(case.world.seed + 1)
    other = (listed.y + torch.from_numpy(rng.integers(1, count, len(listed.y)))) % count
    drawn = listed._replace(y=other)
    return _unlearn(original, case, lambda net, _: _ce(net, drawn) + _ce(net, case.remaining))


def tarf(original: nn.Module, case: Case, *, identify: float = 0.2, anneal: float = 0.7) -> nn.Module:
    """min −k(t)·ℓ(listed) + mean τ(x)·ℓ(remaining), k(t) = max(1 − t/`anneal`, 0).

    Until `identify`, τ = 0: the listed data alone are unlearned. Then the remaining points whose loss moved
    most keep τ = 0. It is told how many points are hidden, not which (Zhu et al. 2024 set a threshold).
    """
    listed, remaining = case.train.where(case.listed), case.remaining
    hidden = int((case.target & ~case.listed).sum())
    steps = 2 * case.world.epochs
    start = _losses(original, remaining)
    net = _descend(
        copy.deepcopy(original), round(identify * steps), case.world.lr / 3, lambda net, _: -_ce(net, listed)
    )
    moved = (_losses(net, remaining) - start).abs()
    gate = torch.ones(len(moved), dtype=torch.bool)
    gate[moved.argsort(descending=True, stable=True)[:hidden]] = False
    kept = remaining.where(gate)

    def loss(net: nn.Module, progress: float) -> Tensor:
        strength = max(1 - (identify + (1 - identify) * progress) / anneal, 0.0)
        ascent = -_ce(net, listed).clamp(max=8.0) if strength else torch.zeros(())
        return strength * ascent + _ce(net, kept)

    return _descend(net, round((1 - identify) * steps), case.world.lr, loss)


def _unlearn(original: nn.Module, case: Case, loss: Loss) -> nn.Module:
    return _descend(copy.deepcopy(original), 2 * case.world.epochs, case.world.lr, loss)


METHODS: Mapping[str, Callable[[nn.Module, Case], nn.Module]] = {
    "retrain": retrain,
    "finetune": finetune,
    "ga": gradient_ascent,
    "random_label": random_label,
    "tarf": tarf,
}

# Scores ------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """One model under one relation; `parts`: accuracy on each part of the training data."""

    relation: str
    method: str
    four: dict[str, float]  # UA, RA, TA, MIA
    gap: float
    parts: dict[str, float]


@torch.no_grad()
def _losses(net: nn.Module, points: Points) -> Tensor:
    return cross_entropy(net(points.x), points.y, reduction="none")


@torch.no_grad()
def accuracy(net: nn.Module, points: Points) -> float:
    """Share of points given their own label, nan where there are none."""
    return float((net(points.x).argmax(-1) == points.y).float().mean()) if len(points.y) else float("nan")


def score(net: nn.Module, case: Case) -> dict[str, float]:
    """UA = 1 − accuracy on the target data, RA on the retain data, TA on test data that stay; MIA, the share
    of target data that a loss threshold, fixed on retain and test data, calls non-members."""
    target, retain = case.parts["target data"], case.parts["retain data"]
    unseen = case.test.where(case.stays)
    losses = [_losses(net, points).numpy() for points in (target, retain, unseen)]
    return {
        "UA": 1 - accuracy(net, target),
        "RA": accuracy(net, retain),
        "TA": accuracy(net, unseen),
        "MIA": share_outside(*losses),
    }


def compare(relations: Sequence[str] = tuple(RELATIONS), world: World | None = None) -> list[Result]:
    """The original and every method under each relation, with the mean gap to retraining."""
    results = []
    for relation in relations:
        case = make_case(relation, world)
        original = train(case, case.train)
        models = {"original": original, **{name: method(original, case) for name, method in METHODS.items()}}
        exact = score(models["retrain"], case)
        for name, net in models.items():
            four = score(net, case)
            parts = {part: accuracy(net, points) for part, points in case.parts.items()}
            results.append(Result(relation, name, four, mean_gap(four, exact), parts))
    return results
