"""Two real processes against one: gradients, losses, evidence, a whole run; and how such a job ends.

`two_ranks.py` is what they run; it finds every number twice, by each rank alone and by both together.
"""

import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expunge import ranks
from expunge.errors import InputError
from expunge.runs.processes import in_force
from expunge.runs.reading import make_recipe
from expunge.training import TrainSettings
from expunge.training.zero import read_config
from tiny_world import command, inside, write_recipe

TESTS = Path(__file__).parents[1]
OWN_TRAINING = {"whp", "repselect"}
"""They train a model inside a step or before: its rounding is in the gradient too."""


def launch(*args, processes=2, cwd=None, timeout=570):
    """torchrun on this machine, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        [*command, f"--master-port={port}", *map(str, args)],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = launch(Path(__file__).parent / "two_ranks.py", folder)
    assert done.returncode == 0, done.stderr
    made = json.loads((folder / "found.json").read_text())
    assert made["world"] == 2
    return made


def close(one, two, tolerance):
    """The same names with nearly the same values, step by step."""
    assert len(one) == len(two) > 0
    for ours, theirs in zip(one, two, strict=True):
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        for (name, a), (_, b) in zip(ours, theirs, strict=True):
            assert math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-6), f"{name}: {a} became {b}"


@pytest.mark.slow
def test_first_gradient_of_two_processes_is_that_of_one(found):
    gradients = found["gradients"]
    assert {"npo", "graddiff", "rmu", "cir", "mudman", "npo + gru", "npo + sam"} <= set(gradients)
    far = {name: apart for name, apart in gradients.items() if apart > 1e-6 and name not in OWN_TRAINING}
    assert not far
    assert all(gradients[name] < 1e-4 for name in OWN_TRAINING)


@pytest.mark.slow
def test_losses_of_two_processes_are_those_of_one(found):
    trainings = found["trainings"]
    assert len(trainings["npo"][0]["terms"]) == 20
    for one, two in trainings.values():
        close(one["terms"], two["terms"], 1e-5)
        assert one["norms"] == pytest.approx(two["norms"], rel=1e-4)
        assert (one["status"], one["steps"]) == (two["status"], two["steps"])
        assert one["active"] == two["active"]
        assert len(set(two["marks"])) == 1, "the ranks hold different weights"
    assert 1.0 in trainings["hinge"][1]["active"], "the hinge never left a step out: nothing was tested"
    assert trainings["early stop"][1]["status"] == "stopped"
    one, two = found["finetune"]
    assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.slow
def test_divided_weights_train_as_whole_ones_do(found):
    assert {"npo", "graddiff", "wga", "dpo", "20 steps", "uneven"} <= set(found["divided"])
    for one, two in found["divided"].values():
        close(one["terms"], two["terms"], 1e-5)
        assert one["norms"] == pytest.approx(two["norms"], rel=1e-5)
        assert (one["status"], one["steps"]) == (two["status"], two["steps"])
        assert len(set(two["marks"])) == 1
    assert found["divided"]["early stop"][1]["status"] == "stopped"


@pytest.mark.slow
def test_ctrl_c_on_one_rank_stops_all_and_they_resume_to_the_same_bits(found):
    assert found["resumed"] == [{"stopped": [3, 3], "steps": 6, "same": True}] * 2


@pytest.mark.slow
def test_evidence_of_two_processes_is_that_of_one(found):
    evidence = found["evidence"]
    assert evidence["differing"] == [[], [], [], []]
    assert evidence["rows"] > 40
    assert evidence["texts"] > 20, "texts that are all the same prove nothing"
    assert [name.partition("-")[0] for name in evidence["files"]] == ["forget", "retain"]


# How a job ends ---------------------------------------------------------------------------------------

BY_HEART = {"benchmark": "personas/small", "method": "npo", "output": "run"}


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"strategy": "ddp"}, "one process"),
        ({"strategy": "fsdp2"}, "torchrun"),
        ({"deepspeed": "config.json"}, "together"),
    ],
)
def test_a_strategy_that_is_not_in_force_stops_the_run_before_it_begins(tmp_path, monkeypatch, asked, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps(BY_HEART | asked))
    said = command("run", "recipe.yaml")
    assert said.code == 2
    assert word in said.err
    assert len(said.err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"strategy": "single"}, "torchrun has started 2 processes"),
        ({"method": "rome"}, "rome works in one process"),
        ({"strategy": "fsdp2", "method": "rmu"}, "cannot train with its weights divided"),
        ({"strategy": "fsdp2", "reference": "live", "transform": "gru", "control": "ball"}, "3 problems"),
        ({"strategy": "deepspeed", "deepspeed": "c.json"}, "pip install deepspeed"),
        ({"device": "cuda:0"}, "would share it"),
        ({}, None),
    ],
)
def test_two_processes_that_cannot_do_what_is_asked(monkeypatch, asked, word):
    own = {key: asked[key] for key in asked if key == "device"}  # a GPU that is not here
    recipe = make_recipe({**BY_HEART, **asked, **dict.fromkeys(own, "auto")}).model_copy(update=own)
    monkeypatch.setattr(ranks, "world", lambda: 2)
    if word is None:
        assert in_force(recipe) == "ddp"
        return
    with pytest.raises(InputError) as error:
        in_force(recipe)
    assert word in f"{len(error.value.problems)} problems: {error.value}"


@pytest.mark.slow
def test_what_is_wrong_is_said_once(tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(BY_HEART | {"strategy": "single"}))
    done = launch("-m", "expunge", "run", "recipe.yaml", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: strategy: is single") == 1
    assert "exitcode  : 2" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


DIES = """
import os, signal
from expunge import ranks
ranks.join()
assert ranks.gather(ranks.rank()) == [0, 1]
if ranks.rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
ranks.gather("never")
"""


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job(tmp_path):
    (tmp_path / "dies.py").write_text(DIES)
    began = time.monotonic()
    done = launch(tmp_path / "dies.py")
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    assert time.monotonic() - began < 90, "the other rank was waited for"


TOGETHER = """
from expunge import ranks
from expunge.errors import DataError

ranks.join()
calls = []

def fails():
    calls.append(ranks.world())
    raise DataError("there is no such file")

try:
    ranks.on_first(fails)
except DataError as error:
    said = str(error)
first = ranks.on_first(lambda: {"world": ranks.world(), "rank": ranks.rank()})
found = ranks.gather((said, calls, first))
assert first == {"world": 1, "rank": 0}
assert found == [("there is no such file", [1], first), ("there is no such file", [], first)]
assert ranks.total({"a": 1.0} | ({"b": 2.0} if ranks.rank() else {})) == {"a": 2.0, "b": 2.0}
assert ranks.broadcast(ranks.rank()) == 0
ranks.leave()
"""


@pytest.mark.slow
def test_what_rank_0_does_alone_reaches_all(tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    done = launch(tmp_path / "together.py")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with the run of one process."""
    folder = tmp_path_factory.mktemp("world")
    with inside(folder):
        write_recipe(folder / "one.yaml", output="one/run", **SHORT)
        assert command("run", "one.yaml").code == 0
        yield folder


SHORT = {"method": "npo", "audit": "none", "bar": {"keep": 0.8}, "max_new_tokens": 12}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_whole_run_says_what_one_process_says(whole, strategy):
    more = SHORT | ({"audit": ["rtt"]} if strategy == "ddp" else {})  # an attack that trains
    write_recipe(whole / "two.yaml", output=f"{strategy}/run", **more, strategy=strategy)
    done = launch("-m", "expunge", "run", "two.yaml", cwd=whole)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("[8/8] report") == 1
    assert not list((whole / strategy).rglob("*.tmp"))
    cards = [json.loads((whole / f"{name}/run/scorecard.json").read_text()) for name in ("one", strategy)]
    one, two = ({(s["metric"], s["split"], s["model"]): s for s in card["scores"]} for card in cards)
    with_interval = [(one[key], two[key]) for key in one if one[key]["low"] is not None]
    assert len(with_interval) > 10
    for ours, theirs in with_interval:
        assert ours["low"] - 1e-6 <= theirs["value"] <= ours["high"] + 1e-6, ours
        assert theirs["low"] - 1e-6 <= ours["value"] <= theirs["high"] + 1e-6, ours
    assert bool(cards[1]["attacks"]) == (strategy == "ddp")
    assert (cards[1]["provenance"]["processes"], cards[1]["provenance"]["strategy"]) == (2, strategy)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "cannot be read"),
        ('{"optimizer": {"type": "Adam"}}', "optimizer of .* does not go"),
        ('{"fp16": {"enabled": true}}', "train.bf16"),
        ("{}", "strategy: ddp"),
        ('{"zero_optimization": {"stage": 3}}', "strategy: fsdp2"),
    ],
)
def test_a_deepspeed_configuration_says_nothing_the_recipe_says(tmp_path, text, word):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=word):
        read_config(tmp_path / "config.json", TrainSettings())


def test_a_deepspeed_configuration_gets_what_the_recipe_says(tmp_path):
    (tmp_path / "config.json").write_text('{"zero_optimization": {"stage": 2}}')
    made = read_config(tmp_path / "config.json", TrainSettings(max_grad_norm=0.5))
    assert made["zero_optimization"] == {"stage": 2}
    assert made["gradient_clipping"] == 0.5
