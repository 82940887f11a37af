"""The model card that ships with the weights: front matter for machines, a page for people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from expunge.audit.scorecard import Scorecard
from expunge.reports import words
from expunge.reports.formatting import interval, number
from expunge.reports.markdown import escape, table

__all__ = ["SCHEMA_PATH", "front_matter", "render_model_card"]

SCHEMA_PATH = Path(__file__).parent / "model_card.schema.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def front_matter(scorecard: Scorecard, *, scorecard_hash: str | None = None) -> dict[str, Any]:
    """The YAML block of the card; it validates against `SCHEMA_PATH`. Unknown things are left out."""
    original = scorecard.models.get("original", {})
    verdict = scorecard.verdict
    control = scorecard.control[0] if scorecard.control else None
    block = {
        "version": scorecard.expunge_version,
        "verdict": verdict.word,
        "profile": verdict.profile,
        "epsilon": verdict.epsilon,
        "oracle": verdict.oracle,
        "worst_recovery": verdict.worst_recovery,
        "method": scorecard.method,
        "controls": scorecard.controls,
        "bar": control
        and {"metric": control.metric, "keep": control.tau, "value": control.bar, "reached": control.value},
        "alpha": control and control.alpha,
        "fingerprints": {
            name: str(facts["fingerprint"])
            for name, facts in scorecard.models.items()
            if "fingerprint" in facts
        },
        "scorecard_sha256": scorecard_hash,
    }
    wrapped = scorecard.models.get("controlled", {}).get("wrapper")
    library = "expunge" if wrapped else "transformers"
    matter = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["machine-unlearning", "expunge"],
        "base_model": _base_model(scorecard),
        "license": original.get("license"),
        "metrics": list(dict.fromkeys(row.metric for row in scorecard.scores if row.value is not None)),
        "expunge": {key: value for key, value in block.items() if value is not None},
    }
    return {key: value for key, value in matter.items() if value is not None}


def _base_model(scorecard: Scorecard) -> str | None:
    """The hub id of the original; a local folder is nobody else's business and is left out."""
    for name in (scorecard.models.get("original", {}).get("hub_id"), scorecard.recipe.get("model")):
        if isinstance(name, str) and _HUB_ID.fullmatch(name) and not Path(name).exists():
            return name
    return None


def render_model_card(scorecard: Scorecard, *, scorecard_hash: str | None = None) -> str:
    """MODEL_CARD.md: what was unlearned in kind, how, with what result, and what is not known."""
    verdict = scorecard.verdict
    matter = front_matter(scorecard, scorecard_hash=scorecard_hash)
    target = escape(scorecard.target.get("kind", "records"))
    method = escape(scorecard.method or "not known")
    control = escape(", ".join(scorecard.controls) or "none")
    word = verdict.word[0].upper() + verdict.word[1:]
    parts = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True).strip()}\n---",
        f"# {escape(scorecard.name)}",
        f"This model was changed after training so that it forgets a set of records (target: {target}). "
        f"Method: {method}; control: {control}.",
        "## Result",
        f"**{word}.** {words.verdict_meaning(verdict.word)[1]} {escape(verdict.sentence)}",
        escape(words.bar_sentence(scorecard)),
        _scores(scorecard),
        "## Limits",
        "\n".join(f"- {escape(text)}" for text in scorecard.limits) or "No limits were recorded.",
        "## Intended use",
        "As the original model, where the forgotten records must not be given away. The verdict holds for "
        f"the attacks and budgets of the audit profile {escape(verdict.profile)} and for these weights only: "
        "further training, merging or quantization calls for a new audit.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(scorecard: Scorecard) -> str:
    models = [
        m for m in ("original", "controlled", "oracle") if any(row.model == m for row in scorecard.scores)
    ]
    names = dict.fromkeys((row.metric, row.split) for row in scorecard.scores if row.headline)
    rows = []
    for metric, split in names:
        found = [scorecard.score(metric, split, model) for model in models]
        cells = [
            f"{number(r.value)} {interval(r.low, r.high)}" if r and r.value is not None else "n/a"
            for r in found
        ]
        rows.append([escape(words.plain(metric)), escape(split), *map(escape, cells)])
    return table(["metric", "split", *models], rows, left=2) if rows else ""
