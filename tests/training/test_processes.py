"""Two real processes against one: gradients, losses, evidence, a whole run; and how such a job ends.

`two_ranks.py` is what they run; it finds every number twice, by each rank alone and by both together.
"""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
OWN_TRAINING = {"whp", "repselect"}
"""They train a model inside a step or before: its rounding is in the gradient too."""


def launch(*args, processes=2, cwd=None, timeout=300):
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
