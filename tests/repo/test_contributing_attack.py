"""The attack in CONTRIBUTING, installed as a package of someone else, under the contract of every attack."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_contributing_attack_keeps_the_contract(tmp_path):
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- attack -->\n```python\n(.*?)```", page, re.S)
    (tmp_path / "skipping.py").write_text(code, encoding="utf-8")
    info = tmp_path / "skipping-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: skipping\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[expunge.attacks]\nskip_block = skipping\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    contract = str(ROOT / "tests" / "attacks" / "test_attack_contract.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", contract, "-k", "skip_block"],
        env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
