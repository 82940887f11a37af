"""The ledger: chained, without duplicates, and every kind of tampering is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.runs.ledger import check_chain, entries, ledger_of, record


@pytest.fixture
def path(tmp_path) -> Path:
    for number in range(4):
        record(tmp_path / f"run{number}", "requested", records=number)
    return ledger_of(tmp_path / "run0")


def test_the_chain_holds_and_the_same_again_is_no_entry(path, tmp_path):
    assert check_chain(path) == []
    head = record(tmp_path / "run2", "requested", records=2)
    assert head == entries(path)[2]["hash"]
    assert len(entries(path)) == 4


@pytest.mark.parametrize("change", ["edit", "delete", "reorder", "garbage"])
def test_tampering_is_found(path, change):
    lines = path.read_text().splitlines()
    if change == "edit":
        lines[1] = json.dumps({**json.loads(lines[1]), "run": "other"}, sort_keys=True)
    elif change == "delete":
        del lines[1]
    elif change == "reorder":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines[1] = "{"
    path.write_text("\n".join(lines) + "\n")
    assert check_chain(path)


def test_a_half_written_last_line_is_taken_away(path, tmp_path):
    with path.open("a") as file:
        file.write('{"half')
    record(tmp_path / "run9", "requested", records=9)
    assert check_chain(path) == []
    assert [e["run"] for e in entries(path)] == ["run0", "run1", "run2", "run3", "run9"]
