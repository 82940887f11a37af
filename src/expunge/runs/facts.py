"""What stands in a scorecard beside the measurements: cost, training log, warnings, the key of its hashes."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.audit.scorecard import CostRow
from expunge.audit.scores import forget_metric
from expunge.evidence import Evidence
from expunge.metrics import compute
from expunge.runs.chain import PAST
from expunge.runs.folder import cache_folder
from expunge.runs.prepare import Job
from expunge.runs.recipe import FromModel, Recipe

__all__ = ["cost_rows", "history", "keyed", "not_known", "ratio", "revived", "secret_key", "told_recipe"]

KNOWN = 0.2
"""The original must know this much more of the forget set than a model that never saw it."""


REVIVED = 0.05
"""An earlier forget set that is known this much better after a request is reported as brought back."""


def not_known(evidence: Mapping[str, Mapping[str, Evidence]]) -> str | None:
    """The warning for a forget set of which the original shows no sign, or None."""
    original = evidence["original"]
    metric = forget_metric(original)
    known = compute(metric, original, "forget").value or 0.0
    base, against = 0.0, "nothing to compare with"
    if "oracle" in evidence:
        base, against = compute(metric, evidence["oracle"], "forget").value or 0.0, "the oracle's is"
    elif "holdout" in original:
        base, against = compute(metric, original, "holdout").value or 0.0, "on holdout it is"
    if known - base >= KNOWN:
        return None
    beside = f"{against} {base:.3f}" if base or "is" in against.split() else against
    return (
        f"not_known: the original shows no sign of knowing the forget set ({metric} {known:.3f}, {beside}): "
        "nothing to forget"
    )


def told_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a report may show it: without the name of an entity that is to be forgotten."""
    told = recipe.model_dump(mode="json", exclude_defaults=True)
    if isinstance(recipe.forget, FromModel) and not recipe.show_text:
        told["forget"] = {"from_model": "(not shown)"}
    return told


def revived(evidence: Mapping[str, Mapping[str, Evidence]]) -> str | None:
    """The warning for an earlier forget set that this request brought back, or None."""
    before, after = evidence["original"], evidence["controlled"]
    if PAST not in before:
        return None
    metric = forget_metric(before)
    was, now = (compute(metric, model, PAST).value or 0.0 for model in (before, after))
    if now - was <= REVIVED:
        return None
    return f"revived: {metric} on what earlier requests forgot rose from {was:.3f} to {now:.3f}"


def history(log: Path) -> list[dict[str, Any]]:
    """The logged steps of a training, as the scorecard has them."""
    if not log.is_file():
        return []
    names = ("step", "epoch", "terms", "lr", "grad_norm", "active", "calibration")
    entries = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [{name: entry.get(name) for name in names} for entry in entries]


def cost_rows(job: Job, done: Mapping[str, Mapping[str, Any]]) -> list[CostRow]:
    """What each stage took, a benchmark's own training first."""
    names = ("flops", "peak_memory", "tokens", "cached")
    rows = [
        CostRow(
            stage=f"benchmark: {name}",
            wall=float(c.get("wall", 0)),
            tokens=int(c.get("tokens", 0)) or None,
            cached=True,
        )
        for name, c in job.cost.items()
    ]
    for name, known in done.items():
        rows.append(
            CostRow(stage=name, wall=known.get("wall", 0.0), **{n: known[n] for n in names if n in known})
        )
    return rows


def ratio(job: Job, done: Mapping[str, Mapping[str, Any]], parameters: int = 0) -> dict[str, Any]:
    """Unlearning and control against retraining, in seconds and in arithmetic; empty where not known.

    Arithmetic is estimated (6·N·tokens for retraining), time measured on this machine.
    """
    retraining = done.get("oracle", {}).get("wall") or job.cost.get("oracle", {}).get("wall")
    if not retraining or "unlearn" not in done:
        return {}
    ours = done["unlearn"]["wall"] + done["control"]["wall"]
    found: dict[str, Any] = {"ratio_to_retraining": ours / retraining, "ratio_basis": "measured"}
    tokens = done.get("oracle", {}).get("tokens") or job.cost.get("oracle", {}).get("tokens")
    if tokens and parameters and done["unlearn"].get("flops"):
        found["ratio_of_flops"] = done["unlearn"]["flops"] / (6 * parameters * tokens)
    return found


def secret_key(path: Path) -> bytes:
    """The secret of the keyed hashes: EXPUNGE_KEY, or drawn once and kept beside the cache."""
    given = os.environ.get("EXPUNGE_KEY")
    if given:
        return given.encode()
    file = cache_folder(path) / "key"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32), encoding="utf-8")
        os.replace(temporary, file)
    return file.read_bytes()


def keyed(key: bytes, text: str) -> str:
    """A hash that only who holds the key can compare with a guess."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]
