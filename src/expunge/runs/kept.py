"""What a run keeps of its request until `purge`: its forget set, and what was built from the model.

Later requests measure an earlier forget set again, and the person's own file may be gone or overwritten by
then. The records lie in `request/` of the run folder, as parquet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.data.records import Record
from expunge.data.request import fingerprint_records
from expunge.runs.folder import write_json

__all__ = ["FOLDER", "keep", "kept", "kept_note"]

FOLDER = "request"
NOTE = "note.json"


def keep(run: Path, splits: Mapping[str, Sequence[Record]], note: Mapping[str, Any]) -> None:
    """Write these splits, those that are not there already, and the note that says what they are."""
    folder = run / FOLDER
    for split, records in splits.items():
        known = kept(run, split)
        if known is None or fingerprint_records(known) != fingerprint_records(records):
            _write(folder / f"{split}.parquet", records)
    if kept_note(run) != note:
        write_json(folder / NOTE, note)


def kept(run: Path, split: str) -> tuple[Record, ...] | None:
    """The records of a split as they were; None where the run keeps none, or none that can be read."""
    file = run / FOLDER / f"{split}.parquet"
    if not file.is_file():
        return None
    findings = Findings()
    records = read_records(str(file), split=split, findings=findings)
    return None if findings.problems else tuple(records)


def kept_note(run: Path) -> dict[str, Any]:
    """What `keep` was told; empty where there is nothing."""
    try:
        note = json.loads((run / FOLDER / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write(path: Path, records: Sequence[Record]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [record.as_dict() for record in records]
    names = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pyarrow.parquet.write_table(table, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
