"""A commented recipe from the files a person has."""

from __future__ import annotations

import json
import re
from pathlib import Path

from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.errors import ConfigError, Problem
from expunge.reports.files import write_text
from expunge.runs.yamlfile import parse_value

__all__ = ["write_recipe"]

TEMPLATE = """\
# What to forget, in which model, how, under which bar. Check it with: expunge plan {output}
# Run it with: expunge run {output}

{model_line}
{forget_line}
{retain_line}
{neighbors_line}
{hard_line}
{holdout_line}
{utility_line}
oracle: none                  # none | a folder (a model that never saw the forget set) | retrain

# kind: records | entity | topic | capability | document | attribute
target: {{kind: {kind}, aim: erase_influence}}

{method_line}
# adapter: lora               # full | lora: train small matrices beside the weights
bar: {{metric: auto, keep: 0.95}}   # stated before training: this share of utility must remain
{control_line}
audit: default                # quick | default | deep | a list, as in [rtt, benign]
train: {{epochs: 5, lr: 1e-5, batch: {batch}, seed: 0}}   # tiny models (under 10 M) want lr about 1e-3
attack_lrs: [1e-5, 5e-5, 2e-4]  # what an attacker would try; tiny models: [3e-4, 1e-3, 3e-3]

# require: {{forget_above_oracle: 0.10}}   # a bar of your own: missed, the run exits with 3
# show_text: false            # true puts forget-set text into the report
output: {run}
"""

RETAIN = "what must stay; calibration and report records are cut from it"
HOLDOUT = "same kind, never seen by the model: without it no membership attack"
METHOD = "see: expunge list methods"
CONTROL = "after training, mix back toward the original until the bar holds"
FROM_MODEL = "no forget set: what the model itself says about it"
AUTO = "built from the model's own answers: better bring records that must stay"
BUILT = {
    "neighbors": "what must stay and is nearest to forget: taken out of retain, never trained on",
    "forget_hard": "the forget questions reworded, turned round, as gaps and choices",
    "holdout": "the forget questions about invented names: better bring records the model never saw",
    "utility": "about a hundred general questions that come with expunge; measured only",
}
FILES = {"holdout": "unseen.jsonl", "utility": "general.jsonl"}


def write_recipe(
    file: Path | None,
    *,
    model: str,
    retain: str | None,
    holdout: str | None,
    output: Path,
    from_model: str | None = None,
    force: bool = False,
) -> Path:
    """Read the files (and say all that is wrong with them), then write a recipe that runs.

    The forget set is `file`, or what the model says about the entity `from_model`. With nothing else brought,
    the other splits are built.
    """
    output = Path(output)
    if (file is None) == (from_model is None):
        what = "a forget file, or --from-model ENTITY" + (": one of the two" if file else "")
        raise ConfigError(Problem("init", f"needs {what}"))
    if output.exists() and not force:
        raise ConfigError(
            Problem(str(output), "exists", "Choose another --output, or overwrite it with --force")
        )
    findings = Findings()
    records = read_records(str(file), split="forget", findings=findings) if file else []
    for name, source in (("retain", retain), ("holdout", holdout)):
        if source:
            read_records(source, split=name, findings=findings)
    findings.raise_problems()
    entity = bool(from_model) or any(r.entity for r in records)
    documents = bool(records) and all(r.is_document for r in records)
    bare = not (retain or holdout or documents)
    text = TEMPLATE.format(
        output=output,
        model_line=_line("model", _plain(model), "folder or hub id of the model that must forget"),
        forget_line=_line("forget", _plain(file), f"{len(records)} records: the only data you must bring")
        if file
        else _line("forget", f"{{from_model: {_plain(from_model)}}}", FROM_MODEL),
        retain_line=_line("retain", _plain(retain), RETAIN) if retain else _line("retain", "auto", AUTO),
        neighbors_line=_auto("neighbors", bare),
        hard_line=_auto("forget_hard", bare),
        holdout_line=_line("holdout", _plain(holdout), HOLDOUT) if holdout else _auto("holdout", bare),
        utility_line=_auto("utility", bare),
        kind="document" if documents else "entity" if entity else "records",
        method_line=_line("method", "wga", METHOD),
        control_line=_line("control", "[uwc]", CONTROL),
        batch=max(1, min(32, len(records) or 8)),
        run=_plain(f"runs/{Path(file).stem if file else 'from-model'}"),
    )
    write_text(output, text)
    return output


def _line(key: str, value: str, why: str) -> str:
    return f"{key}: {value}".ljust(29) + f" # {why}"


def _auto(split: str, bare: bool) -> str:
    """The line of a split to be built: in force where there is nothing but the forget set."""
    if bare:
        return _line(split, "auto", BUILT[split])
    return _line(f"# {split}", FILES.get(split, "auto"), HOLDOUT if split == "holdout" else BUILT[split])


def _plain(value: object) -> str:
    """As YAML reads it back: in quotes where it would be anything but this text."""
    text = str(value)
    return text if re.fullmatch(r"[\w./~-]+", text) and parse_value(text) == text else json.dumps(text)
