"""What there is to choose from, by its cards. No torch here, but where one thing is shown in full."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from expunge.attacks import ATTACKS
from expunge.benchmarks import BENCHMARKS
from expunge.controls import CONTROLS
from expunge.errors import ConfigError, Problem, nearest
from expunge.explain.base import ATTRIBUTIONS, LOCALIZERS
from expunge.interventions import INTERVENTIONS
from expunge.methods import METHODS
from expunge.metrics import METRICS
from expunge.progress import say
from expunge.registry import Card, Registry

__all__ = [
    "COLUMNS", "KINDS", "about", "by_family", "cards", "class_of", "clause", "methods_epilog", "of_family",
    "print_about", "print_cards", "settings_of", "value_of",
]  # fmt: skip

KINDS: dict[str, Registry[Any]] = {
    "methods": METHODS,
    "controls": CONTROLS,
    "metrics": METRICS,
    "attacks": ATTACKS,
    "interventions": INTERVENTIONS,
    "benchmarks": BENCHMARKS,
    "localizers": LOCALIZERS,
    "attributions": ATTRIBUTIONS,
    "annotators": Registry("annotator", "expunge.measure.annotators", "ANNOTATORS"),
    "checks": Registry("check", "expunge.audit.verification", "CHECKS"),
    "transforms": Registry("transform", "expunge.training.transforms", "TRANSFORMS"),
    "selections": Registry("selection", "expunge.training.selections", "SELECTIONS"),
    "retain_losses": Registry("retain_loss", "expunge.training", "RETAIN_LOSSES"),
}
"""The last five read cards only: the registries that make these things live beside torch."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {
        "summary": "Adam with decoupled weight decay: the default.",
        "needs": [],
        "source": "Loshchilov and Hutter 2017, arXiv 1711.05101",
    },
    "adamw_8bit": {
        "summary": "AdamW with its moments in 8 bits: a quarter of the optimizer's memory.",
        "needs": ["bitsandbytes"],
        "source": "Dettmers et al. 2021, arXiv 2110.02861",
    },
    "sgd": {"summary": "Plain gradient steps, no momentum, no state.", "needs": [], "source": ""},
    "sophia": {
        "summary": "A clipped second-order step: no weight moves more than the learning rate.",
        "needs": [],
        "source": "Liu et al. 2023, arXiv 2305.14342; Jia et al. 2024, arXiv 2404.18239",
    },
}
"""Those of `TrainSettings.optimizer`; they are made in expunge.training.optimizers."""

COLUMNS = {
    "methods": ("erases", "access", "cost"),
    "controls": ("when", "bounds"),
    "metrics": ("facet", "better"),
    "attacks": ("threat", "injects"),
    "interventions": ("family", "needs"),
    "benchmarks": ("parts", "oracle"),
    "annotators": ("columns", "peers"),
    "checks": ("aim",),
    "transforms": ("cost",),
    "selections": ("unit", "cost"),
    "optimizers": ("needs",),
    "localizers": ("unit", "access"),
    "attributions": ("uses", "cost"),
    "retain_losses": (),
}


def cards(what: str) -> list[dict[str, Any]]:
    """The cards of a kind as objects: name, summary and fields."""
    if what == "optimizers":
        return [{"name": name, **facts} for name, facts in OPTIMIZERS.items()]
    return [card.as_dict() for card in KINDS[what].cards()]


def families(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({str(row.get("family", "")) for row in rows})


def of_family(rows: list[dict[str, Any]], what: str, family: str) -> list[dict[str, Any]]:
    """The rows of one family. Raises ConfigError where there is none."""
    if family not in families(rows):
        known = [name for name in families(rows) if name]
        fix = nearest(family, known) if known else "Only methods have families"
        raise ConfigError(Problem(f"list {what} --family {family}", "no such family", fix))
    return [row for row in rows if row.get("family") == family]


def by_family() -> dict[str, list[Card]]:
    """The cards of the methods, family by family."""
    found: dict[str, list[Card]] = {}
    for card in sorted(METHODS.cards(), key=lambda card: (card.fields["family"], card.name)):
        found.setdefault(card.fields["family"], []).append(card)
    return found


def methods_epilog() -> str:
    """The methods by family, for a help page: an empty line between paragraphs."""
    lines = [f"{family}: {', '.join(card.name for card in cards)}" for family, cards in by_family().items()]
    return "\b\n" + "\n".join(["[bold]Methods[/bold] (expunge list methods NAME shows one)", *lines])


def class_of(card: Card) -> type[Any]:
    """The class of a card; imports its file, whichever registry holds it."""
    module = importlib.import_module(card.module)
    classes = [c for c in vars(module).values() if isinstance(c, type)]
    return next(c for c in classes if getattr(vars(c).get("card"), "name", None) == card.name)


def settings_of(cls: type[Any]) -> dict[str, Any]:
    """Hyper-parameter → default, plain enough for JSON; "required" where there is none."""
    found = {}
    for f in fields(cls) if is_dataclass(cls) else ():
        if f.init:
            made = f.default if f.default_factory is MISSING else f.default_factory()
            found[f.name] = "required" if made is MISSING else _plain(made)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def about(what: str, name: str) -> dict[str, Any]:
    """One card in full: with the settings, their defaults, and what the docstring says."""
    if what == "optimizers":
        if name not in OPTIMIZERS:
            raise ConfigError(Problem(f"optimizer {name!r}", "unknown name", nearest(name, OPTIMIZERS)))
        return {"name": name, **OPTIMIZERS[name]}
    card = KINDS[what].card(name)
    cls = class_of(card)
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n")[2].strip()
    return {**card.as_dict(), "settings": settings_of(cls), "about": text}


# On the terminal --------------------------------------------------------------------------------------


SUMMARY = 36
"""Columns a summary gets at least."""


def clause(text: str, width: int) -> str:
    """The text, or as much of it as fits and ends well: with a clause, else with a word and an ellipsis.

    >>> clause("Refuse flagged prompts and stop answers; or instruct the model.", 45)
    'Refuse flagged prompts and stop answers'
    >>> clause("Refuse flagged prompts and stop answers.", 20), clause("steps·(1+prefixes)·(1F+1B)", 10)
    ('Refuse flagged …', 'steps·(1+…')
    """
    if len(text) <= width:
        return text
    ends = [
        at for mark in ("; ", ". ", ", ", " (") if _closed(text[: (at := text.rfind(mark, 0, width + 1))])
    ]
    if max(ends, default=0) > 0.6 * width:
        return text[: max(ends)]
    if (blank := text.rfind(" ", 0, width - 1)) < 0:
        return text[: width - 1] + "…"
    return text[:blank].rstrip(" ,;:(") + " …"


def _closed(text: str) -> bool:
    """Whether every bracket is closed again."""
    return all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}", "⟨⟩"))


def width_of() -> int:
    """Columns to write in; what goes into a file or a pipe is cut later than on most screens."""
    from rich.console import Console

    return Console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else 120


def print_cards(what: str, rows: list[dict[str, Any]]) -> None:
    """One line each: methods by family, the others under one head. A narrow terminal gets fewer columns."""
    width = width_of()
    longest = {"name": 32, "cost": 18 if what == "methods" else 30}
    sizes = {}
    for column in ("name", *COLUMNS[what]):
        widest = max(len(value_of(row.get(column))) for row in [*rows, {column: column}])
        sizes[column] = min(longest.get(column, 26), widest)
    while (left := width - sum(sizes.values()) - 2 * len(sizes) - 2) < SUMMARY and len(sizes) > 1:
        sizes.popitem()
    lines = ["  " + "".join(column.ljust(size + 2) for column, size in sizes.items()) + "summary"]
    for family in families(rows):
        lines += ["", family] if family else []
        for row in (row for row in rows if row.get("family", "") == family):
            cells = (clause(value_of(row.get(c)), size).ljust(size + 2) for c, size in sizes.items())
            lines.append(("  " + "".join(cells) + clause(str(row["summary"]), left)).rstrip())
    sys.stdout.write("\n".join(lines) + "\n")
    say(f"expunge list {what} NAME shows one in full")


def print_about(card: Mapping[str, Any]) -> None:
    """One card on a page."""
    import textwrap

    width = min(width_of(), 110)
    lines = [f"{card['name']}: {card['summary']}", ""]
    for key, value in card.items():
        if key in ("name", "summary", "settings", "about"):
            continue
        if shown := value_of(value):
            lines += textwrap.wrap(shown, width, initial_indent=f"{key:<10}", subsequent_indent=" " * 10)
    for i, (name, default) in enumerate(card.get("settings", {}).items()):
        lines.append(f"{'settings' if not i else '':<10}{name}: {json.dumps(default, ensure_ascii=False)}")
    if card.get("about"):
        lines += ["", card["about"]]
    sys.stdout.write("\n".join(lines) + "\n")


def value_of(value: Any) -> str:
    """A card's value as a reader sees it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
