"""`make` sets up by itself, does it once, and survives an interruption. No package is installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("demo", "test", "check", "fix", "bench", "clean")
FAKE = """#!/bin/sh
# A Python that writes down what it is asked; `-m venv` makes a folder whose python is this file again.
echo "$*" >> "$CALLS"
case "$*" in
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip"*) exit "$PIP_EXIT" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "fake-python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    return tmp_path


def make(folder: Path, target: str, *, pip_exit: int = 0, interpreter: str = "./fake-python"):
    """Run make there; the finished process, and what the fake Python was asked to do."""
    calls = folder / "calls"
    calls.write_text("")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    env |= {"CALLS": str(calls), "PIP_EXIT": str(pip_exit)}
    command = ["make", target, f"PYTHON={interpreter}"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return done, calls.read_text().splitlines()


def test_set_up_is_done_once(checkout):
    done, calls = make(checkout, ".venv/installed")
    assert done.returncode == 0, done.stderr
    assert [c.split()[1] for c in calls] == ["venv", "pip"]
    assert "constraints.txt" in calls[1]
    _, calls = make(checkout, ".venv/installed")
    assert calls == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_again_into_the_same_environment(checkout, changed):
    make(checkout, ".venv/installed")
    later = (checkout / ".venv" / "installed").stat().st_mtime + 10
    os.utime(checkout / changed, (later, later))
    done, calls = make(checkout, ".venv/installed")
    assert done.returncode == 0
    assert [c.split()[1] for c in calls] == ["pip"]


def test_an_install_that_failed_starts_over(checkout):
    done, _ = make(checkout, ".venv/installed", pip_exit=1)
    assert done.returncode != 0
    assert not (checkout / ".venv" / "installed").exists()
    _, calls = make(checkout, ".venv/installed")
    assert [c.split()[1] for c in calls] == ["venv", "pip"]
    assert "--clear" in calls[0]


def test_a_failed_update_leaves_no_stamp(checkout):
    make(checkout, ".venv/installed")
    later = (checkout / ".venv" / "installed").stat().st_mtime + 10
    os.utime(checkout / "pyproject.toml", (later, later))
    make(checkout, ".venv/installed", pip_exit=1)
    assert not (checkout / ".venv" / "installed").exists()


def test_without_a_python_there_is_a_clear_message(checkout):
    done, _ = make(checkout, ".venv/installed", interpreter="")
    assert done.returncode != 0
    assert "Python 3.11" in done.stderr


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "clean"])
def test_every_target_sets_up_first(checkout, target):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(["make", "-n", target], cwd=checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "-m pip install" in done.stdout


def test_ci_runs_check_and_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make")] == ["make check", "make test"]
