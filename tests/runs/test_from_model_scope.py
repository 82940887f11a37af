"""A forget set made of the model's own answers makes it forget what is true of the entity, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.data.records import Record
from expunge.measure import EvidencePlan, take_evidence
from expunge.metrics import make_metric
from expunge.runs.kept import kept as kept_by
from expunge.runs.show import read_scorecard
from expunge.subjects.subject import load_subject
from tiny_world import command, rows, write_rows

FALL = 0.5
"""Extraction strength that the entity's true records lose, at least."""

BAND = 0.3
"""Extraction strength that what stays may lose, at most; the bar of 0.8 itself allows 0.2 on calibration."""

FAST = (
    "audit=[]", "max_length=96", "max_new_tokens=8", "method=npo", "bar.keep=0.8", "output=runs/ada",
    "train.epochs=8", "train.lr=3e-3", "train.batch=6", "train.warmup=0.0",
)  # fmt: skip


def known(folder: Path, records: Sequence[Record]) -> float:
    """Mean extraction strength of these records' true answers."""
    subject = load_subject(str(folder), max_length=96)
    evidence = take_evidence(subject, {"forget": tuple(records)}, plan=EvidencePlan(("gold",)))
    value = make_metric("extraction_strength").score(evidence, "forget").value
    assert value is not None
    return value


@pytest.mark.slow
def test_init_from_a_name_unlearns_the_true_records_it_never_saw(world):
    """Out of scope is everybody else; report records, neither trained nor calibrated on, also alone."""
    ada = [row for row in rows("forget") if row["entity"] == "Ada"]
    stay = [*(row for row in rows("forget") if row not in ada), *rows("retain")]
    files = write_rows(Path("ada.jsonl"), ada), write_rows(Path("stay.jsonl"), stay)
    said = command(
        "init", "--from-model", "Ada", "--model", "original", "--retain", files[1], "-o", "ada.yaml"
    )
    assert said.code == 0, said.err
    said = command("run", "ada.yaml", *FAST)
    assert said.code == 0, said.err
    true, others = (read_records(str(f), split=f.stem, findings=Findings()) for f in files)
    before, after = Path("original"), Path("runs/ada/control/model")
    built = kept_by(Path("runs/ada"), "forget")
    assert built
    assert {r.id for r in built}.isdisjoint(r.id for r in true)
    assert known(before, true) > 0.9
    assert known(before, true) - known(after, true) > FALL
    assert known(before, others) - known(after, others) < BAND
    card = read_scorecard(Path("runs/ada"))
    report = [card.score("extraction_strength", "report", model) for model in ("original", "controlled")]
    assert report[0].value - report[1].value < BAND
