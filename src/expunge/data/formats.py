"""Reading files into records. Everything wrong in any file is collected, with file, line and field.

A source is one of
    forget.jsonl · forget.json (an array, or one object per line) · forget.csv · forget.parquet
    a folder                 of `datasets.save_to_disk`, or with such files in it
    folder:name              the part of a folder whose file names, or whose split, start with that name
    org/name                 a dataset of the Hugging Face hub,
    org/name:config          one configuration of it (locuslab/TOFU:forget01),
    org/name:config:split    and one split; org/name::split where there are no configurations

What exists on disk wins; what looks like a path and does not exist is an error, never a request to the hub.
Lines count from 1; items of an array and rows of a table from 0, like the ids made for rows without one
("forget-0").
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.data.files import READERS, first_line
from expunge.data.findings import Findings, listing
from expunge.data.records import Record
from expunge.data.request import SPLITS
from expunge.data.shapes import FIELDS, KNOWN_SHAPES, Row, record_of
from expunge.errors import Problem, nearest

__all__ = ["Source", "load_splits", "read_records", "read_rows"]

Source = str | Path
Columns = Mapping[str, str]

FEW = 5
"""Problems of one kind in one file that are shown."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[^:/]*){0,2}")
_OPTION = re.compile(r"option\d+")


def load_splits(
    sources: Mapping[str, Source],
    *,
    columns: Mapping[str, Any] | None = None,
    findings: Findings,
) -> dict[str, tuple[Record, ...]]:
    """The records of each split. A split with any problem in its file holds the rows that were good.

    `columns` maps expected field names to the files' own column names, for all splits or split by split:
    {"question": "prompt_text"} or {"forget": {"question": "prompt_text"}}.
    """
    per_split: dict[str, Columns] = {split: {} for split in sources}
    for key, value in (columns or {}).items():
        if isinstance(value, str):
            for split in sources:
                per_split[split] = {**per_split[split], key: value}
        elif key in sources:
            per_split[key] = {**per_split[key], **value}
        else:
            findings.add(f"columns.{key}", "no such split is given", nearest(key, sources))
    splits = {}
    for split, source in sources.items():
        before = len(findings.problems)
        splits[split] = tuple(read_records(source, split=split, columns=per_split[split], findings=findings))
        if len(findings.problems) > before:
            findings.broken.add(split)
    return splits


def read_records(
    source: Source,
    *,
    split: str,
    columns: Columns | None = None,
    findings: Findings,
    cells: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> list[Record]:
    """The records of one source; what is wrong goes to `findings`, rows in which something is are left out.

    `columns` maps a field expected to the column the file has: {"question": "prompt_text"}. `cells` makes
    the cells of a row what they should be, where no other name does.
    """
    columns = dict(columns or {})
    for name in [n for n in columns if n not in FIELDS and not _OPTION.fullmatch(n)]:
        findings.add(f"columns.{name}", "is no field of a record", nearest(name, FIELDS))
        del columns[name]
    before = len(findings.problems)
    records = _read(str(source), split, columns, findings, cells or dict)
    if not records and len(findings.problems) == before:
        findings.add(str(source), f"holds no records for {split}")
    findings.problems[before:] = _grouped(findings.problems[before:])
    return records


def _read(
    source: str,
    split: str,
    columns: Columns,
    findings: Findings,
    cells: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[Record]:
    rows = [Row(row.place, cells(row.cells)) for row in read_rows(source, split, findings)]
    if not rows:
        return []
    seen = set().union(*(row.cells for row in rows))
    for name, column in columns.items():
        if column not in seen:
            fix = f"Columns there: {listing(sorted(map(str, seen)), 12)}"
            findings.add(source, f"has no column {column!r}, which is to hold {name}", fix)
            return []
    return _records(rows, source, split, columns, findings)


def _records(rows: list[Row], source: str, split: str, columns: Columns, findings: Findings) -> list[Record]:
    records: list[Record] = []
    unused: Counter[str] = Counter()
    shapeless: dict[frozenset[str], list[str]] = {}
    for index, row in enumerate(rows):
        before = len(findings.problems)
        record, extra = record_of(row, split=split, index=index, columns=columns, findings=findings)
        if record is None and len(findings.problems) == before:
            shapeless.setdefault(frozenset(row.cells), []).append(row.place)
            continue
        unused.update(extra)
        if record is None:
            continue
        first = findings.origins.setdefault((split, record.id), row.place)
        if first != row.place:
            findings.add(
                f"{row.place} id", f"the id {record.id!r} is already that of {first}", "Ids are unique"
            )
            continue
        records.append(record)
    for names, places in shapeless.items():
        _report_shapeless(sorted(map(str, names)), places, findings)
    if unused:
        hints = [_with_hint(name) for name in sorted(map(str, unused))]
        findings.warn(f"{source} ({split}): columns not used: {listing(hints, 12)}")
    return records


def _report_shapeless(names: list[str], places: list[str], findings: Findings) -> None:
    """One problem for all rows with the same unknown fields."""
    more = f", as in {len(places) - 1} more rows" if len(places) > 1 else ""
    has = f"the fields are {listing(names, 8)}" if names else "the row is empty"
    if len(names) == 1 and ";" in names[0]:
        findings.add(places[0], "the cells are parted by semicolons", "Save it with commas")
    else:
        fix = f"Expected {KNOWN_SHAPES}; other names can be mapped: columns: {{question: …, answer: …}}"
        findings.add(places[0], f"{has}{more}: no known kind of record", fix)


def _grouped(problems: list[Problem]) -> list[Problem]:
    """Of problems that differ only in their row, the first few and a count, lest they drown the others."""

    def kind(problem: Problem) -> tuple[str, str]:
        field = problem.where.rpartition(" ")[2]
        return (field if field.isidentifier() else "", problem.what)

    totals = Counter(map(kind, problems))
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for problem in problems:
        key = kind(problem)
        seen[key] += 1
        more = totals[key] - FEW
        if seen[key] == FEW and more > 0:
            kept.append(replace(problem, what=f"{problem.what} (and so in {more} more rows)"))
        elif seen[key] <= FEW:
            kept.append(problem)
    return kept


def _with_hint(name: str) -> str:
    close = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.85)
    return f"{name} (did you mean {close[0]}?)" if close else name


# Where the rows come from ------------------------------------------------------------------------------


def read_rows(source: str, split: str, findings: Findings) -> Iterator[Row]:
    """The rows of a file, of a folder's part ("folder:name") or of a hub dataset ("id:config:split")."""
    path, _, part = source.rpartition(":")
    if Path(source).expanduser().exists():
        path, part = source, ""
    elif not (path and Path(path).expanduser().is_dir()):
        yield from _absent(source, findings)
        return
    local = Path(path).expanduser()
    if local.is_dir():
        yield from _folder(local, part, split, findings)
    else:
        yield from _file(local, findings)


def _absent(source: str, findings: Findings) -> Iterator[Row]:
    """Rows of a hub dataset, unless the name looks like a path."""
    head = source.split("/", 1)[0]
    path_like = (
        not _HUB_ID.fullmatch(source)
        or head in (".", "..")
        or Path(head).is_dir()
        or Path(source).suffix.lower() in READERS
    )
    if not path_like:
        return _hub(source, findings)
    fix = f"Give a file ({', '.join(READERS)}), a folder, or a hub id such as org/name"
    findings.add(source, "there is no such file or folder", fix)
    return iter(())


def _file(path: Path, findings: Findings) -> Iterator[Row]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        findings.add(str(path), f"unknown file type {path.suffix!r}", f"Known: {', '.join(READERS)}")
        return iter(())
    try:
        data = path.read_bytes()
    except OSError as error:
        findings.add(str(path), f"cannot be read: {error.strerror}")
        return iter(())
    if not data.strip():
        findings.add(str(path), "the file is empty")
        return iter(())
    return reader(str(path), data, findings)


def _folder(folder: Path, part: str, split: str, findings: Findings) -> Iterator[Row]:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        yield from _saved_dataset(folder, part, split, findings)
        return
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in READERS
        and not p.name.startswith("dataset_info")
        and not any(piece.startswith(".") for piece in p.relative_to(folder).parts)
    )
    by_split = part or (split if any(_named(p, s) for p in files for s in SPLITS) else "")
    chosen = [p for p in files if not by_split or _named(p, by_split)]
    if not chosen:
        what = f"no file of it is named {by_split}" if files else "the folder has no data files"
        names = listing([p.name for p in files], 8) or ", ".join(READERS)
        findings.add(str(folder), what, f"{'There are' if files else 'Known types'}: {names}")
    for path in chosen:
        yield from _file(path, findings)


def _named(path: Path, name: str) -> bool:
    """forget.jsonl and forget-00000-of-00002.parquet are named forget; forget_hard.jsonl is not."""
    return path.stem == name or path.stem.startswith(f"{name}-") or path.parent.name == name


def _saved_dataset(folder: Path, part: str, split: str, findings: Findings) -> Iterator[Row]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # a broken folder fails in many ways
        findings.add(str(folder), f"is no readable dataset: {first_line(error)}")
        return
    yield from _pick(loaded, str(folder), part or (split if split in _names(loaded) else ""), findings)


def _hub(source: str, findings: Findings) -> Iterator[Row]:
    import datasets

    name, config, part = [*source.split(":"), "", ""][:3]
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # offline, unknown name, unknown configuration, a private one, …
        fix = "Check name and connection, or give a local file; offline, the dataset must be in the cache"
        findings.add(source, f"is no file here, and the hub gave no dataset: {first_line(error)}", fix)
        return
    yield from _pick(loaded, source, part, findings)


def _names(loaded: Any) -> list[str]:
    return list(loaded) if isinstance(loaded, dict) else []


def _pick(loaded: Any, source: str, part: str, findings: Findings) -> Iterator[Row]:
    """The rows of the one split meant."""
    names = _names(loaded)
    if names:
        chosen = part or (names[0] if len(names) == 1 else "")
        if chosen not in names:
            what = f"has no split {part!r}" if part else "has several splits"
            findings.add(source, what, f"Name one of them after a colon: {', '.join(map(str, names))}")
            return
        loaded = loaded[chosen]
    for index, cells in enumerate(loaded):
        yield Row(f"{source}:row {index}", cells)
