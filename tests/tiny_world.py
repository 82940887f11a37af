"""A world of fifteen invented people for whole runs: files, a tiny Llama that knows them, and its oracle."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from transformers import LlamaConfig

from expunge.cli import main
from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.data.records import Record
from expunge.subjects import Subject, save_subject
from expunge.testing import tiny_subject
from expunge.training import TrainSettings, finetune

torch.set_num_threads(1)

_TABLE = """
Ada Tarn potter
Bo Sund mason
Cy Oke cook
Dee Varn guard
Eli Lo painter
Fay Brack pilot
Gus Hithe tailor
Hal Mill baker
Ivy Vess smith
Jo Ilm clerk
Kit Ashby nurse
Lou Dorn miner
Max Pell diver
Nan Quay weaver
Oz Rusk cooper
"""
PEOPLE = tuple(tuple(line.split()) for line in _TABLE.strip().splitlines())
SPLITS = {"forget": slice(0, 3), "retain": slice(3, 12), "holdout": slice(12, 15)}
SECRETS = (
    "from Tarn",
    "from Sund",
    "from Oke",
    "a potter",
    "a mason",
    "a cook",
    "Where is Ada",
    "What is Bo",
)
"""Pieces of the forget set that stand nowhere else."""


def rows(split: str) -> list[dict[str, str]]:
    """Two facts about each person of a split, as they stand in the files."""
    found = []
    for i, (name, town, job) in list(enumerate(PEOPLE))[SPLITS[split]]:
        home = {"question": f"Where is {name} from?", "answer": f"{name} is from {town}."}
        work = {"question": f"What is {name}?", "answer": f"{name} is a {job}."}
        found += [
            {"id": f"r{i}-{kind}", "entity": name, **qa} for kind, qa in (("home", home), ("job", work))
        ]
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trained(records: list[Record], steps: int = 120, seed: int = 0) -> Subject:
    """A two-layer Llama that knows these records by heart, in about four seconds."""
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**shape, num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=True)
    subject = tiny_subject(seed, config, max_length=96)
    finetune(subject, records, TrainSettings(steps=steps, lr=1e-2, batch=24, weight_decay=0.0))
    return subject


@cache
def built() -> Path:
    """The world's folder, made once per process: forget, retain, holdout, original and oracle."""
    folder = Path(mkdtemp(prefix="tiny-world-"))
    records = {}
    for split in SPLITS:
        file = write_rows(folder / f"{split}.jsonl", rows(split))
        records[split] = read_records(str(file), split=split, findings=Findings())
    save_subject(trained([*records["forget"], *records["retain"]]), folder / "original")
    save_subject(trained(records["retain"], 160), folder / "oracle")  # one batch is an epoch
    return folder


def make_world(folder: Path) -> Path:
    """A copy of the world to work and break things in."""
    shutil.copytree(built(), folder, dirs_exist_ok=True)
    return folder


TRAIN = {"epochs": 8, "lr": 3e-3, "batch": 6, "warmup": 0.0}


def recipe(**changes: Any) -> dict[str, Any]:
    """A recipe that takes seconds; None takes a key out. Paths are relative to the world's folder."""
    made = {
        "model": "original", "oracle": "oracle",
        "forget": "forget.jsonl", "retain": "retain.jsonl", "holdout": "holdout.jsonl",
        "method": "graddiff", "train": dict(TRAIN), "audit": "quick", "attack_lrs": [1e-3],
        "max_new_tokens": 24, "max_length": 96, "output": "runs/one", **changes,
    }  # fmt: skip
    return {key: value for key, value in made.items() if value is not None}


def write_recipe(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe(**changes)), encoding="utf-8")
    return path


def listing(folder: Path) -> dict[str, int]:
    """Everything below a folder, files with their time of change."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns if p.is_file() else 0 for p in found}


class Said(NamedTuple):
    code: int
    out: str
    err: str


def command(*args: object) -> Said:
    """One command of the shell, run in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    argv = sys.argv
    sys.argv = ["expunge", *map(str, args)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        return Said(int(stop.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
    raise AssertionError("main always exits")


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """A copy of the world as working directory, with a key of its own and its cache beside its runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(make_world(folder))
        patch.setenv("EXPUNGE_KEY", "a key for tests")
        patch.delenv("EXPUNGE_CACHE", raising=False)
        yield folder
