"""The demo: the embedded benchmark from nothing to a report, with and without control."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.progress import say
from expunge.reports import compare
from expunge.runs.api import run
from expunge.runs.pipeline import RunResult
from expunge.runs.show import finish

__all__ = ["DEFAULT_METHOD", "demo_recipe", "run_demo"]

DEFAULT_METHOD = "wga"


def demo_recipe(method: str, output: Path) -> dict[str, Any]:
    """The recipe of one of the demo's runs."""
    return {
        "name": f"personas, {method}",
        "benchmark": "personas/small",
        "method": method,
        "audit": "quick",
        "watch": method != "ga",  # ascent is here to show what it does when nothing ends it
        "max_new_tokens": 24,
        "output": str(output),
    }


def run_demo(overrides: Sequence[str], *, output: str | None, new: bool, show_text: bool) -> list[RunResult]:
    """Plain ascent to show what goes wrong without control, then the default method; both compared."""
    folder = Path(output or "runs/demo")
    say("expunge demo: 72 invented people, a tiny Llama that knows them, and eight who asked to be forgotten")
    results = []
    for method in ("ga", DEFAULT_METHOD):
        recipe = demo_recipe(method, folder / method) | {"show_text": show_text}
        results.append(run(recipe, overrides, new=new))
    for result in results:
        finish(result)
    cards = [r.scorecard for r in results if r.scorecard]
    page = compare(cards, folder / "comparison")["compare.html"]
    say(f"the two runs side by side: {page}")
    return results
