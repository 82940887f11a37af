"""`expunge release` and `expunge rollback`: a run's model into use, and the model before it back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.errors import BarMissed, ConfigError, Problem
from expunge.runs import ledger
from expunge.runs.deployment import Deployment, is_deployment, opened, place_of
from expunge.runs.lifecycle import Life, advance, current, entry, read_life
from expunge.runs.notes import read_recipe, read_state

__all__ = ["objections", "release", "rollback"]

UNFIT = ("collapsed", "not unlearned")
"""Verdicts that no model is released with."""


def release(run: Path, to: str | Path | None = None, *, force: str | None = None) -> list[str]:
    """Put a run's controlled model into use in a deployment folder; says what was done.

    Refused with BarMissed (exit 3) where the audit speaks against it, unless `force` gives the reason why it
    is done all the same; it is written down. ConfigError on a run that is not audited.
    """
    run = Path(run)
    state = read_state(run)
    life = read_life(run, state)
    recipe = read_recipe(run)
    place = Path(to or recipe.get("deploy") or "")
    if not (to or recipe.get("deploy")):
        fix = "Give --to DIR, or set deploy: DIR in the recipe"
        raise ConfigError(Problem(str(run), "names no deployment folder", fix))
    if force is not None and not force.strip():
        raise ConfigError(Problem("--force", "needs a reason", 'As in --force "signed off by …"'))
    deployed, forced = Deployment(place), None
    if not _is_top(deployed, run):  # else it is in use, or will be once an interrupted release is finished
        advance(life, "released", "", run=run)  # an illegal step is said before anything else
        against, elsewhere = objections(entry(life, "audited")), _brings_back(deployed, life)
        if force is None:
            _refuse(run, against, elsewhere)
        forced = force if against or elsewhere else None
    return _release(run, place, recipe, life, forced)


def _is_top(deployed: Deployment, run: Path) -> bool:
    return deployed.top is not None and deployed.run_of(deployed.top).resolve() == run.resolve()


def _refuse(run: Path, against: list[str], elsewhere: list[str]) -> None:
    text = "; ".join([*against, *elsewhere])
    if against:
        raise BarMissed(f"{run} is not released: {text}. To release it all the same: --force REASON")
    if elsewhere:
        raise ConfigError(Problem(str(run), text, "To release it all the same: --force REASON"))


def _release(run: Path, place: Path, recipe: Mapping[str, Any], life: Life, forced: str | None) -> list[str]:
    start, controlled = entry(life, "deployed"), str(entry(life, "unlearned")["controlled"])
    loading = {"dtype": start["dtype"], "trust_remote_code": recipe.get("trust_remote_code", False)}
    with opened(place) as deployed:
        if deployed.unfinished:
            deployed.finish()
        if _is_top(deployed, run):
            return [f"{run} is in use: {place / 'current'}"]
        if deployed.current is None:
            deployed.add(str(start["model"]), str(start["fingerprint"]), loading)
            deployed.note["base"] = str(start["fingerprint"])
        deployed.add(str(run / "control" / "model"), controlled, loading)
        before = deployed.current
        deployed.release(run, controlled, forced=forced)
    ledger.record(run, "released", controlled=controlled, forced=forced)
    return [
        f"released {run}: {place / 'current'} is now {controlled}",
        f"kept for a rollback: {place / 'models' / str(before)}, which still knows the forget set",
    ]


def objections(audited: Mapping[str, Any]) -> list[str]:
    """What an audit says against shipping its model."""
    found = []
    if audited["bar_met"] is not True:
        found.append("its bar is missed" if audited["bar_met"] is False else "no bar was held")
    if audited["verdict"] in UNFIT:
        found.append(f"its verdict is {audited['verdict']}")
    found += [f"a requirement is not met: {text}" for text in audited["missed"]]
    if not audited["attacks"]:
        found.append("no attack was measured on it")
    return found


def _brings_back(deployed: Deployment, life: Life) -> list[str]:
    """A run that did not start from the model in use would bring back what that one forgot."""
    start = entry(life, "deployed")["fingerprint"]
    if deployed.current in (None, start):
        return []
    text = f"it started from {start}, in use is {deployed.current}"
    if deployed.top is None:
        return [text]
    in_use = deployed.run_of(deployed.top)
    return [f"{text}: what {in_use} forgot would come back. Run the recipe with after: {in_use}"]


def rollback(target: Path) -> list[str]:
    """Put the model before the last release back into use, bit for bit; says what was done.

    `target`: a deployment folder, or the run whose release is in force. Raises ConfigError where nothing can
    be rolled back, ModelError where the model kept is damaged; nothing is switched then.
    """
    target = Path(target)
    place, run = target, None
    if not is_deployment(target):
        state = read_state(target)
        life = read_life(target, state)
        found = place_of(target, state or {})
        if found is None:
            advance(life, "rolled back", "", run=target)
            what = "its deployment folder is gone"
            raise ConfigError(Problem(str(target), what, "Give the folder: expunge rollback DIR"))
        place, run = found, target
    with opened(place) as deployed:
        if step := deployed.unfinished:
            deployed.finish()
            if step == "rollback":
                return [f"finished the interrupted rollback: {place / 'current'} is {deployed.current} again"]
        if run is not None and current(life) == "rolled back":
            return [f"{run} was rolled back before: {place / 'current'} is {deployed.current}"]
        top = deployed.top
        if top is None or top["previous"] not in deployed.note["models"]:
            what = "no release is in force" if top is None else "the model before was purged"
            raise ConfigError(Problem(str(place), f"{what}: there is nothing to go back to"))
        if run is not None and not _is_top(deployed, run):
            what = f"{deployed.run_of(top)} was released after it"
            raise ConfigError(Problem(str(run), what, "Roll that one back first"))
        undone = deployed.roll_back()
        ledger.record(deployed.run_of(undone), "rolled back", back_to=deployed.current)
        return [
            f"rolled back {deployed.run_of(undone)}: {place / 'current'} is {deployed.current} again",
            f"{deployed.current} knows what that run had forgotten",
        ]
