"""A commented recipe from the files a person has."""

from __future__ import annotations

from pathlib import Path

from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.errors import ConfigError, Problem

__all__ = ["write_recipe"]

TEMPLATE = """\
# What to forget, in which model, how, under which bar. Check it with: expunge plan {output}
# Run it with: expunge run {output}

model: {model}                # folder or hub id of the model that must forget
forget: {forget}              # {num_forget} records: the only data you must bring
{retain_line}
{holdout_line}
# utility: general.jsonl      # general abilities, far from the topic; measured only
oracle: none                  # none | a folder (a model that never saw the forget set) | retrain

# kind: records | entity | topic | capability | document | attribute
target: {{kind: {kind}, aim: erase_influence}}

method: {method}              # see: expunge list methods
# adapter: lora               # full | lora: train small matrices beside the weights
bar: {{metric: auto, keep: 0.95}}   # stated before training: this share of utility must remain
control: [uwc]                # after training, mix back toward the original until the bar holds
audit: default                # quick | default | deep | a list, as in [rtt, benign]
train: {{epochs: 5, lr: 1e-5, batch: {batch}, seed: 0}}   # tiny models (under 10 M) want lr about 1e-3
attack_lrs: [1e-5, 5e-5, 2e-4]  # what an attacker would try; tiny models: [3e-4, 1e-3, 3e-3]

# require: {{forget_above_oracle: 0.10}}   # a bar of your own: missed, the run exits with 3
# show_text: false            # true puts forget-set text into the report
output: {run}
"""


def write_recipe(
    file: Path, *, model: str, retain: str | None, holdout: str | None, output: Path, force: bool = False
) -> Path:
    """Read the forget file (and say all that is wrong with it), then write a recipe that runs."""
    output = Path(output)
    if output.exists() and not force:
        raise ConfigError(
            Problem(str(output), "exists", "Choose another --output, or overwrite it with --force")
        )
    findings = Findings()
    records = read_records(str(file), split="forget", findings=findings)
    for name, source in (("retain", retain), ("holdout", holdout)):
        if source:
            read_records(source, split=name, findings=findings)
    findings.raise_problems()
    named = {r.entity for r in records if r.entity}
    documents = all(r.is_document for r in records)
    text = TEMPLATE.format(
        output=output,
        model=model,
        forget=file,
        num_forget=len(records),
        retain_line=_line(
            "retain", retain, "keep.jsonl", "what must stay; calibration and report records are cut from it"
        ),
        holdout_line=_line(
            "holdout",
            holdout,
            "unseen.jsonl",
            "same kind, never seen by the model: without it no membership attack",
        ),
        kind="document" if documents else "entity" if named else "records",
        method="graddiff" if retain else "{name: ga, retain: none}",
        batch=max(1, min(32, len(records))),
        run=f"runs/{Path(file).stem}",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(output)
    return output


def _line(key: str, given: str | None, example: str, why: str) -> str:
    return f"{key}: {given}".ljust(30) + f"# {why}" if given else f"# {key}: {example}".ljust(30) + f"# {why}"
