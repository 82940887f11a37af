"""Bad input of every kind through the command line: one clear message, exit 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_world import command, listing, rows, write_recipe, write_rows

Spoil = Callable[[Path], dict[str, Any] | None]


def copied(name: str, change: Callable[[Path], None]) -> Spoil:
    """A copy of the original, spoiled."""

    def spoil(world: Path) -> dict[str, Any]:
        shutil.copytree(world / "original", world / name, dirs_exist_ok=True)
        change(world / name)
        return {"model": name}

    return spoil


def lines(split: str, *texts: str, first: bool = True) -> Spoil:
    """A data file with these lines, after its sound ones."""

    def spoil(world: Path) -> dict[str, Any]:
        sound = [json.dumps(row) for row in rows(split)] if first else []
        (world / "bad.jsonl").write_text("\n".join([*sound, *texts]) + "\n", encoding="utf-8")
        return {split: "bad.jsonl"}

    return spoil


def record(**fields: Any) -> str:
    return json.dumps(
        {"id": "x", "entity": "Zed", "question": "Where is Zed?", "answer": "Zed is in Ort.", **fields}
    )


def keys(**changes: Any) -> Spoil:
    return lambda world: changes


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return apply


def config(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return apply


def damaged(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\x07" * 8 + file.read_bytes()[8:])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without(*names: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name in names:
            for file in folder.glob(name):
                file.unlink()

    return apply


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(iter(tensors))
    tensors[name].view(-1)[3] = float("nan")
    return tensors


def first_left_out(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(tensors.items())[1:])


def binary(world: Path) -> dict[str, Any]:
    (world / "bad.jsonl").write_bytes(b'{"question": "caf\xe9", "answer": "x"}\n')
    return {"forget": "bad.jsonl"}


def in_both(world: Path) -> dict[str, Any]:
    write_rows(world / "bad.jsonl", [*rows("retain"), rows("forget")[0]])
    return {"retain": "bad.jsonl"}


def everything(world: Path) -> dict[str, Any]:
    return {"retain": "forget.jsonl"}


def occupied(world: Path) -> dict[str, Any]:
    (world / "taken").mkdir(exist_ok=True)
    (world / "taken" / "thesis.txt").write_text("mine")
    return {"output": "taken"}


def a_file(world: Path) -> dict[str, Any]:
    (world / "a-file").write_text("mine")
    return {"output": "a-file"}


def below_a_file(world: Path) -> dict[str, Any]:
    (world / "a-file").write_text("mine")
    return {"output": "a-file/run"}


DATA = {
    "missing file": (keys(forget="nobody.jsonl"), "nobody.jsonl"),
    "empty file": (lines("forget", first=False), "bad.jsonl"),
    "bad JSON": (lines("forget", '{"question": "Where"'), "bad.jsonl:7"),
    "not an object": (lines("forget", "[1, 2]"), "bad.jsonl:7"),
    "a field that stands twice": (lines("forget", '{"answer": "a", "answer": "b"}'), "bad.jsonl:7 answer"),
    "no answer": (lines("forget", '{"question": "Where is Zed?"}'), "bad.jsonl:7"),
    "empty answer": (lines("forget", record(answer="  ")), "bad.jsonl:7"),
    "wrong type": (lines("forget", record(answer=5)), "bad.jsonl:7"),
    "duplicate ids": (lines("forget", record(), record(answer="Zed is a fool.")), "bad.jsonl:8 id"),
    "not UTF-8": (binary, "bad.jsonl:1"),
    "a record in forget and retain": (in_both, "forget"),
    "the forget set is all the data": (everything, "forget set is all the data"),
    "longer than the context": (lines("forget", record(answer="la " * 200)), "longer than the context"),
    "unknown columns": (keys(columns={"answer": "reply"}), "reply"),
    "unknown kind of file": (keys(forget="original"), "original"),
    "forget_hard without source": (
        lambda world: {"forget_hard": write_rows(world / "hard.jsonl", [json.loads(record())]).name},
        "source_id",
    ),
}  # fmt: skip

MODELS = {
    "no such folder": (keys(model="./no-model"), "no-model"),
    "an empty folder": (
        lambda world: (world / "void").mkdir(exist_ok=True) or {"model": "./void"},
        "config.json",
    ),
    "no weights": (copied("bare", without("*.safetensors")), "bare"),
    "damaged weights": (copied("damaged", damaged), "damaged safetensors"),
    "pickled weights": (copied("pickled", pickled), "safetensors"),
    "NaN weights": (copied("nan", weights(with_nan)), "non-finite weights"),
    "missing weights": (copied("lacking", weights(first_left_out)), "lacks"),
    "other shapes": (copied("shapes", config(hidden_size=64)), "shapes"),
    "no tokenizer": (copied("mute", without("tokenizer*", "special*")), "tokenizer"),
    "no causal LM": (copied("bert", config(model_type="bert", architectures=["BertModel"])), "bert"),
    "a broken config": (copied("config", lambda f: (f / "config.json").write_text("{")), "config"),
    "a bad oracle": (keys(oracle="./no-oracle"), "no-oracle"),
    "a bad base": (keys(oracle={"retrain": True, "base": "./no-base"}), "no-base"),
    "an unknown attention": (keys(attention="none_such"), "original"),
}

RECIPES = {
    "unknown key": (keys(trian={}), "trian: unknown key. Did you mean train"),
    "wrong type": (keys(seed="one"), "seed"),
    "unknown method": (keys(method="nop"), "Did you mean npo"),
    "unknown setting": (keys(method={"name": "npo", "betta": 1}), "Did you mean beta"),
    "unknown benchmark part": (
        keys(benchmark="personas/huge", model=None, forget=None, retain=None, holdout=None, oracle=None),
        "huge",
    ),
    "no such device": (keys(device="cuda:9"), "cuda:9"),
    "an output that is not a run": (occupied, "is no expunge run"),
    "an output that is a file": (a_file, "is no expunge run"),
    "an output that cannot be": (below_a_file, "a-file/run"),
}
ALL = {
    f"{kind}: {name}": case
    for kind, cases in (("data", DATA), ("model", MODELS), ("recipe", RECIPES))
    for name, case in cases.items()
}


def check_complaint(code: int, out: str, err: str, said: str) -> None:
    assert code == 2, err
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert "fault of expunge" not in err
    messages = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1 or "problems:" in err, err


@pytest.mark.parametrize(("spoil", "said"), ALL.values(), ids=ALL)
def test_bad_input_is_one_message_and_nothing_is_written(world, spoil, said):
    recipe = write_recipe(world / "r.yaml", **spoil(world))
    before = listing(world)
    check_complaint(*command("run", recipe), said)
    assert listing(world) == before
    if not said.startswith(("non-finite", "lacks", "safetensors", "damaged", "no-oracle", "no-base")):
        return
    assert command("plan", recipe).code in (0, 2), "plan loads no weights, so it may not see it"
    assert listing(world) == before


def test_there_are_thirty_kinds():
    assert len(ALL) >= 30


COMMANDS = {
    "no such recipe": (["run", "none.yaml"], "none.yaml"),
    "no such stage": (["run", "r.yaml", "--only", "mesure"], "Did you mean measure"),
    "no such option": (["run", "r.yaml", "--onyl", "score"], "--onyl"),
    "no such verb": (["rnu", "r.yaml"], "rnu"),
    "an override that is none": (["run", "r.yaml", "lr"], "is not an override"),
    "an unknown kind of list": (["list", "method"], "Did you mean methods"),
    "show of no run": (["show", "original"], "holds no scorecard.json"),
    "report of no run": (["report", "original"], "holds no scorecard.json"),
    "report of no folder": (["report", "nowhere"], "holds no scorecard.json"),
    "purge of no run": (["purge", "original", "--yes"], "is no run folder"),
    "audit of no model": (["audit", "./no-model", "r.yaml"], "no-model"),
    "audit without a request": (["audit", "original", "none.jsonl"], "none.jsonl"),
    "init without a file": (["init", "none.jsonl"], "none.jsonl"),
    "init over a recipe": (["init", "forget.jsonl", "-o", "r.yaml"], "overwrite it with --force"),
}


@pytest.mark.parametrize(("args", "said"), COMMANDS.values(), ids=COMMANDS)
def test_a_bad_command_is_one_message_and_nothing_is_written(world, args, said):
    write_recipe(world / "r.yaml")
    before = listing(world)
    check_complaint(*command(*args), said)
    assert listing(world) == before


@pytest.mark.slow
@pytest.mark.parametrize("case", ["data: bad JSON", "model: damaged weights", "recipe: unknown key"])
def test_the_shell_sees_the_same(world, case):
    spoil, said = ALL[case]
    recipe = write_recipe(world / "r.yaml", **spoil(world))
    before = listing(world)
    command = [sys.executable, "-m", "expunge", "run", str(recipe)]
    done = subprocess.run(command, cwd=world, capture_output=True, text=True, env={**os.environ}, check=False)
    check_complaint(done.returncode, done.stdout, done.stderr, said)
    assert listing(world) == before


def test_data_problems_come_all_at_once(world):
    lines("forget", "{", record(answer=""), '{"question": "Where?"}')(world)
    write_rows(world / "other.jsonl", [{"question": "", "answer": "x"}])
    recipe = write_recipe(world / "r.yaml", forget="bad.jsonl", retain="other.jsonl")
    said = command("run", recipe)
    assert said.code == 2
    for place in ("bad.jsonl:7", "bad.jsonl:8", "bad.jsonl:9", "other.jsonl:1"):
        assert place in said.err
    assert not any(secret in said.err for secret in ("Tarn", "potter"))


def test_no_arguments_is_help():
    said = command()
    assert said.code == 2
    assert said.err == ""
    assert "run" in said.out + said.err
    assert all(verb in said.out + said.err for verb in ("audit", "plan", "purge"))
