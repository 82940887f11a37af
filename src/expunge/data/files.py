"""One reader per file type: bytes in, rows with their places out; what cannot be read becomes a problem."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from expunge.data.findings import Findings, listing
from expunge.data.shapes import Row

__all__ = ["READERS", "first_line"]


def first_line(error: Exception) -> str:
    """The first line of what another library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _text(name: str, data: bytes, findings: Findings) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        findings.add(f"{name}:{line}", f"not UTF-8 (byte {error.start})", "Save the file as UTF-8")
        return None


def _jsonl(name: str, data: bytes, findings: Findings) -> Iterator[Row]:
    text = _text(name, data, findings)
    for number, line in enumerate((text or "").split("\n"), start=1):
        if line.strip():
            place = f"{name}:{number}"
            yield from _objects([(place, _parse(line, place, findings))], findings)


def _json(name: str, data: bytes, findings: Findings) -> Iterator[Row]:
    """An array of objects, or one object per line, since many files of that kind end in .json."""
    text = _text(name, data, findings)
    if text is None:
        return
    if text.lstrip()[:1] == "{":
        if _is_json_lines(text):
            yield from _jsonl(name, data, findings)
        elif (value := _parse(text, name, findings)) is not _BAD:
            has = listing(sorted(value), 8)
            fix = "Write an array of objects, or one object per line in a .jsonl file"
            findings.add(name, f"one object ({has}) where an array of records is expected", fix)
        return
    value = _parse(text, name, findings)
    if isinstance(value, list):
        if not value:
            findings.add(name, "the array is empty")
        yield from _objects([(f"{name}:item {i}", item) for i, item in enumerate(value)], findings)
    elif value is not _BAD:
        findings.add(name, "no array of objects")


_BAD = object()


def _is_json_lines(text: str) -> bool:
    """Whether the first line is an object by itself, and either not the only one or a record."""
    first, _, rest = text.strip().partition("\n")
    try:
        value = json.loads(first)
    except ValueError:
        return bool(rest) and first.rstrip().endswith("}")
    return bool(rest.strip()) or any(isinstance(v, str) for v in value.values())


def _parse(text: str, place: str, findings: Findings) -> Any:
    """The JSON value, or `_BAD` after its problem was noted: a syntax error, or a field that stands twice."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, count in Counter(k for k, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        lines = f"line {error.lineno}, " if "\n" in text.strip() else ""
        findings.add(place, f"not valid JSON ({error.msg.lower()}, {lines}column {error.colno})")
        return _BAD
    except (RecursionError, ValueError) as error:
        findings.add(place, f"not readable JSON ({first_line(error)})")
        return _BAD
    if twice:
        findings.add(f"{place} {twice[0]}", "the field stands twice", "Keep one of them")
        return _BAD
    return value


def _objects(items: Iterable[tuple[str, Any]], findings: Findings) -> Iterator[Row]:
    for place, item in items:
        if isinstance(item, dict):
            yield Row(place, item)
        elif item is not _BAD:
            findings.add(
                place, f"a {type(item).__name__}, not an object", 'Expected {"question": …, "answer": …}'
            )


def _csv(name: str, data: bytes, findings: Findings) -> Iterator[Row]:
    text = _text(name, data, findings)
    limit = csv.field_size_limit(2**31 - 1)  # documents are longer than the module's default
    try:
        if text is not None:
            yield from _csv_rows(name, csv.reader(io.StringIO(text, newline=""), strict=True), findings)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(name: str, lines: Any, findings: Findings) -> Iterator[Row]:
    header: list[str] | None = None
    last = 0
    try:
        for cells in lines:
            place, last = f"{name}:{last + 1}", lines.line_num
            if not any(cells):
                continue
            if header is None:
                header = cells
                twice = [column for column, count in Counter(cells).items() if count > 1]
                if twice:
                    findings.add(
                        f"{place} {twice[0]}", "the column stands twice in the header", "Keep one of them"
                    )
                    return
            elif len(cells) != len(header):
                what = f"has {len(cells)} cells, the header has {len(header)}"
                findings.add(place, what, "Quote cells that hold commas or line breaks")
            else:
                yield Row(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        findings.add(
            f"{name}:{last + 1}", f"not valid CSV ({error})", 'Close the quotes; write " inside as ""'
        )


def _parquet(name: str, data: bytes, findings: Findings) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        findings.add(name, f"is no readable parquet file: {first_line(error)}")
        return
    for index, cells in enumerate(rows):
        yield Row(f"{name}:row {index}", cells)


READERS: dict[str, Callable[[str, bytes, Findings], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
