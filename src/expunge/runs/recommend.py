"""Which methods suit a request: rules over their cards and what is known of the request. Nothing is run.

A method is ruled out where a rule says that it cannot do what was asked, or not with what is there. The rest
get points; a family that is already among the recommended counts one point less, since three that differ say
more than three of a kind. Results of runs play no part, but that the default was chosen by measurement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from expunge.data.request import Aim, Kind
from expunge.errors import ConfigError, Problem
from expunge.registry import Card

__all__ = ["Advice", "Budget", "Facts", "Suggestion", "passes", "recommend", "retraining"]

SEVERAL = 5
"""What a count without a number stands for in a cost: K answers, steps, prefixes, rounds."""

ACCESS = ("text", "logits", "weights")
CLEAN = "a model from before exposure"
ALWAYS = ("reference", "refusals", "alternates", "two assistants", "an assistant", "a reinforced model")
"""Needs that expunge meets by itself: built in, kept from the original, or trained on the way."""

CHECKED = (*ALWAYS, "retain", "holdout", "entities", "the embeddings", CLEAN)
"""Needs that are met or rule a method out; any other is asked of the user."""

SERVES: dict[str, dict[str, int]] = {
    "erase_influence": {"influence": 4, "capability": 2, "output": 0},
    "remove_capability": {"influence": 2, "capability": 4, "output": 0},
}
"""Aim → what a method erases → points."""

LIMITS = {
    "output": "hides what the weights still hold: another way of asking, or a little training, finds it",
    ("capability", "erase_influence"): "takes away the answers, not every trace of the records",
    ("influence", "remove_capability"): "is aimed at these records; the skill may have other sources",
}


@dataclass(frozen=True)
class Budget:
    """What unlearning may take: seconds on the device at hand, or floating-point operations."""

    seconds: float | None = None
    flops: float | None = None

    @classmethod
    def read(cls, text: str) -> Budget:
        """`30`, `30min`, `2h`, `90s` or `5e15flops`. Raises ConfigError.

        >>> Budget.read("2h").seconds, Budget.read("1e15 FLOP").flops
        (7200.0, 1000000000000000.0)
        """
        found = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)\s*(s|m|min|h|flops?)?", text.strip().lower())
        if found is None or float(found[1]) <= 0:
            raise ConfigError(Problem("--budget", f"is {text!r}", "As in 30 (minutes), 2h, or 5e15flops"))
        value, unit = float(found[1]), found[2] or "min"
        if unit.startswith("flop"):
            return cls(flops=value)
        return cls(seconds=value * {"s": 1, "m": 60, "min": 60, "h": 3600}[unit])


@dataclass(frozen=True)
class Facts:
    """What is known of the request, the model and the wishes."""

    kind: Kind = "records"
    aim: Aim = "erase_influence"
    splits: frozenset[str] = frozenset({"forget", "retain"})
    entities: bool = False  # whether forget records name theirs
    forget: int = 0  # records; 0: not known yet
    clean_model: bool = False  # a model from before exposure was named
    access: str = "weights"
    exact: bool = False
    robust: bool = False
    parameters: int | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)  # per split
    seen: float = 0.0  # forget tokens the training goes through, all steps
    epochs: float = 5.0
    budget: Budget | None = None
    seconds_per_flop: float = 0.0
    default: str = ""


@dataclass(frozen=True)
class Suggestion:
    """A method with its points: why it suits, what it cannot do, what it still asks for; a rough cost."""

    name: str
    family: str
    points: int
    why: list[str]
    cannot: list[str]
    asks: list[str]
    flops: float | None
    seconds: float | None


@dataclass(frozen=True)
class Advice:
    """The recommended, best first; `ruled_out`: name → why, one reason each."""

    recommended: list[Suggestion]
    ruled_out: dict[str, str]
    considered: int


def recommend(cards: list[Card], facts: Facts, count: int = 3) -> Advice:
    """The `count` methods that suit best, each with its reasons, and why others do not."""
    ruled_out: dict[str, str] = {}
    left: list[Suggestion] = []
    for card in cards:
        flops = cost_of(str(card.fields.get("cost", "")), facts)
        reason = next(_against(card, facts, flops), None)
        if reason:
            ruled_out[card.name] = reason
        else:
            left.append(_weigh(card, facts, flops))
    considered = len(left)
    chosen: list[Suggestion] = []
    while left and len(chosen) < count:
        families = [one.family for one in chosen]
        best = min(left, key=lambda one: _rank(one, families, facts))
        left.remove(best)
        chosen.append(best)
    return Advice(chosen, ruled_out, considered)


def _rank(one: Suggestion, families: list[str], facts: Facts) -> tuple[float, bool, int, float, str]:
    """Smallest first: points, then the default, fewest conditions, cheapest, by name."""
    cost = one.flops if one.flops is not None else float("inf")
    return families.count(one.family) - one.points, one.name != facts.default, len(one.asks), cost, one.name


# Rules ------------------------------------------------------------------------------------------------


def _against(card: Card, facts: Facts, flops: float | None) -> Iterator[str]:
    """Why a method is out of the question; nothing if it is not."""
    known = card.fields
    if facts.kind not in known.get("targets", ()):
        yield f"made for {', '.join(known.get('targets', ()))}; the target is {facts.kind}"
    if ACCESS.index(known.get("access", "weights")) > ACCESS.index(facts.access):
        yield f"needs {known['access']}; only {facts.access} can be had"
    if facts.exact and not exact(card):
        yield "exactness is asked for; its result is not that of training without the records"
    for need in known.get("needs", ()):
        if not _met(need, card, facts):
            yield f"needs {need}"
    if facts.budget and flops is not None:
        seconds = flops * facts.seconds_per_flop
        if facts.budget.flops and flops > facts.budget.flops:
            yield f"takes about {flops:.1e} FLOP; the budget is {facts.budget.flops:.1e}"
        if facts.budget.seconds and seconds > facts.budget.seconds:
            yield f"takes {told(seconds)}; the budget is {facts.budget.seconds:,.0f} s"


def exact(card: Card) -> bool:
    """Whether it gives what training without the records gives: it trains, and without them."""
    return card.fields.get("family") == "exact" and retraining(str(card.fields.get("cost", ""))) is not None


def _met(need: str, card: Card, facts: Facts) -> bool:
    """Whether a need is met, or may be: what this page does not know is asked of the user instead."""
    name = _plain(need)
    if name == "entities":
        return facts.entities
    if name == "the embeddings":
        return facts.access == "weights"
    if name == CLEAN:
        return facts.clean_model or exact(card)
    return name not in ("retain", "holdout") or name in facts.splits


def _weigh(card: Card, facts: Facts, flops: float | None) -> Suggestion:
    known = card.fields
    erases, verified = known.get("erases", ""), known.get("verified", ())
    points = SERVES[facts.aim].get(erases, 0)
    why = [f"erases {erases}, as asked"] if points == 4 else []
    cannot = [LIMITS[key] for key in (erases, (erases, facts.aim)) if key in LIMITS]
    if erases == "output" and facts.access != "weights":
        why.append(f"works where only {facts.access} can be had")
    points += sum(facet in verified for facet in ("forgetting", "utility"))
    if verified:
        why.append(f"tested here on {', '.join(verified)}")
    if "utility" not in verified:
        cannot.append("nothing tested says that the rest stays")
    if facts.robust:
        points += 3 * ("robustness" in verified) + 2 * (known.get("family") == "robust")
    points += "robustness" in verified
    if limit := known.get("limits"):
        points -= 2
        cannot.append(limit)
    if exact(card):
        points -= 2 * (not facts.exact)
        why.append("the weights that answer never saw the records")
    elif "robustness" not in verified:
        cannot.append("not tested to hold when someone trains the model again")
    if not known.get("needs"):
        points += "retain" not in facts.splits
        why.append("needs nothing but the forget set")
    if "per record" in known.get("cost", "") and facts.forget > 100:
        points -= 1
        cannot.append(f"goes record by record: {facts.forget:,} of them")
    if card.name == facts.default:
        points += 1
        why.append("the default, chosen by measurement")
    if retraining(str(known.get("cost", ""))) is None:
        points += 1  # cheap beside retraining
    asks = [need for need in known.get("needs", ()) if _plain(need) not in CHECKED]
    points -= len(asks)
    if CLEAN in known.get("needs", ()) and not facts.clean_model:
        cannot.append(f"without {CLEAN} it starts from fresh weights")
    seconds = flops * facts.seconds_per_flop if flops is not None and facts.seconds_per_flop else None
    return Suggestion(card.name, str(known.get("family", "")), points, why, cannot, asks, flops, seconds)


def _plain(need: str) -> str:
    """A need without its remarks."""
    return need.split(",")[0].split(" (")[0]


# Cost -------------------------------------------------------------------------------------------------


def retraining(cost: str) -> float | None:
    """The share of a full training that a card's cost speaks of, or None.

    >>> retraining("full training"), retraining("0.3 to 0.8 of retraining, by α"), retraining("2F+2B")
    (1.0, 0.55, None)
    """
    if cost.startswith("full training"):
        return 1.0
    if "of retraining" not in cost:
        return None
    numbers = [float(n) for n in re.findall(r"\d+\.\d+", cost)]
    return sum(numbers) / len(numbers) if numbers else 1 / SEVERAL


def passes(cost: str) -> tuple[float, float]:
    """(forward, backward) passes that a card's cost speaks of; symbols count as several.

    >>> passes("2F+2B"), passes("(2+K)F+(2+K)B"), passes("5 to 17 times 2F+2B"), passes("no training")
    ((2.0, 2.0), (7.0, 7.0), (22.0, 22.0), (0.0, 0.0))
    """
    if cost.startswith("no training"):
        return 0.0, 0.0
    text = cost.replace("(2+K)", str(2 + SEVERAL)).replace("N_retain(F+B)", "F+1B")
    found = re.search(r"(\d*)F(?:\+(\d*)B)?", text)
    if found is None:
        return 1.0, 1.0
    times = 1.0
    if span := re.search(r"(\d+) to (\d+) times", text):
        times = (int(span[1]) + int(span[2])) / 2
    times *= SEVERAL ** sum(
        mark in text for mark in ("K(", "steps·", "prefixes", "per alternate", "per round")
    )
    backward = int(found[2] or 1) if "B" in found[0] else 0
    times *= 2 if "on retain" in text else 1
    tuned = 2 if "two fine-tunes" in text else 1 if "reinforced" in text else 0
    return times * int(found[1] or 1) + tuned, times * backward + tuned


def cost_of(cost: str, facts: Facts) -> float | None:
    """Operations of one unlearning, to an order of magnitude; None where the model's size is not known.

    A forward takes 2 operations per parameter and token, a backward 4. Passes are over the forget tokens of
    all steps (a retain pass goes over as many); what says *per row* or *once* goes over the data one time.
    """
    if facts.parameters is None:
        return None
    data = sum(facts.tokens.get(split, 0) for split in ("forget", "retain"))
    share = retraining(cost)
    if share is not None:
        return 6.0 * facts.parameters * share * facts.epochs * (data - facts.tokens.get("forget", 0))
    forward, backward = passes(cost)
    once = any(mark in cost for mark in ("per row", "once", "to the layer", "N_retain"))
    return (2 * forward + 4 * backward) * facts.parameters * (data if once else facts.seen)


def told(seconds: float) -> str:
    """
    >>> told(0.2), told(90), told(4000)
    ('under a second', 'about 2 min', 'about 1.1 h')
    """
    if seconds < 1:
        return "under a second"
    if seconds < 60:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 3600 else f"about {seconds / 3600:.1f} h"
